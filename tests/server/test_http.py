"""Streamable HTTP and SSE on loopback: many clients, none of them trusted more than its token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import httpx2
import pytest
from clients import call, connected, error, vm_ids
from mcp import Client, MCPError

from vers_rlm_mcp.errors import SettingsError
from vers_rlm_mcp.server import serve_http
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ServeHttp

TOKEN = "a-token-of-thirty-two-characters"


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_a_machine_is_named_by_its_id_from_whichever_connection(
    serve_http_process: ServeHttp, transport: str
):
    async with serve_http_process("--transport", transport) as server:
        async with connected(server.url) as client:
            text = await error(client, "exec", command="true")
            assert "vmCreate" in text
            assert await error(client, "exec", command="true", vmId="") == text
            vm_id = (await call(client, "vmCreate"))["vm_id"]
            for nothing in ({}, {"vmId": ""}):
                assert vm_id in await error(client, "exec", command="true", **nothing)
            assert "Over HTTP" in await error(client, "currentVmId")
            assert "Over HTTP" in await error(client, "vmSwitch", vmId=vm_id)
            await call(client, "python", code="x = 6", vmId=vm_id)
        async with connected(server.url, "2026-07-28") as client:
            assert (await call(client, "python", code="x * 7", vmId=vm_id))["output"] == "42\n"
            (copy,) = (await call(client, "vmBranch", vmId=vm_id))["vm_ids"]
            assert (await call(client, "python", code="x * 7", vmId=copy))["output"] == "42\n"
            moved = f"vmSwitch({copy!r}); currentVmId()"
            assert copy in (await call(client, "python", code=moved, vmId=vm_id))["output"]
            assert set(await vm_ids(client)) == {vm_id, copy}


@pytest.mark.parametrize(("transport", "mode"), [("http", "2026-07-28"), ("sse", "legacy")])
async def test_a_cancelled_call_stops_in_the_machine_and_a_signal_ends_the_server(
    serve_http_process: ServeHttp, transport: str, mode: str
):
    async with (
        serve_http_process("--transport", transport) as server,
        connected(server.url, mode) as client,
        anyio.create_task_group() as tasks,
    ):
        vm_id = (await call(client, "vmCreate"))["vm_id"]
        async with connected(server.url) as another:
            await cancel_a_command(another, vm_id)
        await cancel_a_command(client, vm_id)
        sleep = {"command": "sleep 612", "vmId": vm_id}

        async def call_until_the_end() -> None:
            with pytest.raises((MCPError, ExceptionGroup)):
                await client.call_tool("exec", sleep)

        tasks.start_soon(call_until_the_end)
        await output(client, "true", vm_id)
        server.process.terminate()
        with anyio.fail_after(10):
            assert await server.process.wait() == 0
        tasks.cancel_scope.cancel()


async def cancel_a_command(client: Client, vm_id: str) -> None:
    command = {"command": "touch started; exec sleep 612", "vmId": vm_id}
    async with anyio.create_task_group() as calls:
        calls.start_soon(lambda: client.call_tool("exec", command))
        with anyio.fail_after(10):
            while not await output(client, "ls started; true", vm_id):
                pass
        calls.cancel_scope.cancel()
    with anyio.fail_after(1):
        while await output(client, "pgrep -f '^sleep 612'", vm_id):
            pass
    await output(client, "rm started", vm_id)


async def output(client: Client, command: str, vm_id: str) -> str:
    return (await call(client, "exec", command=command, vmId=vm_id))["stdout"]


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_with_a_token_nothing_but_health_is_shown_without_it(
    serve_http_process: ServeHttp, transport: str
):
    serve = serve_http_process("--transport", transport, env={"VERS_RLM_TOKEN": TOKEN})
    async with serve as server, httpx2.AsyncClient() as http:
        assert (await http.get(f"{server.base}/healthz")).json() == {"status": "ok"}
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            reply = await http.get(server.url, headers=wrong)
            assert reply.status_code == 401
            assert reply.headers["WWW-Authenticate"] == "Bearer"
        async with connected(server.url, token=TOKEN) as client:
            assert await vm_ids(client) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.test"])
async def test_an_address_that_others_reach_needs_a_token(tmp_path: Path, host: str):
    settings = Settings.model_validate({"state_dir": tmp_path})
    with pytest.raises(SettingsError, match="VERS_RLM_TOKEN"):
        await serve_http(settings, host=host)


async def test_a_port_that_is_taken_is_said_to_be(tmp_path: Path):
    settings = Settings.model_validate({"state_dir": tmp_path})
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}"):
            await serve_http(settings, port=port)
