"""A whole run through a real server; a script plays the model."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from clients import call, environment_in, error, in_memory, script, text_of, vm_ids
from mcp import Client, StdioServerParameters
from mcp_types import CreateMessageRequestParams, CreateMessageResult, TextContent

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from mcp.client import ClientRequestContext


class Author:
    """The model of a run, played through the client's sampling: code to run, step by step."""

    def __init__(self) -> None:
        self.codes: tuple[str, ...] = ()

    def writes(self, *codes: str) -> None:
        """What to write from now on; after the last, the author is silent for good."""
        self.codes = codes

    async def __call__(
        self, context: ClientRequestContext, params: CreateMessageRequestParams
    ) -> CreateMessageResult:
        step = sum(message.role == "assistant" for message in params.messages)
        if step >= len(self.codes):
            await anyio.sleep_forever()
        text = f"Let me see.\n```python\n{self.codes[step]}\n```"
        return CreateMessageResult(role="assistant", content=TextContent(text=text), model="mine")


@pytest.fixture(scope="module")
def author() -> Author:
    return Author()


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
async def client(
    tmp_path_factory: pytest.TempPathFactory, author: Author, allowed: Path
) -> AsyncGenerator[Client]:
    """One for the module."""
    env = environment_in(tmp_path_factory.mktemp("server")) | {"VERS_RLM_ALLOW_DIR": str(allowed)}
    async with in_memory(env, mode="legacy", sampling_callback=author) as client:
        yield client


async def test_a_run_answers_with_outputs_trajectory_and_costs_in_fields_and_in_text(
    tmp_path: Path,
):
    told: list[str] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    env = environment_in(tmp_path) | {
        "VERS_RLM_MODEL": script(
            tmp_path / "replies", "n = int(exec('echo $((6 * 7))'))\nprint(n)", "FINAL(answer=n)"
        )
    }
    async with in_memory(env) as client:
        result = await client.call_tool(
            "vers_rlm",
            {"signature": "question -> answer: int", "inputs": {"question": "6 * 7?"}},
            progress_callback=listen,
        )
        text, fields = text_of(result), result.structured_content
        assert await vm_ids(client) == []
    assert not result.is_error
    assert fields
    assert fields["outputs"] == {"answer": 42}
    assert (fields["status"], fields["steps"]) == ("finished", 2)
    assert fields["machine"]["backend"] == "bubblewrap"
    assert not fields["machine"]["kept"]
    assert fields["trajectory"][0]["output"].strip() == "42"
    assert fields["usage"]["sub_calls"] == 0
    assert text.startswith("✅ Vers RLM completed in 2 steps.\n")
    for part in (
        fields["machine"]["id"],
        "deleted",
        "## Outputs\n**answer**: 42",
        "=== Step 2 ===",
    ):
        assert part in text
    steps = [message.splitlines()[0] for message in told if "Step" in message]
    assert steps == ["⟳ Step 1/20", "✓ Step 2/20"]


async def test_a_machine_can_be_kept_and_worked_in_again(client: Client, author: Author):
    author.writes("exec('echo hi > note'); FINAL('done')")
    run = await call(client, "vers_rlm", signature="-> answer", keepVM=True)
    vm_id = run["machine"]["id"]
    assert run["machine"]["kept"]
    assert (await call(client, "exec", command="cat note", vmId=vm_id))["stdout"] == "hi\n"
    again = await call(client, "vers_rlm", signature="-> answer", vmId=vm_id)
    assert again["machine"] == run["machine"]
    assert await vm_ids(client) == [vm_id]
    await call(client, "vmDelete", vmId=vm_id)


async def test_files_are_taken_from_allowed_directories_only(
    client: Client, author: Author, allowed: Path, tmp_path: Path
):
    author.writes("FINAL(log + open('/workspace/files/data.txt').read())")
    (tmp_path / "secret").write_text("secret")
    mine = allowed / "mine"
    mine.write_text("from the host;")
    ask = {"signature": "log -> answer"}
    run = await call(client, "vers_rlm", files={"data.txt": str(mine), "log": str(mine)}, **ask)
    assert run["outputs"] == {"answer": 2 * "from the host;"}
    for path in (str(tmp_path / "secret"), "/etc/passwd"):
        assert "outside" in await error(client, "vers_rlm", files=[path], **ask)


async def test_a_cancelled_run_leaves_no_machine_behind_within_a_second(
    client: Client, author: Author
):
    author.writes("vmBranch(2)")
    stepped = anyio.Event()

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        if "Step 1" in (message or ""):
            stepped.set()

    async with anyio.create_task_group() as tasks:
        run = partial(client.call_tool, "vers_rlm", {"signature": "-> answer"})
        tasks.start_soon(partial(run, progress_callback=listen))
        with anyio.fail_after(20):
            await stepped.wait()
        assert len(await vm_ids(client)) == 3
        tasks.cancel_scope.cancel()
    with anyio.fail_after(1):
        while await vm_ids(client):
            pass


async def test_a_budget_ends_a_run_with_what_there_is(client: Client, author: Author):
    author.writes("print(1)")
    arguments = {"signature": "-> answer", "budget": {"seconds": 4}}
    result = await client.call_tool("vers_rlm", arguments)
    assert result.structured_content
    assert result.structured_content["status"] == "partial"
    assert text_of(result).startswith("⚠️ Vers RLM ended after")
    assert "4 s" in result.structured_content["reason"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"signature": "no arrow"}, "->"),
        ({"signature": "a -> b", "inputs": {}}, "'a'"),
        ({"signature": "a -> b", "inputs": {"a": 1, "c": 2}}, "'c'"),
        ({"signature": "a -> b: nonsense", "inputs": {"a": 1}}, "nonsense"),
        ({"signature": "-> b", "vmId": "invented"}, "invented"),
        ({"signature": "-> b", "maxIterations": 0}, "maxIterations"),
        ({"signature": "-> b", "model": "nobody:model"}, "nobody"),
        ({"signature": "-> b", "budget": {"dollars": 1}}, "usd, tokens, seconds"),
    ],
)
async def test_a_wrong_call_says_how_to_say_it_right(
    client: Client, arguments: dict[str, Any], part: str
):
    assert part.strip("'") in await error(client, "vers_rlm", **arguments)
    assert await vm_ids(client) == []


async def test_with_no_model_the_error_names_the_variables(stdio: StdioServerParameters):
    async with Client(stdio) as client:
        text = await error(client, "vers_rlm", signature="-> answer")
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL", "VERS_RLM_MODEL"):
        assert name in text


async def test_the_clients_own_model_can_do_a_run_whose_price_is_then_unknown(
    client: Client, author: Author
):
    author.writes("FINAL('from the client')")
    run = await call(client, "vers_rlm", signature="-> answer", model="sampling")
    assert run["outputs"] == {"answer": "from the client"}
    assert "usd" not in run["usage"]


async def test_long_outputs_are_cut_and_said_to_be(client: Client, author: Author):
    author.writes("FINAL('x' * 100_000)")
    run = await call(client, "vers_rlm", signature="-> answer")
    assert len(json.dumps(run)) < 70_000
    assert "100,000" in run["warnings"][0]


async def test_a_recorded_run_is_resumed_and_its_tree_shown(tmp_path: Path):
    env = environment_in(tmp_path) | {
        "VERS_RLM_CHECKPOINTS": "step",
        "VERS_RLM_MODEL": script(
            tmp_path / "replies", "n = 20", "n += 1; print(n)", "FINAL(answer=n * 2)"
        ),
    }
    async with in_memory(env) as client:
        first = await call(client, "vers_rlm", signature="-> answer: int", maxIterations=3)
    async with in_memory(env) as client:
        run_id = first["run_id"]
        assert "Name the step to go on from, one of: 0, 1, 2, 3" in await error(
            client, "rlmResume", runId=run_id
        )
        again = await call(client, "rlmResume", runId=run_id, step=2)
        assert (again["run_id"], again["outputs"], again["steps"]) == (run_id, {"answer": 42}, 3)
        tree = await call(client, "vmTree", runId=run_id)
        made, restored = [node for node in tree["nodes"] if node["kind"] == "machine"]
        assert made["origin"] == "created"
        assert restored["origin"] == "restored"
        assert restored["parent"] in {node["id"] for node in tree["nodes"]}
        assert f"commit {restored['parent']} (checkpoint at step 2)" in tree["tree"]
        assert await vm_ids(client) == []
