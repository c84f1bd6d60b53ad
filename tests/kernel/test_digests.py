"""Digests tell plain values apart, and say nothing of others."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest

from vers_rlm_mcp.kernel.guest.digests import MAX_BYTES, MAX_VALUES, digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ("1", b"1"),
        (b"x", bytearray(b"x")),
        ([], ()),
        ([[1], 2], [1, [2]]),
        (["ab", ""], ["a", "b"]),
        ({"a": 1}, ["a", 1]),
        ([None] * 9 + [1], [None] * 9 + [2]),
        (1 << 600, (1 << 600) + 1),
        ("\udc80", "?"),
    ],
)
def test_values_that_are_not_the_same_have_different_digests(one: Any, other: Any) -> None:
    assert digest(one)
    assert digest(one) != digest(other)


def test_equal_values_have_the_same_digest() -> None:
    value = {"a": [1, (2.5, None)], "b": b"x"}
    assert digest(value) == digest({"a": [1, (2.5, None)], "b": b"x"})
    assert digest(float("nan")) == digest(float("nan"))


def test_what_is_large_or_has_code_of_its_own_has_none() -> None:
    itself: list[Any] = []
    itself.append(itself)
    large = [[0] * (MAX_VALUES + 1), "x" * (MAX_BYTES + 1), 1 << (8 * MAX_BYTES + 8)]
    assert [digest(value) for value in (itself, *large)] == [None] * 4
    assert digest(OrderedDict()) is digest({1, 2}) is digest([object()]) is None
