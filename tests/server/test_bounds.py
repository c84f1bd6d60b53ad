"""Answers as long as their client shows them, and what is longer where it can be read."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from clients import call, environment_in, in_memory, script, text_of
from hypothesis import given, strategies as st
from mcp_types import CallToolResult, CompletionArgument, Implementation, ResourceTemplateReference

from vers_rlm_mcp.errors import UnknownHandle
from vers_rlm_mcp.server.bounds import as_json, dump, fit_fields, fit_text
from vers_rlm_mcp.server.kept_answers import MAX_ANSWERS, KeptAnswers
from vers_rlm_mcp.server.known_clients import KNOWN, KnownClient, utf16_length
from vers_rlm_mcp.server.toolset import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from mcp import Client

OUTPUTS = "FINAL(a='\\n' * 90_000, b=['x'] * 30_000, c='short', d={'k': 'é' * 90_000})"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("server")
    steps = [f"print('step {n}', 'y' * 900)" for n in range(1, 13)]
    model = script(home / "replies", *steps, OUTPUTS)
    return environment_in(home) | {"VERS_RLM_MODEL": model}


@pytest.fixture(scope="module")
async def client(environment: dict[str, str]) -> AsyncGenerator[Client]:
    """One for the module, which the server does not know."""
    async with in_memory(environment) as client:
        yield client


@pytest.fixture(scope="module")
async def run(client: Client) -> CallToolResult:
    """A run with long outputs and many steps."""
    signature = "-> a: str, b: list[str], c: str, d: dict"
    return await client.call_tool("vers_rlm", {"signature": signature})


def size(result: CallToolResult) -> int:
    """Text and fields together, as their reader counts them."""
    return utf16_length(json.dumps(result.structured_content, ensure_ascii=False)) + utf16_length(
        text_of(result)
    )


async def whole(client: Client, uri: str) -> str:
    text, more = "", True
    while more:
        (contents,) = (await client.read_resource(f"{uri}?offset={len(text)}")).contents
        shown = getattr(contents, "text", "")
        assert len(shown) < 40_000
        page = json.loads(shown)
        text, more = text + page["text"], page["next"]
    return text


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("exec", {"command": "yes | head -c 900000"}),
        ("exec", {"command": "seq 1 99999; seq 1 99999 >&2"}),
        ("exec", {"command": "head -c 99999 /dev/zero"}),
        ("exec", {"command": "head -c 99999 /dev/urandom"}),
        ("exec", {"command": "yes 😀 | head -c 99999"}),
        ("python", {"code": "print('\\x1b[0m' * 99_999)"}),
        ("python", {"code": "raise ValueError('x' * 99_999)"}),
        ("python", {"code": "FINAL('x' * 1_000_000)"}),
        ("python", {"code": "FINAL({str(n): n for n in range(50_000)})"}),
        ("python", {"code": "FINAL([['a'] * 9] * 9_000)"}),
        ("python", {"code": "FINAL({'k' * 99_999: 1})"}),
        ("readFile", {"path": "long", "length": 262_144}),
        ("readFile", {"path": "raw", "length": 262_144}),
        ("vmDiff", {"a": "$COPY"}),
    ],
)
async def test_an_answer_is_as_long_as_its_client_shows_it(
    client: Client, tool: str, arguments: dict[str, Any]
):
    if tool == "readFile":
        await call(client, "exec", command="seq 1 99999 > long; head -c 300000 /dev/zero > raw")
    if tool == "vmDiff":
        (copy,) = (await call(client, "vmBranch"))["vm_ids"]
        await call(client, "python", code="for n in range(1000): globals()[f'v{n}'] = 'x' * 300")
        arguments = {"a": copy}
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text_of(result)
    assert 1_000 < size(result) < 40_000
    if cut := re.search("answer://[0-9a-f]+", text_of(result)):
        assert cut[0] in str(result.structured_content)
        assert len(await whole(client, cut[0])) > 40_000


async def test_outputs_of_a_run_are_cut_together_and_are_whole_as_resources(
    client: Client, run: CallToolResult
):
    assert size(run) < 40_000
    assert run.structured_content
    outputs, run_id = run.structured_content["outputs"], run.structured_content["run_id"]
    assert outputs["c"] == "short"
    assert [name for name in "abd" if f"/outputs/{name}," in text_of(run)] == ["a", "b", "d"]
    assert await whole(client, f"rlm://runs/{run_id}/outputs/a") == "\n" * 90_000


async def test_the_steps_of_a_run_are_told_on_demand_and_once(client: Client, run: CallToolResult):
    assert run.structured_content
    run_id = run.structured_content["run_id"]
    assert "cursor 0" in text_of(run)
    assert len(dump(run.structured_content["trajectory"])) < 2_100
    told, cursor = list[str](), 0
    while cursor is not None:
        result = await client.call_tool("rlmResult", {"runId": run_id, "cursor": cursor})
        assert size(result) < 40_000
        assert result.structured_content
        told += [step["output"][:7].strip() for step in result.structured_content["trajectory"]]
        cursor = result.structured_content.get("next_cursor")
    assert told == [*(f"step {number}" for number in range(1, 13)), ""]


async def test_latest_runs_and_outputs_are_listed_and_their_parts_completed(
    client: Client, run: CallToolResult
):
    assert run.structured_content
    run_id = run.structured_content["run_id"]
    listed = [resource.uri for resource in (await client.list_resources()).resources]
    assert listed == [
        f"rlm://runs/{run_id}",
        *(f"rlm://runs/{run_id}/outputs/{name}" for name in "abcd"),
    ]

    async def complete(name: str, typed: str) -> list[str]:
        result = await client.complete(
            ResourceTemplateReference(uri="rlm://runs/{runId}/steps/{step}{?offset}"),
            CompletionArgument(name=name, value=typed).model_dump(),
            context_arguments={"runId": run_id},
        )
        return list(result.completion.values)

    assert await complete("step", "1") == ["13", "12", "11", "10", "1"]
    assert await complete("name", "") == ["a", "b", "c", "d"]


async def test_a_client_that_shows_more_or_less_is_answered_accordingly(
    environment: dict[str, str], tmp_path: Path
):
    for name, known in KNOWN.items():
        info = Implementation(name=name, version="1")
        async with in_memory(environment, client_info=info) as client:
            result = await client.call_tool("exec", {"command": "yes é | head -c 900000"})
            text, fields = text_of(result), dump(result.structured_content)
            assert 0.5 * known.chars < known.measure(text) + known.measure(fields) < known.chars
            assert len(text.splitlines()) <= (known.lines or len(text))
    async with in_memory(environment | {"VERS_RLM_ANSWER_CHARS": "12000"}) as client:
        assert size(await client.call_tool("exec", {"command": "seq 1 99999"})) < 12_000


def test_what_is_kept_of_answers_is_bounded_and_its_principals_alone():
    kept = KeptAnswers()
    address = kept.keep("ann", "long").removeprefix("answer://")
    assert kept.find("ann", address) == "long"
    for stranger in ("bob", None):
        with pytest.raises(UnknownHandle):
            kept.find(stranger, address)
    for _ in range(MAX_ANSWERS):
        kept.keep("ann", "another")
    with pytest.raises(UnknownHandle, match="call the tool once more"):
        kept.find("ann", address)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=200),
    lambda children: st.lists(children) | st.dictionaries(st.text(max_size=20), children),
    max_leaves=30,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.integers(600, 3_000))
def test_fields_of_every_shape_are_cut_to_every_size(fields: dict[str, Any], room: int):
    cut = fit_fields(as_json(fields), room, len)
    assert cut.keys() == as_json(fields).keys()
    assert len(dump(cut)) <= room


@given(st.text(alphabet="a\n😀é\ud83d", max_size=4_000), st.integers(100, 2_000))
def test_texts_of_every_kind_are_cut_to_every_size(text: str, room: int):
    plain = as_json(text)
    plain.encode()
    assert utf16_length(fit_text(plain, room, utf16_length)) <= room


def test_what_json_cannot_hold_is_not_sent():
    deep: Any = "\ud83d"
    for _ in range(200):
        deep = [deep]
    result = Answer({"deep": deep, "\udc00": 1}, "half \ud83d").as_result(KnownClient())
    result.model_dump_json()
    assert "half" in text_of(result)
