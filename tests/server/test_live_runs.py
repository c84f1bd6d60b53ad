"""Runs that continue after their call was answered, timed out or was cancelled."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
from clients import COMMAND, call, connected, environment_in, error, in_memory, script, vm_ids
from mcp import Client, MCPError, StdioServerParameters

from vers_rlm_mcp.server import Application, create_server
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import ServeHttp

RUN = {"signature": "-> answer: int"}

BARRIER = """
import os, time
until = time.time() + 60
while not os.path.exists("/workspace/go") and time.time() < until:
    time.sleep(0.05)
"""
"""Waits in the machine for a file that `release` writes."""


@pytest.fixture
def serving(tmp_path: Path) -> Callable[..., StdioServerParameters]:
    """How to start a stdio server whose model writes these cells."""

    def parameters(*cells: str, **variables: str) -> StdioServerParameters:
        env = environment_in(tmp_path) | {
            "VERS_RLM_MODEL": script(tmp_path / "replies", *cells),
            "VERS_RLM_WAIT_SECONDS": "0.2",
            **variables,
        }
        return StdioServerParameters(command=COMMAND, env=env)

    return parameters


async def release(client: Client) -> None:
    """Release runs that wait at the barrier."""
    done = False
    with anyio.fail_after(30):
        while not done:  # a machine in the making takes no files yet
            writing = [
                {"vmId": vm_id, "path": "/workspace/go", "content": ""}
                for vm_id in await vm_ids(client)
            ]
            results = [await client.call_tool("writeFile", file) for file in writing]
            done = bool(results) and not any(result.is_error for result in results)


async def ended(client: Client, run_id: str) -> dict[str, Any]:
    """The answer about a run once it has ended."""
    with anyio.fail_after(30):
        while (answer := await call(client, "rlmResult", runId=run_id))["status"] == "running":
            pass
    return answer


async def test_a_run_that_takes_longer_than_its_call_may_is_asked_for_again(serving: Any):
    server = serving("print('first')", BARRIER + "FINAL(42)")
    async with in_memory(server.env) as client:
        answer = await call(client, "vers_rlm", **RUN)
        assert answer["status"] == "running"
        assert f"runId {answer['run_id']}" in answer["next"]
        assert "outputs" not in answer
        await release(client)
        result = await ended(client, answer["run_id"])
        assert (result["status"], result["outputs"]) == ("finished", {"answer": 42})
        assert await call(client, "rlmResult", runId=answer["run_id"]) == result
        assert await vm_ids(client) == []
    async with Client(server) as client:  # another server
        assert await call(client, "rlmResult", runId=answer["run_id"]) == result


async def test_the_result_of_a_run_of_this_process_needs_no_record(tmp_path: Path):
    settings = Settings.model_validate(
        {"state_dir": tmp_path / "state", "model": script(tmp_path / "replies", "FINAL(42)")}
    )
    async with (
        Application(settings, one_client=True) as app,
        Client(create_server(app)) as client,
    ):
        answer = await call(client, "vers_rlm", **RUN)
        (events,) = (tmp_path / "state").rglob("events.jsonl")
        events.write_text("")
        assert await call(client, "rlmResult", runId=answer["run_id"]) == answer


async def test_a_client_that_stops_waiting_does_not_stop_its_run(serving: Any):
    server = serving(BARRIER + "FINAL(42)", VERS_RLM_WAIT_SECONDS="60")
    async with Client(server, mode="legacy") as client:
        with pytest.raises(MCPError, match="timed out"):
            await client.call_tool("vers_rlm", RUN, read_timeout_seconds=1)
        (run,) = (await call(client, "rlmRuns"))["runs"]
        assert run["status"] == "running"
        await release(client)
        assert (await ended(client, run["run_id"]))["outputs"] == {"answer": 42}


async def test_a_client_that_cancels_its_call_ends_the_run(serving: Any):
    server = serving(BARRIER + "FINAL(42)", VERS_RLM_WAIT_SECONDS="60")
    async with Client(server, mode="legacy") as client:
        with anyio.CancelScope() as waiting:

            async def listen(progress: float, total: float | None, message: str | None) -> None:
                if "starts" in (message or ""):
                    waiting.cancel()

            await client.call_tool("vers_rlm", RUN, progress_callback=listen)
        (run,) = (await call(client, "rlmRuns"))["runs"]
        answer = await ended(client, run["run_id"])
        assert answer["status"] == "cancelled"
        assert answer["next"].startswith("rlmResume")
        assert await vm_ids(client) == []


async def test_a_run_is_ended_by_its_id(serving: Any):
    async with in_memory(serving(BARRIER).env) as client:
        run_id = (await call(client, "vers_rlm", **RUN))["run_id"]
        answer = await call(client, "rlmCancel", runId=run_id)
        assert (answer["status"], answer["reason"]) == ("cancelled", "The run was cancelled.")
        assert await vm_ids(client) == []
        assert await call(client, "rlmCancel", runId=run_id) == answer
        assert "No run 'run-1'" in await error(client, "rlmCancel", runId="run-1")


async def test_a_client_that_waits_for_a_run_is_told_what_is_new_and_never_asks_the_same(
    serving: Any,
):
    env = serving("print(1)", "print(2)", BARRIER, VERS_RLM_WAIT_SECONDS="30").env
    heard: list[tuple[float, float | None]] = []
    told: list[str] = []
    ended: dict[str, Any] = {}

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total))

    async with in_memory(env) as client:
        calls = [{"runId": "", "cursor": 0, "waitSeconds": 0.2}]
        async with anyio.create_task_group() as tasks:
            run = partial(client.call_tool, progress_callback=listen)
            tasks.start_soon(run, "vers_rlm", {**RUN, "maxIterations": 7})
            with anyio.fail_after(30):
                while not heard or heard[-1][0] < 2:  # noqa: ASYNC110 - steps done
                    await anyio.sleep(0.02)
            (listed,) = (await call(client, "rlmRuns"))["runs"]
            calls[0]["runId"] = listed["run_id"]
            for _ in range(3):
                answer = await call(client, "rlmResult", **calls[-1])
                told += [step["output"].strip() for step in answer["trajectory"]]
                calls.append({**calls[-1], "cursor": answer["next_cursor"]})
                assert f"cursor {answer['next_cursor']}" in answer["next"]
            ended = await call(client, "rlmCancel", runId=listed["run_id"])
            tasks.cancel_scope.cancel()
        assert told == ["1", "2"]
        assert len({str(each) for each in calls}) == len(calls)
        assert [progress for progress, _ in heard] == sorted({progress for progress, _ in heard})
        assert {total for _, total in heard if total} == {7}
        assert (ended["status"], ended["steps"]) == ("cancelled", 2)
        (listed,) = (await call(client, "rlmRuns"))["runs"]
        assert (listed["status"], listed["steps"]) == ("cancelled", 2)


async def test_the_steps_of_a_run_are_read_page_by_page(serving: Any):
    server = serving(
        *(f"print({n})" for n in range(1, 25)), "FINAL(25)", VERS_RLM_WAIT_SECONDS="30"
    )
    async with in_memory(server.env) as client:
        answer = await call(client, "vers_rlm", **RUN, maxIterations=30)
        assert answer["trajectory"][0]["output"] == "6\n"
        assert "next_cursor" not in answer
        outputs: list[str] = []
        cursor: int | None = 0
        while cursor is not None:
            page = await call(client, "rlmResult", runId=answer["run_id"], cursor=cursor)
            outputs += [step["output"].strip() for step in page["trajectory"]]
            cursor = page.get("next_cursor")
        assert outputs == [*map(str, range(1, 25)), ""]


@pytest.mark.slow
async def test_a_run_of_a_dead_server_can_be_resumed(serve_http_process: ServeHttp, tmp_path: Path):
    env = {
        "VERS_RLM_MODEL": script(tmp_path / "replies", "print('first')", BARRIER + "FINAL(42)"),
        "VERS_RLM_CHECKPOINTS": "step",
        "VERS_RLM_WAIT_SECONDS": "0.2",
    }
    async with serve_http_process(env=env) as server, connected(server.url) as client:
        run_id = (await call(client, "vers_rlm", **RUN))["run_id"]
        with anyio.fail_after(20):
            while (await call(client, "rlmResult", runId=run_id))["steps"] < 1:
                pass
        server.process.kill()
    async with serve_http_process(env=env) as server, connected(server.url) as client:
        (run,) = (await call(client, "rlmRuns"))["runs"]
        assert run["status"] == "broken off"
        answer = await call(client, "rlmResult", runId=run_id)
        assert answer["next"] == run["next"]
        assert answer["next"].startswith("rlmResume resumes it from the end of step")
        with anyio.fail_after(20):
            while await vm_ids(client):  # the dead server's, which is not to be let go
                pass
        assert (await call(client, "rlmResume", runId=run_id))["status"] == "running"
        await release(client)
        assert (await ended(client, run_id))["outputs"] == {"answer": 42}


async def test_a_run_belongs_to_its_principal(serve_http_process: ServeHttp, tmp_path: Path):
    ann, bob = "a" * 32, "b" * 32
    env = {
        "VERS_RLM_TOKEN": f"{ann},{bob}",
        "VERS_RLM_MODEL": script(tmp_path / "replies", BARRIER),
        "VERS_RLM_WAIT_SECONDS": "0.1",
    }
    async with serve_http_process(env=env) as server:
        async with connected(server.url, token=ann) as client:
            run_id = (await call(client, "vers_rlm", **RUN))["run_id"]
        async with connected(server.url, token=bob) as client:
            for tool in ("rlmResult", "rlmCancel", "rlmResume"):
                unknown = await error(client, tool, runId="run-0")
                assert await error(client, tool, runId=run_id) == unknown.replace("run-0", run_id)
            assert (await call(client, "rlmRuns"))["runs"] == []
        async with connected(server.url, token=ann) as client:
            assert (await call(client, "rlmCancel", runId=run_id))["status"] == "cancelled"


async def test_runs_under_way_are_limited(serving: Any):
    async with in_memory(serving(BARRIER, VERS_RLM_MAX_CALLS="2").env) as client:
        for _ in range(2):
            await call(client, "vers_rlm", **RUN)
        assert "2 runs of yours are under way" in await error(client, "vers_rlm", **RUN)
        assert len((await call(client, "rlmRuns"))["runs"]) == 2


@pytest.mark.slow
async def test_a_client_that_knows_tasks_gets_one_which_outlives_the_server(
    serve_http_process: ServeHttp, tmp_path: Path
):
    env = {"VERS_RLM_MODEL": script(tmp_path / "replies", "print(1)", BARRIER + "FINAL(42)")}
    async with serve_http_process(env=env) as server, httpx2.AsyncClient(timeout=30) as http:
        tasks = Tasks(http, server.url)
        task = await tasks.request("tools/call", name="vers_rlm", arguments=RUN)
        assert (task["resultType"], task["status"], task["ttlMs"]) == ("task", "working", None)
        with anyio.fail_after(20):
            while "Step 1/20" not in task["statusMessage"]:
                task = await tasks.request("tasks/get", taskId=task["taskId"])
        async with connected(server.url) as client:
            await release(client)
        with anyio.fail_after(20):
            while task["status"] == "working":
                task = await tasks.request("tasks/get", taskId=task["taskId"])
        assert task["result"]["structuredContent"]["outputs"] == {"answer": 42}
    async with serve_http_process(env=env) as server, httpx2.AsyncClient(timeout=30) as http:
        again = await Tasks(http, server.url).request("tasks/get", taskId=task["taskId"])
    assert again == task


@pytest.mark.slow
async def test_a_task_is_cancelled(serve_http_process: ServeHttp, tmp_path: Path):
    env = {"VERS_RLM_MODEL": script(tmp_path / "replies", BARRIER)}
    async with serve_http_process(env=env) as server, httpx2.AsyncClient(timeout=30) as http:
        tasks = Tasks(http, server.url)
        task = await tasks.request("tools/call", name="vers_rlm", arguments=RUN)
        told = await tasks.request("tasks/cancel", taskId=task["taskId"])
        assert told.keys() == {"resultType", "_meta"}
        with anyio.fail_after(20):
            while task["status"] == "working":
                task = await tasks.request("tasks/get", taskId=task["taskId"])
        assert task["status"] == "cancelled"


@pytest.mark.slow
async def test_a_client_that_hangs_up_ends_the_run(serve_http_process: ServeHttp, tmp_path: Path):
    env = {"VERS_RLM_MODEL": script(tmp_path / "replies", BARRIER)}
    async with serve_http_process(env=env) as server:
        async with httpx2.AsyncClient() as http, anyio.create_task_group() as tasks:
            calls = Tasks(http, server.url, extension="none")
            tasks.start_soon(partial(calls.request, "tools/call", name="vers_rlm", arguments=RUN))
            async with connected(server.url) as client:
                with anyio.fail_after(20):
                    while not await vm_ids(client):
                        pass
            tasks.cancel_scope.cancel()
        async with connected(server.url) as client:
            (run,) = (await call(client, "rlmRuns"))["runs"]
            assert (await ended(client, run["run_id"]))["status"] == "cancelled"
            assert await vm_ids(client) == []


class Tasks:
    """A client of the revision 2026-07-28 that declares the extension, or none, by hand."""

    def __init__(
        self, http: httpx2.AsyncClient, url: str, extension: str = "io.modelcontextprotocol/tasks"
    ) -> None:
        self._http = http
        self._url = url
        self._extensions: dict[str, Any] = {extension: {}}

    async def request(self, method: str, **params: Any) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {"extensions": self._extensions},
        }
        headers = {
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": "2026-07-28",
            "Mcp-Method": method,
            "Mcp-Name": params.get("name") or params["taskId"],
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params | {"_meta": meta}}
        response = await self._http.post(self._url, json=body, headers=headers)
        messages = [line for line in response.text.splitlines() if line.startswith("data: {")]
        return json.loads(messages[-1].removeprefix("data: ") if messages else response.text)[
            "result"
        ]
