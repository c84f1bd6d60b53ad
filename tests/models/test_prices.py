"""What usage costs."""

from __future__ import annotations

import pytest

from vers_rlm_mcp.models import DEFAULT_MODELS, FREE, PRICES, Price
from vers_rlm_mcp.values import Usage

MILLION = 1_000_000


def test_each_kind_of_token_has_its_own_price():
    price = Price(input=2, output=10, cache_read=0.1, cache_write=2.5)
    assert price.usd(Usage(MILLION, 0, 0, 0)) == 2
    assert price.usd(Usage(0, MILLION, 0, 0)) == 10
    assert price.usd(Usage(0, 0, MILLION, 0)) == 0.1
    assert price.usd(Usage(0, 0, 0, MILLION)) == 2.5


def test_a_long_prompt_makes_the_whole_call_dearer_and_cached_tokens_count_as_prompt():
    price = Price(
        input=2,
        output=10,
        cache_read=0.1,
        cache_write=2.5,
        long_prompt=100,
        long_input=2,
        long_output=1.5,
    )
    assert price.usd(Usage(10, 1000, 90, 0)) == pytest.approx((20 + 10_000 + 9) / MILLION)
    assert price.usd(Usage(11, 1000, 90, 0)) == pytest.approx((44 + 15_000 + 18) / MILLION)


def test_the_default_models_have_a_price():
    assert set(DEFAULT_MODELS.values()) <= PRICES.keys()


def test_reading_the_cache_is_the_cheapest_and_output_the_dearest_everywhere():
    for model, price in PRICES.items():
        assert 0 < price.cache_read < price.input < price.cache_write < price.output, model


def test_what_is_free_costs_nothing():
    assert FREE.usd(Usage(MILLION, MILLION, MILLION, MILLION)) == 0
