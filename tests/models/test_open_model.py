"""From a name to a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vers_rlm_mcp.errors import ModelUnavailable
from vers_rlm_mcp.models import DEFAULT_MODELS, FREE, PRICES, SAMPLING, open_model

ANTHROPIC = {"ANTHROPIC_API_KEY": "sk-ant-1234567890"}
OPENAI = {"OPENAI_API_KEY": "sk-1234567890"}
LOCAL = {"OPENAI_BASE_URL": "http://127.0.0.1:11434/v1"}


@pytest.mark.parametrize(
    ("name", "env", "full_name"),
    [
        ("anthropic:claude-opus-5-5", ANTHROPIC, "anthropic:claude-opus-5-5"),
        ("anthropic", ANTHROPIC, f"anthropic:{DEFAULT_MODELS['anthropic']}"),
        ("openai", OPENAI, f"openai:{DEFAULT_MODELS['openai']}"),
        ("openai:qwen3:8b", LOCAL, "openai:qwen3:8b"),
        (" openai:gpt-6-luna ", OPENAI, "openai:gpt-6-luna"),
        (None, ANTHROPIC | OPENAI, f"anthropic:{DEFAULT_MODELS['anthropic']}"),
        (None, OPENAI, f"openai:{DEFAULT_MODELS['openai']}"),
        ("", OPENAI | {"ANTHROPIC_API_KEY": ""}, f"openai:{DEFAULT_MODELS['openai']}"),
    ],
)
def test_a_name_makes_the_model_it_means(name: str | None, env: dict[str, str], full_name: str):
    assert open_model(name, env).name == full_name


@pytest.mark.parametrize(
    ("name", "env", "message"),
    [
        (None, {}, "ANTHROPIC_API_KEY or OPENAI_API_KEY, or OPENAI_BASE_URL"),
        ("anthropic", OPENAI, "set ANTHROPIC_API_KEY"),
        ("openai", ANTHROPIC, "set OPENAI_API_KEY"),
        (None, LOCAL, "ask for `openai:MODEL`"),
        ("openai", LOCAL, "ask for `openai:MODEL`"),
        ("anthropc:claude-opus-5-5", ANTHROPIC, "mean `anthropic:claude-opus-5-5`?"),
        ("opena", ANTHROPIC, "mean `openai`?"),
        ("claude-opus-5-5", ANTHROPIC, "mean `anthropic:claude-opus-5-5`?"),
        ("gpt-6-luna", OPENAI, "mean `openai:gpt-6-luna`?"),
        ("zzz", ANTHROPIC, "'zzz'. The providers are anthropic, openai, scripted, sampling"),
        ("scripted", {}, "`scripted:PATH`"),
        (SAMPLING, {}, "MCP client"),
    ],
)
def test_a_name_that_means_nothing_here_is_refused_with_what_to_do(
    name: str | None, env: dict[str, str], message: str
):
    with pytest.raises(ModelUnavailable) as caught:
        open_model(name, env)
    assert message in str(caught.value)


@pytest.mark.parametrize("url", ["not a url", "ftp://host", "http://", "host:80", "http://h:port/"])
def test_a_base_url_that_is_none_is_refused_without_repeating_it(url: str):
    with pytest.raises(ModelUnavailable, match="OPENAI_BASE_URL") as caught:
        open_model("openai:m", {"OPENAI_BASE_URL": url})
    assert url not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-two lines\nsk-2", "sk-ünicode", "sk-a b"])
def test_a_key_that_no_header_can_carry_is_refused_without_repeating_it(key: str):
    with pytest.raises(ModelUnavailable, match="ANTHROPIC_API_KEY") as caught:
        open_model("anthropic", {"ANTHROPIC_API_KEY": key})
    assert key not in str(caught.value)


def test_the_price_of_a_model_is_known_or_none():
    assert open_model("anthropic", ANTHROPIC).price == PRICES[DEFAULT_MODELS["anthropic"]]
    assert open_model("openai:qwen3:8b", LOCAL).price is None


def test_a_script_is_free(tmp_path_factory: pytest.TempPathFactory):
    script = tmp_path_factory.mktemp("scripts") / "script.md"
    script.write_text("--- reply\nHello.\n")
    assert open_model(f"scripted:{script}", {}).price == FREE


def test_the_default_models_are_known_to_the_installed_sdks():
    from typing import get_args

    from anthropic.types import Model as AnthropicName
    from openai.types import ChatModel

    assert DEFAULT_MODELS["anthropic"] in get_args(get_args(AnthropicName)[0])
    assert DEFAULT_MODELS["openai"] in get_args(ChatModel)


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_room_and_opening_models_imports_no_sdk():
    code = """
import sys
from vers_rlm_mcp.models import open_model
open_model("anthropic", {"ANTHROPIC_API_KEY": "sk-1"})
open_model("openai", {"OPENAI_API_KEY": "sk-1"})
print(sorted({"anthropic", "openai"} & sys.modules.keys()))
"""
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_the_sdk_is_imported_off_the_event_loop(provider: str):
    code = f"""
import sys, threading, anyio
sys.path.insert(0, {str(Path(__file__).parent)!r})
from servers import AnthropicServer, OpenAIServer
from vers_rlm_mcp.values import Message
from vers_rlm_mcp.models import open_model

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {provider!r}:
            importers.add(threading.current_thread() is threading.main_thread())

importers = set()
sys.meta_path.insert(0, Watch())

async def main():
    server = {{"anthropic": AnthropicServer, "openai": OpenAIServer}}[{provider!r}]()
    async with server:
        variable = {provider.upper()!r}
        env = {{f"{{variable}}_API_KEY": "sk-1", f"{{variable}}_BASE_URL": server.url}}
        model = open_model({provider!r}, env)
        await model.complete([Message("user", "Hello.")])
        await model.aclose()

anyio.run(main)
print(importers)
"""
    assert run_python(code).strip() == "{False}"
