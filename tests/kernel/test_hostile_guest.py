"""What a machine says cannot be trusted: a guest that lies ends its own connection, no more."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import anyio
import pytest

from machine_proxy import MachineProxy
from vers_rlm_mcp.errors import KernelError, KernelGone, WireError
from vers_rlm_mcp.kernel import HostCall, Kernel, host
from vers_rlm_mcp.kernel.guest.frames import MAX_CALLS

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence

    from pydantic import JsonValue

    from vers_rlm_mcp.machines import Process
    from vers_rlm_mcp.testing import FakeMachine

pytestmark = pytest.mark.assumes("fake")  # its guest has our own wire to lie on

GUEST = r"""
import json, struct, sys
from vers_rlm_mcp.machines.daemon.guest.wire import Decoder, encode
from vers_rlm_mcp.kernel.guest.frames import TO_GUEST

def write(data):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

def send(kind, payload=b"", **fields):
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    write(encode(kind, fields, data))

def done(**value):
    cell = {"status": "ok", "error": None, "final": None, "names": []}
    send("done", {**cell, **value}, id=id, ok=True)

decoder = Decoder(TO_GUEST)
while data := sys.stdin.buffer.read1():
    for frame in decoder.feed(data):
        id = frame.fields.get("id", 0)
        if frame.kind == "hello":
            send("ready", [], protocol=1, kernel="k", cells=0)
        if frame.kind == "run":
            exec(frame.payload)
"""
"""A guest that does on the wire whatever the code of the cell says."""


class HostileMachine(MachineProxy):
    """A machine in which another program answers than the one that was sent."""

    def __init__(self, machine: FakeMachine, guest: str = GUEST) -> None:
        super().__init__(machine)
        self.started: list[Process] = []
        self._guest = guest

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        self.started.append(await super().spawn([sys.executable, "-c", self._guest]))
        return self.started[-1]

    async def write(
        self, path: str, data: bytes | AsyncIterable[bytes], *, mode: int = 0o644
    ) -> int:
        return 0


async def echo(call: HostCall) -> JsonValue:
    return call.name


async def run(kernel: Kernel, code: str) -> None:
    with anyio.fail_after(15):
        await kernel.run(code, timeout=10, handler=echo)


@pytest.mark.parametrize(
    "code",
    [
        "write(b'garbage, not a frame')",
        "write(struct.pack('!II', 10, 2**32 - 1))",
        "write(struct.pack('!II', 70_000, 0))",
        "write(struct.pack('!II', 60_000, 0) + b'[' * 60_000)",
        "send('ready', [], protocol=1, kernel='other', cells=0)",
        "send('hello')",
        "send('output', b'x', id=id + 1, skipped=0)",
        "send('output', b'x', id=id, skipped=-1)",
        "send('output', b'x', id=id, skipped=2**70)",
        "send('output', b'x', id=id, skipped=True)",
        "send('output', b'x', id=id)",
        "while True: send('output', b'', id=id, skipped=1)",
        "[send('output', b'x' * 1_000_000, id=id, skipped=0) for _ in range(3)]",
        "send('done', b'{}', id=id, ok=True)",
        "send('done', b'{}', id=id)",
        "send('done', b'{', id=id, ok=True)",
        "send('done', b'[]', id=id, ok=True)",
        "send('done', b'{}', id=[], ok=True)",
        "id += 1; done()",
        "done(status='bankrupt')",
        "done(status='final')",
        "done(final={'args': [], 'kwargs': {}})",
        "done(status='final', final=[])",
        "done(status='final', final={'args': {}, 'kwargs': {}})",
        "done(status='final', final={'args': []})",
        "done(error=5)",
        "done(error='x' * 1_000_000)",
        "done(names=[5])",
        "done(names={'a': 1})",
        "done(names=['x' * 1000])",
        "done(names=[0] * 600_000)",
        "send('call', {'arguments': []}, id=1, name='llmQuery')",
        "send('call', {'arguments': {}}, id=1, name=5)",
        "send('call', {'arguments': {}}, id=1)",
        "send('call', {'arguments': {}}, id='1', name='llmQuery')",
        "send('call', b'{\"arguments\": {\"prompt\": NaN}}', id=1, name='llmQuery')",
        "send('call', {'arguments': {'prompts': [1] * 20_000}}, id=1, name='llmQueryBatched')",
        "send('call', {'arguments': {}, 'carried': {'kept': 5}}, id=1, name='vmSnapshot')",
    ],
)
async def test_what_breaks_the_protocol_ends_the_connection(
    machine: FakeMachine, code: str
) -> None:
    hostile = HostileMachine(machine)
    kernel = await Kernel.connect(hostile, home_id="home")
    with pytest.raises(WireError, match="kernel"):
        await run(kernel, code)
    assert kernel.closed
    with pytest.raises(KernelGone):
        await run(kernel, "done()")
    [process] = hostile.started
    with anyio.fail_after(5):
        await process.wait()


@pytest.mark.parametrize(
    "code",
    [
        f"[send('call', {{'arguments': {{}}}}, id=n, name='slow') for n in range({MAX_CALLS + 1})]",
        "[send('call', {'arguments': {}}, id=1, name='slow') for _ in range(2)]",
    ],
)
async def test_more_calls_at_once_than_agreed_on_end_the_connection(
    machine: FakeMachine, code: str
) -> None:
    handled = cancelled = 0

    async def handler(call: HostCall) -> JsonValue:
        nonlocal handled, cancelled
        handled += 1
        try:
            await anyio.sleep_forever()
        finally:
            cancelled += 1

    kernel = await Kernel.connect(HostileMachine(machine), home_id="home")
    with anyio.fail_after(10), pytest.raises(WireError, match="more calls at once"):
        await kernel.run(code, timeout=10, handler=handler)
    assert handled == cancelled <= MAX_CALLS


async def test_large_calls_wait_until_those_before_are_answered(machine: FakeMachine) -> None:
    at_once = most = 0

    async def handler(call: HostCall) -> JsonValue:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        at_once -= 1
        return None

    kernel = await Kernel.connect(HostileMachine(machine), home_id="home")
    code = (
        "text = json.dumps({'arguments': {'prompt': 'x' * 30_000_000}}).encode()\n"
        "for n in range(8): send('call', text, id=n, name='llmQuery')\n"
        "done()"
    )
    with anyio.fail_after(20):
        await kernel.run(code, timeout=20, handler=handler)
    assert 1 <= most <= 2
    await kernel.aclose()


async def test_an_end_that_is_claimed_twice_is_noticed(machine: FakeMachine) -> None:
    kernel = await Kernel.connect(HostileMachine(machine), home_id="home")
    await run(kernel, "done(); done()")
    with pytest.raises(WireError):
        await run(kernel, "done()")


async def test_a_cell_that_never_ends_is_ended_by_its_time_limit(machine: FakeMachine) -> None:
    kernel = await Kernel.connect(HostileMachine(machine), home_id="home")
    with anyio.fail_after(5):
        result = await kernel.run(
            "while True: send('output', b'', id=id, skipped=0)", timeout=0.3, handler=echo
        )
    assert result.status == "timeout"
    await kernel.aclose()


async def test_a_text_in_a_call_that_utf8_cannot_carry_is_cleaned_but_for_paths(
    machine: FakeMachine,
) -> None:
    calls: list[HostCall] = []

    async def handler(call: HostCall) -> JsonValue:
        calls.append(call)
        return None

    kernel = await Kernel.connect(HostileMachine(machine), home_id="home")
    code = (
        "for n, name in enumerate(['llmQuery', 'readFile']):\n"
        '    send(\'call\', b\'{"arguments": {"a": "\\\\udcff"}}\', id=n, name=name)\n'
        "done()"
    )
    with anyio.fail_after(5):
        await kernel.run(code, timeout=5, handler=handler)
    assert [call.arguments for call in calls] in (
        [{"a": "?"}, {"a": "\udcff"}],
        [],  # the guest did not wait for its answers, so they may not have been begun
    )
    await kernel.aclose()


@pytest.mark.parametrize(
    "guest",
    [
        GUEST.replace("protocol=1", "protocol=2"),
        GUEST.replace("protocol=1", "protocol='1'"),
        GUEST.replace('"ready", []', '"ready", {}'),
        GUEST.replace('kernel="k"', "kernel='k' * 1000"),
        GUEST.replace('"ready"', '"done"'),
        "print('Welcome to this machine!')",
    ],
)
async def test_a_guest_of_another_kind_is_refused_when_it_is_met(
    machine: FakeMachine, guest: str
) -> None:
    with anyio.fail_after(10), pytest.raises(WireError):
        await Kernel.connect(HostileMachine(machine, guest), home_id="home")


async def test_a_guest_that_says_nothing_is_given_up(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "ADMIT_SECONDS", 0.2)
    monkeypatch.setattr(host, "ATTACH_SECONDS", 0.2)
    hostile = HostileMachine(machine, "import time; time.sleep(60)")
    with anyio.fail_after(5), pytest.raises(KernelError, match=r"within 0\.2 s"):
        await Kernel.connect(hostile, home_id="home")
    assert [await process.wait() for process in hostile.started]


@pytest.mark.parametrize(
    ("request_of", "answer"),
    [
        (Kernel.save_variables, "send('done', {'kept': 5}, id=id, ok=True)"),
        (Kernel.variables, "send('done', [{'name': 5}], id=id, ok=True)"),
        (Kernel.variables, "send('done', [], id=id + 1, ok=True)"),
        (Kernel.variables, "send('output', b'', id=id, skipped=0)"),
    ],
)
async def test_wrong_answers_to_other_requests_end_the_connection_too(
    machine: FakeMachine, request_of: Callable[[Kernel], Awaitable[object]], answer: str
) -> None:
    guest = GUEST.replace("exec(frame.payload)", "pass").replace(
        'if frame.kind == "run"', f'if frame.kind in ("save", "variables"): {answer}\n        if 0'
    )
    kernel = await Kernel.connect(HostileMachine(machine, guest), home_id="home")
    with anyio.fail_after(5), pytest.raises(WireError):
        await request_of(kernel)
    assert kernel.closed
