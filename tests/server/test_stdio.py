"""The life of a stdio server: how it starts, and every way in which it ends."""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from clients import call, eventually, started
from mcp import Client

from vers_rlm_mcp.server import Application, application
from vers_rlm_mcp.settings import Settings
from vers_rlm_mcp.store import Ledger

if TYPE_CHECKING:
    from mcp import StdioServerParameters


def left_behind(stdio: StdioServerParameters) -> list[str | None]:
    """The machines that the ledger still has."""
    assert stdio.env
    ledger = Ledger(Path(stdio.env["VERS_RLM_STATE_DIR"]))
    try:
        return [record.machine_id for record in ledger.live("bubblewrap")]
    finally:
        ledger.close()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["end of input", "SIGTERM", "SIGTERM twice", "SIGINT"])
async def test_every_way_to_end_stops_the_call_and_deletes_the_machines(
    stdio: StdioServerParameters, way: str
):
    async with started(stdio) as server:
        await server.initialize()
        await server.exec(2, "echo ready")
        assert (await server.receive())["id"] == 2
        await server.exec(3, "sleep 600")
        assert len(left_behind(stdio)) == 1
        if way == "end of input":
            assert server.process.stdin
            await server.process.stdin.aclose()
        else:
            server.process.send_signal(signal.Signals[way.split()[0]])
        if way == "SIGTERM twice":
            server.process.terminate()
        assert await server.end() == 0
    assert left_behind(stdio) == []


@pytest.mark.slow
async def test_the_next_server_sweeps_what_a_killed_one_left_and_finds_what_was_kept(
    stdio: StdioServerParameters,
):
    async with started(stdio) as server:
        await server.initialize()
        await server.exec(2, "true")
        await server.receive()
        await server.request(3, "tools/call", name="vmCreate", arguments={"keepVM": True})
        kept = (await server.receive())["result"]["structuredContent"]["vm_id"]
        await server.exec(4, "echo kept > note")
        assert (await server.receive())["id"] == 4
        assert len(left_behind(stdio)) == 2
        server.process.kill()
        await server.process.wait()
    async with Client(stdio) as client:
        await eventually(lambda: left_behind(stdio) == [kept], within=10)
        assert (await call(client, "exec", command="cat note", vmId=kept))["stdout"] == "kept\n"
        await call(client, "vmDelete", vmId=kept)
    assert left_behind(stdio) == []


@pytest.mark.slow
async def test_a_server_sweeps_what_others_leave_while_it_runs(
    stdio: StdioServerParameters, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(application, "SWEEP_SECONDS", 0.1)
    assert stdio.env
    settings = Settings.model_validate({"state_dir": stdio.env["VERS_RLM_STATE_DIR"]})
    async with Application(settings, one_client=True), started(stdio) as server:
        await server.initialize()
        await server.exec(2, "true")
        await server.receive()
        await anyio.sleep(5 * application.SWEEP_SECONDS)
        assert len(left_behind(stdio)) == 1
        server.process.kill()
        await eventually(lambda: left_behind(stdio) == [], within=10)


@pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
async def test_a_cancelled_call_is_stopped_in_the_machine_within_a_second(
    stdio: StdioServerParameters, era: str
):
    async with Client(stdio, mode=era) as client, AsyncExitStack() as stack:
        await call(client, "exec", command="true")
        tasks = await stack.enter_async_context(anyio.create_task_group())
        command = "touch started; exec sleep 611"
        tasks.start_soon(lambda: client.call_tool("exec", {"command": command}))
        with anyio.fail_after(10):
            while not (await call(client, "exec", command="ls started; true"))["stdout"]:
                pass
        tasks.cancel_scope.cancel()
        with anyio.fail_after(1):
            while (await call(client, "exec", command="pgrep -f '^sleep 611'"))["stdout"]:
                pass


async def test_input_from_a_file_is_served_to_its_end(stdio: StdioServerParameters, tmp_path: Path):
    client = {"name": "test", "version": "1"}
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    source = tmp_path / "requests"
    source.write_text(json.dumps(request) + "\n")
    with source.open("rb") as stdin:
        finished = await anyio.run_process(
            [stdio.command], stdin=stdin, stderr=subprocess.PIPE, env=stdio.env
        )
    assert json.loads(finished.stdout)["result"]["serverInfo"]["name"] == "vers-rlm"


@pytest.mark.slow
async def test_a_client_that_leaves_without_reading_is_survived(stdio: StdioServerParameters):
    async with started(stdio) as server:
        await server.initialize()
        await server.exec(2, "true")
        await server.receive()
        assert server.process.stdout
        assert server.process.stdin
        await server.process.stdout.aclose()
        await server.request(3, "tools/list")
        await server.process.stdin.aclose()
        assert await server.end() == 0
    assert left_behind(stdio) == []
