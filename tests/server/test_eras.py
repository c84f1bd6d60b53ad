"""Both eras of the protocol from one server: the handshake up to 2025-11-25, and 2026-07-28."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import httpx2
import pytest
from clients import COMMAND, call, environment_in, error, script, vm_ids
from mcp import Client, StdioServerParameters
from mcp_types.version import (
    HANDSHAKE_PROTOCOL_VERSIONS,
    LATEST_HANDSHAKE_VERSION,
    MODERN_PROTOCOL_VERSIONS,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from conftest import ServeHttp

HEADERS = {"Accept": "application/json, text/event-stream"}


class Connect(Protocol):
    """Opens a connection to the server under test, in an era of the protocol."""

    def __call__(self, era: str) -> AbstractAsyncContextManager[Client]: ...


@pytest.fixture(params=["stdio", "http"])
async def connect(
    request: pytest.FixtureRequest, tmp_path: Path, serve_http_process: ServeHttp
) -> AsyncGenerator[Connect]:
    """To a server whose runs compute 6 * 7."""
    model = script(tmp_path / "replies", "n = 6 * 7\nprint(n)", "FINAL(answer=n)")
    env = environment_in(tmp_path) | {"VERS_RLM_MODEL": model}
    if request.param == "stdio":
        yield lambda era: Client(StdioServerParameters(command=COMMAND, env=env), mode=era)
        return
    async with serve_http_process(env=env) as server:
        yield lambda era: Client(server.url, mode=era)


async def test_a_client_of_either_era_is_shown_the_same_and_can_run_and_use_machines(
    connect: Connect,
):
    shown: list[list[Any]] = []
    for era, revision in (("legacy", "2025-11-25"), ("auto", "2026-07-28")):
        async with connect(era) as client:
            assert client.protocol_version == revision
            tools = (await client.list_tools()).tools
            shown.append([client.server_info, client.instructions, tools])
            await run_with_progress(client)
            await use_a_machine(client)
    assert shown[0] == shown[1]


async def run_with_progress(client: Client) -> None:
    told: list[float] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    signature = {"signature": "-> answer: int"}
    run = await client.call_tool("vers_rlm", signature, progress_callback=listen)
    assert run.structured_content
    assert run.structured_content["outputs"] == {"answer": 42}
    assert len(told) > 2
    assert told == sorted(set(told))


async def use_a_machine(client: Client) -> None:
    vm_id = (await call(client, "vmCreate"))["vm_id"]
    await call(client, "python", code="x = 20", vmId=vm_id)
    assert (await call(client, "python", code="x + 1", vmId=vm_id))["output"] == "21\n"
    assert vm_id in await error(client, "exec", command="true", vmId="invented")
    await call(client, "vmDelete", vmId=vm_id)
    assert await vm_ids(client) == []


async def test_each_revision_is_answered_with_itself_and_one_to_come_with_those_that_are_spoken(
    serve_http_process: ServeHttp,
):
    async with serve_http_process() as server, httpx2.AsyncClient(headers=HEADERS) as http:
        for asked in (*HANDSHAKE_PROTOCOL_VERSIONS, "2099-01-01"):
            spoken = asked if asked in HANDSHAKE_PROTOCOL_VERSIONS else LATEST_HANDSHAKE_VERSION
            reply = await http.post(server.url, json=_initialize(asked))
            assert f'"protocolVersion":"{spoken}"' in reply.text
        headers = {"MCP-Protocol-Version": "2099-01-01", "Mcp-Method": "tools/list"}
        reply = await http.post(server.url, json=_list_tools("2099-01-01"), headers=headers)
        assert reply.status_code == 400
        assert reply.json()["error"]["data"]["supported"] == [*MODERN_PROTOCOL_VERSIONS]


def _initialize(version: str) -> dict[str, Any]:
    client = {"name": "test", "version": "1"}
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": client}
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}


def _list_tools(version: str) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
