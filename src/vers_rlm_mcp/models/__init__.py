"""Language models: `open_model` creates one from its name.

Importing this package imports no provider's SDK. A model imports it on its first call.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vers_rlm_mcp.errors import ModelUnavailable

from . import anthropic, openai
from .anthropic import AnthropicModel
from .base import Model
from .openai import OpenAIModel
from .prices import FREE, PRICES, Price
from .remote import ModelOptions
from .scripted import ScriptedModel
from .stop_reasons import read_stop_reason_of_sampling
from .usage import estimate_usage

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DEFAULT_MODELS",
    "FREE",
    "PRICES",
    "PROVIDERS",
    "SAMPLING",
    "Model",
    "ModelOptions",
    "Price",
    "estimate_usage",
    "open_model",
    "read_stop_reason_of_sampling",
]

SAMPLING = "sampling"
"""The name of the MCP client's own model. Only the server can use it; `open_model` refuses it."""

DEFAULT_MODELS: Mapping[str, str] = {
    "anthropic": anthropic.DEFAULT_MODEL,
    "openai": openai.DEFAULT_MODEL,
}
"""The model to use if only the provider is named."""

PROVIDERS = ("anthropic", "openai", "scripted", SAMPLING)

# The provider that a model's name without a provider probably belongs to.
_FAMILIES = {"claude": "anthropic", "gpt": "openai"}


def open_model(
    name: str | None,
    env: Mapping[str, str] = os.environ,
    options: ModelOptions = ModelOptions(),  # noqa: B008 - immutable
) -> Model:
    """Create the model called `name`.

    Args:
        name: ``provider:model``, or ``anthropic`` or ``openai`` for that provider's default model,
            or ``scripted:PATH``. None selects the provider whose key is in `env`, Anthropic first.
        env: The environment that keys and base URLs are read from.
        options: What the user sets for the model, if it is a provider's.

    Raises:
        ModelUnavailable: The name is unknown, its key is not set, or its script cannot be used. No
            connection is made here, so a wrong key is detected only by the first call.
    """
    provider, _, model = (name or _provider_with_key(env)).strip().partition(":")
    if provider == "anthropic":
        return AnthropicModel(model or anthropic.DEFAULT_MODEL, env, options)
    if provider == "openai":
        return OpenAIModel(model or None, env, options)
    if provider == "scripted" and model:
        return ScriptedModel(Path(model))
    raise ModelUnavailable(_explain_name(provider, model))


def _provider_with_key(env: Mapping[str, str]) -> str:
    if env.get("ANTHROPIC_API_KEY"):
        return "anthropic"
    if env.get("OPENAI_API_KEY") or env.get("OPENAI_BASE_URL"):
        return "openai"
    raise ModelUnavailable(
        "No model is configured: set ANTHROPIC_API_KEY or OPENAI_API_KEY, or OPENAI_BASE_URL for "
        "your own server. VERS_RLM_MODEL=provider:model selects another model than the default."
    )


def _explain_name(provider: str, model: str) -> str:
    if provider == "scripted":
        return "`scripted` needs the path of a script: `scripted:PATH`."
    if provider == SAMPLING:
        return "`sampling` uses an MCP client's model, and there is no client here: name another."
    known = (
        f"The providers are {', '.join(PROVIDERS)}, as in `anthropic:{anthropic.DEFAULT_MODEL}`."
    )
    family = next(
        (owner for prefix, owner in _FAMILIES.items() if provider.startswith(prefix)), None
    )
    if family:
        meant = f"{family}:{provider}"
    else:
        close = difflib.get_close_matches(provider, PROVIDERS, n=1)
        meant = f"{close[0]}:{model}".removesuffix(":") if close else ""
    did_you_mean = f"Did you mean `{meant}`? " if meant else ""
    return f"There is no model provider {provider!r}. {did_you_mean}{known}"
