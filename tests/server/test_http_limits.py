"""What one client may ask for over HTTP, each limit met over a real socket."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import anyio
import httpx2
import pytest
from clients import call, connected, error, vm_ids

from vers_rlm_mcp.server.http_transport import MAX_CONNECTIONS
from vers_rlm_mcp.server.rate_limits import BURST_SECONDS
from vers_rlm_mcp.server.wire import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from clients import HttpServer
    from conftest import ServeHttp
    from mcp import Client

ANN = "the-token-of-ann-0123456789"
BOB = "the-token-of-bob-0123456789"

JSON = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


async def test_a_body_that_is_too_long_is_refused_whether_its_length_is_told_or_not(
    serve_http_process: ServeHttp,
):
    async with serve_http_process() as server, httpx2.AsyncClient(headers=JSON) as http:
        too_long = b" " * (MAX_MESSAGE_BYTES + 1)
        assert (await http.post(server.url, content=too_long)).status_code == 413
        assert (await http.post(server.url, content=streamed(too_long))).status_code == 413
        assert (await http.post(server.url, content=too_long[:-1])).status_code == 400
    async with serve_http_process("--transport", "sse") as server, httpx2.AsyncClient() as http:
        reply = await http.post(f"{server.base}/messages/", content=too_long, headers=JSON)
        assert reply.status_code == 413


async def streamed(data: bytes) -> AsyncGenerator[bytes]:
    for start in range(0, len(data), 1 << 20):
        yield data[start : start + (1 << 20)]


async def test_requests_that_come_too_fast_are_put_off_and_hinder_no_one_else(
    serve_http_process: ServeHttp,
):
    env = {"VERS_RLM_TOKEN": f"{ANN},{BOB}", "VERS_RLM_MAX_REQUESTS": "0.5"}
    async with serve_http_process(env=env) as server, httpx2.AsyncClient() as http:
        allowed = int(0.5 * BURST_SECONDS)
        statuses = [await status(http, server, ANN) for _ in range(allowed + 8)]
        assert statuses.count(429) >= 2
        assert statuses[:allowed] == [406] * allowed
        assert await status(http, server, BOB) == 406
        guesses = [await status(http, server, f"guess-{n}") for n in range(allowed + 8)]
        assert guesses[0] == 401
        assert guesses.count(429) >= 2
        with anyio.fail_after(10):
            while await status(http, server, ANN) == 429:
                pass


async def status(http: httpx2.AsyncClient, server: HttpServer, token: str) -> int:
    """The status of a request that costs nothing: 406 if let through, since it accepts nothing."""
    headers = {"Authorization": f"Bearer {token}", "Accept": "text/plain"}
    reply = await http.get(server.url, headers=headers)
    assert reply.status_code != 429 or reply.headers["Retry-After"] == "1"
    return reply.status_code


async def test_a_client_with_too_many_calls_at_work_is_told_to_wait_and_another_is_not(
    serve_http_process: ServeHttp,
):
    env = {"VERS_RLM_TOKEN": f"{ANN},{BOB}", "VERS_RLM_MAX_CALLS": "2"}
    async with (
        serve_http_process(env=env) as server,
        connected(server.url, "2026-07-28", ANN) as ann,
        connected(server.url, "legacy", BOB) as bob,
        anyio.create_task_group() as tasks,
    ):
        vm_id = (await call(ann, "vmCreate"))["vm_id"]
        for number in (1, 2):
            wait = {"command": f"touch {number}; until [ -e go ]; do sleep 0.1; done"}
            tasks.start_soon(hold, ann, {**wait, "vmId": vm_id})
        with anyio.fail_after(20):
            while (refusal := await ann.call_tool("vmList")).is_error is not True:
                pass
        assert "2 calls of yours are under way" in str(refusal.content)
        assert "under way" in await error(ann, "exec", command="touch go", vmId=vm_id)
        assert await vm_ids(bob) == []
        assert len((await ann.list_tools()).tools) > 10
        tasks.cancel_scope.cancel()


async def hold(client: Client, command: dict[str, str]) -> None:
    """Have a command at work, however often it is refused since another call came before."""
    while (await client.call_tool("exec", command)).is_error:
        pass


@pytest.mark.slow
async def test_more_connections_than_are_served_are_told_so(serve_http_process: ServeHttp):
    async with serve_http_process() as server, AsyncExitStack() as stack:
        address = httpx2.URL(server.url)
        for _ in range(MAX_CONNECTIONS):
            stream = await anyio.connect_tcp(address.host, address.port or 0)
            stack.push_async_callback(stream.aclose)
        async with httpx2.AsyncClient() as http:
            assert (await http.get(f"{server.base}/healthz")).status_code == 503
        await stack.aclose()
        with anyio.fail_after(10):
            while await healthz(server) != 200:
                pass


async def healthz(server: HttpServer) -> int:
    async with httpx2.AsyncClient() as http:
        return (await http.get(f"{server.base}/healthz")).status_code
