"""What a stdio client may send: every line gets an answer that its sender can find, or none."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from clients import COMMAND, StdioServer, environment_in, started
from mcp import StdioServerParameters

from vers_rlm_mcp.server.wire import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

PARSE_ERROR, INVALID_REQUEST, INVALID_PARAMS = -32700, -32600, -32602

PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[StdioServer]:
    """One for the module, which every line must leave alive."""
    environment = environment_in(tmp_path_factory.mktemp("server"))
    async with started(StdioServerParameters(command=COMMAND, env=environment)) as server:
        await server.initialize()
        yield server


async def answer(server: StdioServer, line: bytes) -> dict[str, Any]:
    await server.send_bytes(line + b"\n")
    return await server.receive()


def ping(number: bytes) -> bytes:
    return PING.replace(b'"id":1', b'"id":' + number)


def exec_call(command: bytes, number: bytes = b"1") -> bytes:
    """A call whose id comes last, as some clients send it."""
    return (
        b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"exec","arguments":{"command":'
        + command
        + b'}},"id":'
        + number
        + b"}"
    )


async def test_what_cannot_be_parsed_is_answered_with_its_id_and_the_reason(server: StdioServer):
    deep = 3000
    cases = [
        (b"no JSON", None, "not JSON"),
        (exec_call(rb'"\ud83d"'), 1, "half an emoji"),
        (exec_call(rb'"\udc00 \" id"', b'"x"'), "x", "half an emoji"),
        (exec_call(b"[" * deep + b"]" * deep, b"2"), 2, "nested"),
        (exec_call(b'{"id":' * deep + b"9" + b"}" * deep, b"3"), 3, "nested"),
        (exec_call(b'"\xff"', b"4"), 4, "UTF-8"),
        (exec_call(b'"\0"', b"5"), 5, "control character"),
        (exec_call(b"NaN", b"6"), 6, "not JSON"),
        (PING[:-1], 1, "not JSON"),
        (PING + PING, 1, "trailing"),
        (PING.decode().encode("utf-16-le"), None, "UTF-16"),
        (ping(b"9" * 5000), None, "out of range"),
        (ping(rb'"\ud83d"'), None, "half an emoji"),
    ]
    for line, number, reason in cases:
        reply = await answer(server, line)
        assert (reply["id"], reply["error"]["code"]) == (number, PARSE_ERROR), line[:80]
        assert reason in reply["error"]["message"]


async def test_what_is_no_request_is_answered_with_its_id_where_it_has_one(server: StdioServer):
    cases = [
        (b"5", None),
        (b"{}", None),
        (ping(b"null"), None),
        (ping(b"true"), None),
        (ping(b"[1]"), None),
        (ping(b"1.5"), 1.5),
        (ping(b'"' + b"9" * 2000 + b'"'), "9" * 2000),
        (b'{"id":2,"method":"ping"}', 2),
        (b'{"jsonrpc":"2.0","id":3}', 3),
        (b'{"jsonrpc":"2.0","id":4,"method":["ping"]}', 4),
        (b'{"jsonrpc":"2.0","id":5,"method":"ping","params":[]}', 5),
        (b"[]", None),
        (b"[" + ping(b"7") + b"]", 7),
        (exec_call(b'"' + b"x" * MAX_MESSAGE_BYTES + b'"', b"8"), 8),
    ]
    for line, number in cases:
        reply = await answer(server, line)
        assert (reply["id"], reply["error"]["code"]) == (number, INVALID_REQUEST), line[:80]
    await server.send_bytes(b"[" + ping(b"9") + b"," + ping(b'"ten"') + b"]\n")
    assert [(await server.receive())["id"] for _ in range(2)] == [9, "ten"]


async def test_what_means_a_request_beyond_doubt_is_served(server: StdioServer):
    cases = [
        (b"\xef\xbb\xbf" + PING, 1),
        (PING + b"\r", 1),
        (b"\n \r\n\n" + PING, 1),
        (ping(b"2.0"), 2),
        (ping(b"0"), 0),
        (ping(b"-1"), -1),
        (ping(b'""'), ""),
        (ping(b"9" * 30), int("9" * 30)),
        (b'{"jsonrpc":"2.0","id":3,"method":"ping","params":null}', 3),
        (b'{"jsonrpc":"2.0","method":"no/such","params":[]}\n' + ping(b"4"), 4),
        (b'{"jsonrpc":"2.0","id":99,"result":null}\n' + ping(b"5"), 5),
    ]
    for line, number in cases:
        assert await answer(server, line) == {"jsonrpc": "2.0", "id": number, "result": {}}


async def test_an_error_about_parameters_says_which_is_wrong(server: StdioServer):
    for method, params, reason in [
        ("tools/call", {}, "name' is missing"),
        ("tools/call", {"name": "exec", "arguments": [1]}, "arguments'"),
        ("resources/read", {"uri": 5}, "uri'"),
        ("prompts/get", {"name": "no-such"}, "no-such"),
    ]:
        await server.request(2, method, **params)
        fault = (await server.receive())["error"]
        assert fault["code"] == INVALID_PARAMS
        assert reason in fault["message"]


async def test_arguments_as_a_whole_may_be_json_text_or_nothing(server: StdioServer):
    for arguments in ('{"offset": 0}', "", list[int](), None):
        await server.request(2, "tools/call", name="rlmRuns", arguments=arguments)
        assert not (await server.receive())["result"].get("isError")
    await server.request(2, "tools/call", name="rlmRuns", arguments="{")
    assert "arguments'" in (await server.receive())["error"]["message"]


async def test_a_log_that_no_one_reads_stops_nothing_and_counts_what_it_dropped(
    stdio: StdioServerParameters,
):
    async with started(stdio, stderr=subprocess.PIPE) as server:
        await server.request(1, "tools/list")
        assert "initialize" in (await server.receive())["error"]["message"]
        await server.initialize()
        for number in range(700):
            arguments = {"command": "true", "vmId": "x" * (70_000 if number == 0 else 300)}
            await server.request(number, "tools/call", name="exec", arguments=arguments)
            assert (await server.receive())["result"]["isError"]
        assert server.process.stderr
        log = b""
        with anyio.fail_after(10):
            while log.count(b"\n") < 300:
                log += await server.process.stderr.receive()
        assert max(map(len, log.splitlines())) < 5_000
        assert server.process.stdin
        await server.process.stdin.aclose()
        assert await server.end() == 0
