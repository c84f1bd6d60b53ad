"""Language models: `open_model` makes one from its name.

Importing this room imports no provider's SDK; a model does that when it is first asked.
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
from .scripted import ScriptedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DEFAULT_MODELS",
    "FREE",
    "PRICES",
    "PROVIDERS",
    "SAMPLING",
    "Model",
    "Price",
    "open_model",
]

SAMPLING = "sampling"
"""The name of the MCP client's own model. Only the server can ask it: `open_model` refuses."""

DEFAULT_MODELS: Mapping[str, str] = {
    "anthropic": anthropic.DEFAULT_MODEL,
    "openai": openai.DEFAULT_MODEL,
}
"""Which model is meant where a name holds only the provider."""

PROVIDERS = ("anthropic", "openai", "scripted", SAMPLING)

# Whose model a name without a provider probably is.
_FAMILIES = {"claude": "anthropic", "gpt": "openai"}


def open_model(name: str | None, env: Mapping[str, str] = os.environ) -> Model:
    """Make the model that `name` means.

    Args:
        name: ``provider:model``, or ``anthropic`` or ``openai`` for that provider's default model,
            or ``scripted:PATH``. None takes the provider whose key `env` holds, Anthropic first.
        env: Where keys and base URLs are read from.

    Raises:
        ModelUnavailable: The name means nothing, its key is not set, or its script cannot be used.
            No connection is made here: a wrong key is found out by the first call.
    """
    provider, _, model = (name or _provider_with_key(env)).strip().partition(":")
    if provider == "anthropic":
        return AnthropicModel(model or anthropic.DEFAULT_MODEL, env)
    if provider == "openai":
        return OpenAIModel(model or None, env)
    if provider == "scripted" and model:
        return ScriptedModel(Path(model))
    raise ModelUnavailable(_what_is_wrong(provider, model))


def _provider_with_key(env: Mapping[str, str]) -> str:
    if env.get("ANTHROPIC_API_KEY"):
        return "anthropic"
    if env.get("OPENAI_API_KEY") or env.get("OPENAI_BASE_URL"):
        return "openai"
    raise ModelUnavailable(
        "No model: set ANTHROPIC_API_KEY or OPENAI_API_KEY, or OPENAI_BASE_URL for a server of "
        "your own, and choose a model with VERS_RLM_MODEL=provider:model if the default is not it."
    )


def _what_is_wrong(provider: str, model: str) -> str:
    if provider == "scripted":
        return "`scripted` needs the path of a script: `scripted:PATH`."
    if provider == SAMPLING:
        return "`sampling` asks the model of an MCP client, and there is none here: name another."
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
    return f"No provider of models is called {provider!r}. {did_you_mean}{known}"
