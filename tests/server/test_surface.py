"""What clients are shown: the list of tools."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from clients import call, error
from inline_snapshot import external_file
from mcp import Client
from mcp_types import Tool

from vers_rlm_mcp.errors import SettingsError
from vers_rlm_mcp.rlm import MAX_ITERATIONS, MAX_SUB_CALLS
from vers_rlm_mcp.server import Application, create_server
from vers_rlm_mcp.server.run_tools import ITERATIONS, SUB_CALLS
from vers_rlm_mcp.settings import Settings

LIST_BYTES = 14_000
"""Of JSON: some 3,500 tokens."""

NAME_CHARS = 60
"""What Cursor allows for server and tool name together."""


@pytest.fixture
async def tools(application: Application) -> list[Tool]:
    async with Client(create_server(application)) as client:
        return list((await client.list_tools()).tools)


def dumped(tools: list[Tool]) -> list[dict[str, Any]]:
    return [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in tools]


async def test_the_tools_are_as_recorded(tools: list[Tool]):
    assert dumped(tools) == external_file("tools.json")


async def test_where_no_machine_is_current_none_is_promised(
    tools: list[Tool], application: Application
):
    async with Client(create_server(Application(application.settings, one_client=False))) as many:
        offered = {tool.name: tool for tool in (await many.list_tools()).tools}
        assert {tool.name for tool in tools} - offered.keys() == {"currentVmId", "vmSwitch"}
        for tool in offered.values():
            schema = tool.input_schema
            if "vmId" in schema["properties"] and tool.name != "vers_rlm":
                assert "vmId" in schema["required"]
            assert "current" not in f"{tool.description} {schema}"
        assert "b" in offered["vmDiff"].input_schema["required"]
        assert "Over HTTP" in await error(many, "vmSwitch", vmId="bw-0")


async def test_tools_that_do_not_exist_are_answered_with_those_that_do(application: Application):
    async with Client(create_server(application)) as client:
        text = await error(client, "read_file")
        assert "did you mean readFile?" in text
        assert "vmList" in text


async def test_the_instructions_say_what_for_in_what_clients_show_of_them(application: Application):
    async with Client(create_server(application)) as client:
        shown = (client.instructions or "")[:240]
        assert all(word in shown for word in ("vers_rlm", "files", "logs", "data", "exec"))
    settings = Settings.model_validate(
        {"state_dir": application.settings.state_dir, "always_load": True}
    )
    async with Client(create_server(Application(settings, one_client=True))) as client:
        metas = {tool.name: tool.meta or {} for tool in (await client.list_tools()).tools}
    assert metas["vers_rlm"]["anthropic/alwaysLoad"]
    assert "log" in metas["vers_rlm"]["anthropic/searchHint"]
    assert "anthropic/alwaysLoad" not in metas["vmDelete"]


async def test_a_client_may_keep_the_list_and_share_it(application: Application):
    async with Client(create_server(application)) as client:
        listed = await client.list_tools()
    assert listed.ttl_ms > 0
    assert listed.cache_scope == "public"


async def test_the_defaults_of_a_run_are_those_of_the_engine(tools: list[Tool]):
    properties = tools[0].input_schema["properties"]
    assert f"Default {MAX_ITERATIONS}," in properties["maxIterations"]["description"]
    assert f"Default {MAX_SUB_CALLS}," in properties["maxLLMCalls"]["description"]
    assert (ITERATIONS, SUB_CALLS) == (MAX_ITERATIONS, MAX_SUB_CALLS)


async def test_nothing_that_a_handshake_does_not_need_is_loaded_with_the_server():
    rooms = [f"vers_rlm_mcp.{room}" for room in ("runs", "rlm", "kernel", "machines", "models")]
    heavy = {*rooms, "anthropic", "openai", "asyncssh", "opentelemetry.sdk"}
    code = f"import sys, vers_rlm_mcp.server, vers_rlm_mcp.cli; print({heavy} & set(sys.modules))"
    loaded = await anyio.run_process([sys.executable, "-c", code])
    assert loaded.stdout == b"set()\n"


async def test_the_list_costs_a_model_little(tools: list[Tool]):
    assert len(json.dumps(dumped(tools), separators=(",", ":")).encode()) <= LIST_BYTES


async def test_every_tool_says_what_it_is_and_does(tools: list[Tool]):
    for tool in tools:
        assert tool.title
        assert tool.description
        assert tool.output_schema
        assert tool.annotations
        assert tool.annotations.read_only_hint is not None
        assert tool.annotations.open_world_hint is not None
        assert tool.annotations.read_only_hint or tool.annotations.destructive_hint is not None
        assert len(f"mcp__vers-rlm__{tool.name}") <= NAME_CHARS


async def test_defaults_and_limits_are_repeated_in_words_for_clients_that_drop_them(
    tools: list[Tool],
):
    for tool in tools:
        for name, field in tool.input_schema["properties"].items():
            for key in ("default", "maximum"):
                if key in field and "enum" not in field:
                    words = re.findall(r"[\w.]+", field.get("description", ""))
                    assert str(field[key]).lower() in [w.lower().rstrip(".") for w in words], (
                        f"{tool.name}.{name}: {key}"
                    )


async def listed(tmp_path: Path, **settings: Any) -> tuple[set[str], set[str], str]:
    """The names of the tools and prompts that these settings offer, and the instructions."""
    chosen = Settings.model_validate({"state_dir": tmp_path, **settings})
    async with Client(create_server(Application(chosen, one_client=True))) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        prompts = {prompt.name for prompt in (await client.list_prompts()).prompts}
        return tools, prompts, client.instructions or ""


async def test_of_two_toolsets_either_can_be_left_out_with_all_that_needs_it(tmp_path: Path):
    both, _, _ = await listed(tmp_path)
    machines, of_machines, about_machines = await listed(tmp_path, toolsets="vm")
    runs, of_runs, about_runs = await listed(tmp_path, toolsets="rlm")
    assert machines | runs == both
    assert not machines & runs
    assert "exec" in machines
    assert "vers_rlm" in runs
    assert of_machines == {"investigate", "try_fixes"}
    assert of_runs == {"analyse_file"}
    assert "vers_rlm" not in about_machines
    assert "exec" not in about_runs


async def test_read_only_leaves_what_makes_and_changes_nothing(tmp_path: Path):
    tools, prompts, instructions = await listed(tmp_path, read_only=True)
    assert {"readFile", "vmList"} <= tools
    assert not tools & {"exec", "python", "writeFile", "vmCreate", "vmDelete", "vers_rlm"}
    assert prompts == set()
    assert "exec" not in instructions


async def test_read_only_no_machine_is_made_to_read_in(tmp_path: Path):
    settings = Settings.model_validate({"state_dir": tmp_path, "read_only": True})
    async with (
        Application(settings, one_client=True) as app,
        Client(create_server(app)) as client,
    ):
        text = await error(client, "readFile", path="/etc/passwd")
        assert "vmId" in text
        assert "exec" in await error(client, "exec", command="true")
        assert await call(client, "vmList") == {"vms": [], "commits": []}


async def test_settings_that_leave_no_tool_are_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="--toolsets"):
        await listed(tmp_path, toolsets="")
