"""Requests over HTTP as clients, browsers, proxies and attackers send them, to one server."""

from __future__ import annotations

import json
import re
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
from clients import (
    HttpServer,
    call,
    connected,
    environment_in,
    error,
    serve_http_in,
)

from vers_rlm_mcp.errors import SettingsError
from vers_rlm_mcp.server.http_guard import Guard
from vers_rlm_mcp.server.http_transport import KEEP_ALIVE_SECONDS, MAX_CONNECTIONS, MAX_SESSIONS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ANN = "the-token-of-ann-0123456789"
BOB = "the-token-of-bob-0123456789"

HEADERS = {
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "Authorization": f"Bearer {ANN}",
}
OTHERS = [f"the-token-of-someone-{number}" for number in range(14)]
SHARE = len([ANN, BOB, *OTHERS])
"""Between so many principals sessions and connections are shared."""

SETTINGS = {
    "VERS_RLM_TOKEN": ",".join([ANN, BOB, *OTHERS]),
    "VERS_RLM_ALLOWED_HOSTS": "box.test:80,Other.Test,any.test:*,[2001:DB8::1]",
    "VERS_RLM_ALLOWED_ORIGINS": "https://a.test, http://b.test:8080,chrome-extension://abc",
}


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[HttpServer]:
    environment = environment_in(tmp_path_factory.mktemp("server"))
    async with serve_http_in(environment, env=SETTINGS) as server:
        yield server


@pytest.fixture
async def http() -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(headers=HEADERS, timeout=30) as http:
        yield http


def request(number: Any, method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def initialize() -> dict[str, Any]:
    client = {"name": "test", "version": "1"}
    return request(
        1, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=client
    )


async def open_session(http: httpx2.AsyncClient, server: HttpServer, token: str = ANN) -> str:
    headers = {"Authorization": f"Bearer {token}"}
    reply = await http.post(server.url, json=initialize(), headers=headers)
    assert reply.status_code == 200
    return reply.headers["mcp-session-id"]


def answer(reply: httpx2.Response) -> dict[str, Any]:
    """The last message of a stream, or the only one of a body."""
    return json.loads(re.findall(r"^(?:data: )?(\{.*\})\r?$", reply.text, re.MULTILINE)[-1])


@pytest.mark.parametrize(
    ("status", "hosts"),
    [
        (
            200,
            "localhost LOCALHOST:7 localhost. localhost: 127.0.0.1:8 [::1]:9 [0:0::1] "
            "box.test BOX.TEST:80 box.test.:080 other.test other.test:443 any.test:5 "
            "[2001:db8:0::1]",
        ),
        (
            421,
            "evil.test localhost.evil.test 127.0.0.1.evil.test localhost:evil localhost:80:80 "
            "localhost@evil.test evil.test@localhost localhost:99999 localhost,evil.test [::1 "
            "localhost:* box.test:81 other.test:8080 *",
        ),
    ],
)
async def test_hosts_are_compared_as_names_and_numbers(
    server: HttpServer, http: httpx2.AsyncClient, status: int, hosts: str
):
    for host in hosts.split():
        reply = await http.post(server.url, json=initialize(), headers={"Host": host})
        assert reply.status_code == status, host
        if status == 421:
            assert "--allowed-hosts" in reply.text


@pytest.mark.parametrize(
    ("allowed", "origins"),
    [
        (
            True,
            "http://localhost HTTP://LOCALHOST:1 https://127.0.0.1:2 http://[::1]:3 "
            "https://a.test https://A.test:443 https://a.test. http://b.test:08080 "
            "chrome-extension://abc",
        ),
        (
            False,
            "null http://evil.test http://localhost.evil.test http://localhost:evil "
            "http://localhost:80@evil.test http://a.test https://a.test:8443 http://b.test "
            "https://x.a.test chrome-extension://abd https:// https://a.test/path",
        ),
    ],
)
async def test_pages_of_allowed_origins_can_use_the_server_and_others_cannot(
    server: HttpServer, http: httpx2.AsyncClient, allowed: bool, origins: str
):
    for origin in origins.split():
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,mcp-session-id",
            "Access-Control-Request-Private-Network": "true",
        }
        async with httpx2.AsyncClient() as page:  # which cannot send its token yet
            preflight = await page.options(server.url, headers=asked)
            stranger = await page.post(server.url, headers={"Origin": origin})
        reply = await http.post(server.url, json=initialize(), headers={"Origin": origin})
        expected = (200, 401, 200) if allowed else (403, 403, 403)
        replies = (preflight, stranger, reply)
        assert tuple(it.status_code for it in replies) == expected, origin
        for it in replies:
            assert it.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
        if allowed:
            assert "mcp-session-id" in preflight.headers["Access-Control-Allow-Headers"]
            assert preflight.headers["Access-Control-Allow-Private-Network"] == "true"
            assert "Mcp-Session-Id" in reply.headers["Access-Control-Expose-Headers"]


async def test_hosts_and_origins_in_the_settings_that_are_none_are_refused():
    async def never(*_: object) -> None:
        raise AssertionError

    for host in ("*", "*.test", "https://box.test", "a b", "box.test:http"):
        with pytest.raises(SettingsError, match="--allowed-hosts"):
            Guard(never, "127.0.0.1", allowed_hosts=[host])
    for origin in ("*", "box.test", "null", "https://box.test/path"):
        with pytest.raises(SettingsError, match="--allowed-origins"):
            Guard(never, "127.0.0.1", allowed_origins=[origin])


async def test_a_request_of_two_lengths_or_two_hosts_is_refused(server: HttpServer):
    start = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n"
    lengths = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert b" 400 " in await raw(server, start + lengths)
    assert b" 400 " in await raw(server, start + b"Host: evil.test\r\nContent-Length: 0\r\n\r\n")
    assert b" 421 " in await raw(server, b"POST /mcp HTTP/1.0\r\nContent-Length: 0\r\n\r\n")


async def raw(server: HttpServer, data: bytes) -> bytes:
    """The status line that the server answers these bytes with."""
    url = httpx2.URL(server.url)
    async with await anyio.connect_tcp(url.host, url.port or 0) as stream:
        await stream.send(data)
        return (await stream.receive()).partition(b"\r\n")[0]


async def test_an_endpoint_is_found_behind_proxies_and_with_a_slash_at_its_end(
    server: HttpServer, http: httpx2.AsyncClient
):
    for path in ("/mcp/", "//mcp", "/tools/rlm/mcp", "/tools/rlm/mcp/"):
        assert (await http.post(f"{server.base}{path}", json=initialize())).status_code == 200
    for path in ("/", "/sse", "/.well-known/oauth-protected-resource/mcp", "/register"):
        reply = await http.get(f"{server.base}{path}")
        assert reply.status_code == 404
        assert "/mcp" in reply.text
    assert KEEP_ALIVE_SECONDS > 600  # the longest pool among the usual proxies


async def test_over_sse_the_address_for_messages_has_the_prefix_that_proxies_know(
    tmp_path_factory: pytest.TempPathFactory,
):
    environment = environment_in(tmp_path_factory.mktemp("sse"))
    async with (
        serve_http_in(environment, "--transport", "sse") as server,
        httpx2.AsyncClient() as http,
    ):
        for path, header, prefix in [
            ("/sse/", "", ""),
            ("/tools/sse", "", "/tools"),
            ("/sse", "/tools/rlm/", "/tools/rlm"),
            ("/sse", "//evil.test", ""),
            ("/sse", "/a?b=c", ""),
        ]:
            headers = {"X-Forwarded-Prefix": header}
            async with http.stream("GET", f"{server.base}{path}", headers=headers) as stream:
                lines = stream.aiter_lines()
                assert await anext(lines) == "event: endpoint"
                line = await anext(lines)
                assert line.startswith(f"data: {prefix}/messages/?session_id=")
                address = server.base + line.removeprefix("data: ").replace("s/?", "s?")
                assert (await http.post(address, json=initialize())).status_code == 202
                broken = await http.post(address, content=b'{"id":1', headers=HEADERS)
                assert answer(broken)["error"]["code"] == -32700


async def test_what_cannot_be_served_is_answered_with_its_id(
    server: HttpServer, http: httpx2.AsyncClient
):
    headers = {"Mcp-Session-Id": await open_session(http, server)}
    for body, number, code in [
        (b"", None, -32700),
        (b'{"jsonrpc":"2.0","method":"ping","params":{"a":"\\ud83d"},"id":2}', 2, -32700),
        (b'{"jsonrpc":"2.0","id":3,"method":"ping","params":[]}', 3, -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', None, -32600),
        (b'[{"jsonrpc":"2.0","id":4,"method":"ping"}]', 4, -32600),
    ]:
        reply = await http.post(server.url, content=body, headers=headers)
        assert reply.status_code == 400
        assert (answer(reply)["id"], answer(reply)["error"]["code"]) == (number, code)
    taken = b'\xef\xbb\xbf{"jsonrpc":"2.0","id":5.0,"method":"ping"}'
    assert answer(await http.post(server.url, content=taken, headers=headers))["id"] == 5


async def test_requests_of_one_id_in_flight_each_get_their_own_answer(
    server: HttpServer, http: httpx2.AsyncClient
):
    headers = {"Mcp-Session-Id": await open_session(http, server)}
    outputs: dict[int, Any] = {}

    async def execute(number: int, command: str) -> None:
        arguments = {"command": command, "vmId": vm_id}
        body = request(1, "tools/call", name="exec", arguments=arguments)
        message = answer(await http.post(server.url, json=body, headers=headers))
        assert message["id"] == 1
        outputs[number] = message["result"]["structuredContent"]["stdout"]

    async with connected(server.url, token=ANN) as client:
        vm_id = (await call(client, "vmCreate"))["vm_id"]
        async with anyio.create_task_group() as calls:
            for number in range(3):
                # Each waits for the next, so that they end in the opposite order.
                wait = f"until [ -e {number + 1} ]; do sleep 0.02; done; " if number < 2 else ""
                calls.start_soon(execute, number, f"{wait}touch {number}; echo {number}")
        assert outputs == {number: f"{number}\n" for number in range(3)}

        async with anyio.create_task_group() as calls:
            body = request("x", "tools/call", name="exec", arguments={"command": "sleep 613"})
            body["params"]["arguments"]["vmId"] = vm_id
            calls.start_soon(lambda: http.post(server.url, json=body, headers=headers))
            with anyio.fail_after(10):
                while not (await call(client, "exec", command="pgrep sleep", vmId=vm_id))["stdout"]:
                    pass
            cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled"}
            cancel |= {"params": {"requestId": "x"}}
            with anyio.fail_after(5):
                await http.post(server.url, json=cancel, headers=headers)


async def test_a_stream_that_is_asked_for_once_more_begins_with_what_comes(
    server: HttpServer, http: httpx2.AsyncClient
):
    headers = {"Mcp-Session-Id": await open_session(http, server), "Last-Event-ID": "7"}
    async with http.stream("GET", server.url, headers=headers) as stream:
        assert stream.status_code == 200


async def test_of_too_many_sessions_of_one_token_the_idlest_ends_and_no_other_tokens(
    server: HttpServer, http: httpx2.AsyncClient
):
    async def status(session: str, token: str = ANN) -> int:
        headers = {"Mcp-Session-Id": session, "Authorization": f"Bearer {token}"}
        reply = await http.post(server.url, json=request(1, "ping"), headers=headers)
        return reply.status_code

    of_bob = await open_session(http, server, BOB)
    idle, used = [await open_session(http, server) for _ in range(2)]
    async with http.stream("GET", server.url, headers={"Mcp-Session-Id": used}):
        for _ in range(MAX_SESSIONS // SHARE - 1):
            await open_session(http, server)
        assert [await status(it) for it in (idle, used)] == [404, 200]
    assert await status(of_bob, BOB) == 200
    assert await status(of_bob, ANN) == 404


async def test_one_token_cannot_hold_all_connections(server: HttpServer, http: httpx2.AsyncClient):
    endless = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ANN}\r\n"
    endless += "Transfer-Encoding: chunked\r\n\r\n"
    url = httpx2.URL(server.url)
    async with AsyncExitStack() as stack:
        for _ in range(MAX_CONNECTIONS // SHARE):
            stream = await stack.enter_async_context(
                await anyio.connect_tcp(url.host, url.port or 0)
            )
            await stream.send(endless.encode())
        with anyio.fail_after(10):
            while (await http.post(server.url, json=initialize())).status_code != 429:
                pass
        await open_session(http, server, BOB)


async def test_over_http_a_tool_without_its_machine_says_which_there_are(server: HttpServer):
    async with connected(server.url, token=BOB) as client:
        assert "vmId" in await error(client, "exec", command="true")
