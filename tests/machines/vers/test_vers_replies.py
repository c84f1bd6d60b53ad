"""Odd replies and replies without end: an answer or an error of ours, in time and in bounds."""

from __future__ import annotations

import gc
import json
import resource
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from vers_client import UNKNOWN, hurry

from vers_emulator import Answer, Endless, VersEmulator, config_of
from vers_rlm_mcp.errors import MachineError
from vers_rlm_mcp.machines.vers import VersBackend, api
from vers_rlm_mcp.machines.vers.probe import probe

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from vers_rlm_mcp.machines import Machine

LIMIT = 20.0
MIB = 1024 * 1024
DEEP = 100_000

UNREADABLE = {
    "nothing": "",
    "no JSON": "OK",
    "a web page": "<!DOCTYPE html><title>Sign in</title>",
    "half of it": '{"vm_id": "',
    "null": "null",
    "a number": "5",
    "a text": '"vms"',
    "a truth value": "true",
    "a deep list": "[" * DEEP + "]" * DEEP,
    "a deep object": '{"vms":' * DEEP + "1" + "}" * DEEP,
    "a long number": '{"vm_id": %s, "commit_id": 1, "vms": 1}' % ("9" * 400),
    "too long a number": "9" * 10_000,
    "infinity": '{"vm_id": Infinity, "vms": -Infinity}',
    "lists of lists": '{"vm_id": [[]], "commit_id": {}, "vms": {}, "commits": {}}',
    "half a character": '{"vm_id": "\\ud800", "commit_id": "\\udfff", "vms": "\\ud800"}',
    "no characters": "\x00\x01\x1b[31mred\x1b[0m",
}
"""Bodies that answer nothing that is asked."""

PLACES = [
    *("GET /vms", "GET /vm/*/status", "GET /vm/*/ssh_key", "GET /commits", "GET /whoami"),
    *("POST /vm/new_root", "POST /vm/from_commit", "POST /vm/*/branch", "POST /vm/*/commit"),
]


@pytest.fixture(autouse=True)
async def _calm(emulator: VersEmulator, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
    hurry(monkeypatch)
    yield
    emulator.faults.clear()
    emulator.cloud.foreign.clear()
    async with VersBackend(config_of(emulator)) as backend:
        await backend.list()


async def do_everything(emulator: VersEmulator, commit_id: str, original: str) -> None:
    """Call whatever asks the service for something; every error must be one of ours."""
    said: list[str] = []

    async def attempt(call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except MachineError as error:
            said.append(str(error))

    async with VersBackend(config_of(emulator)) as backend:

        async def use(making: Awaitable[Machine]) -> None:
            await (await making).delete()

        async def branch() -> Machine:
            return (await (await backend.attach(original)).branch())[0]

        await attempt(lambda: use(backend.create()))
        await attempt(lambda: use(backend.restore(commit_id)))
        await attempt(lambda: use(branch()))
        await attempt(backend.list)
        await attempt(backend.commits)
        await attempt(lambda: backend.attach(original))

        async def take() -> None:
            commit = await (await backend.attach(original)).snapshot()
            await backend.delete_commit(commit.id)

        await attempt(take)
        await attempt(lambda: probe(config_of(emulator)))
    assert all(text.isprintable() and len(text) < 1500 for text in said)


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_body_that_is_no_answer_is_an_error(emulator: VersEmulator, body: str) -> None:
    client = api.VersApi(config_of(emulator))
    emulator.faults.set(Answer(body=body, does=False, times=None))
    for call in (
        client.vms,
        lambda: client.status(UNKNOWN),
        lambda: client.ssh_key(UNKNOWN),
        lambda: client.create({}),
        lambda: client.restore(UNKNOWN, "commit_id"),
        lambda: client.branch(UNKNOWN, 1),
        lambda: client.commit(UNKNOWN, "name", "description"),
        lambda: anext(aiter(client.commits())),
    ):
        with anyio.fail_after(LIMIT), pytest.raises(MachineError) as caught:
            await call()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1500
    await client.aclose()


@pytest.mark.parametrize("place", PLACES)
async def test_a_service_that_talks_nonsense_at_one_place_loses_nothing(
    emulator: VersEmulator, machine: Machine, place: str
) -> None:
    commit = await machine.snapshot()
    emulator.faults.set(Answer(at=place, body=UNREADABLE["a web page"], times=None))
    with anyio.fail_after(LIMIT):
        await do_everything(emulator, commit.id, machine.id)
    emulator.faults.clear()
    async with VersBackend(config_of(emulator)) as backend:
        await backend.list()
        await backend.delete_commit(commit.id)
    assert [vm.id for vm in emulator.vms] == [machine.id]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain; charset=hex"},
        {"Content-Type": "text/plain; charset=utf-99; charset=;"},
        {"Content-Type": "application/json; charset=utf-16", "Retry-After": "0.001"},
        {"Content-Encoding": "none"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "br, zstd, made-up"},
        {"Retry-After": "Fri, 31 Dec 99999 23:59:59 GMT"},
        {"Retry-After": "9" * 400},
        {"Retry-After": "NaN"},
        {"Retry-After-Ms": "-inf", "Date": "Fri, 31 Dec 99999 23:59:59 GMT"},
        {"Location": "http://[::1", "Set-Cookie": "=;=;"},
    ],
    ids=str,
)
async def test_the_headers_of_an_error_do_not_matter(
    emulator: VersEmulator, headers: dict[str, str]
) -> None:
    client = api.VersApi(config_of(emulator))
    body = '{"error": "b\\u00fcsy \\u0007"}'
    for status in (302, 400, 402, 403, 404, 409, 418, 422, 429, 500, 503, 599):
        emulator.faults.set(Answer(status=status, body=body, headers=headers, times=None))
        with anyio.fail_after(LIMIT), pytest.raises(MachineError) as caught:
            await client.vms()
        assert str(caught.value).isprintable()
        assert "büsy" in str(caught.value) or headers == {"Content-Encoding": "gzip"}
        emulator.faults.clear()
    await client.aclose()


async def test_what_is_meant_is_read_in_spite_of_its_form(
    emulator: VersEmulator, backend: VersBackend, machine: Machine
) -> None:
    listed = json.dumps(
        [{"vm_id": UNKNOWN, "created_at": "2020-01-01T00:00:00", "state": "RUNNING"}]
    )
    for body in (
        "\ufeff" + listed,
        f" \n{listed}\r\n",
        listed.replace('"state"', '"cpu": NaN, "big": %s, "state"' % ("9" * 400)),
        f'{{"vms": {listed}}}',
    ):
        emulator.faults.set(Answer(at="GET /vms", body=body, headers={"Content-Type": "x"}))
        (info,) = await backend.list()
        assert (info.id, info.running) == (UNKNOWN, True)
    emulator.faults.set(
        Answer(at="GET /vms", body=listed, headers={"Content-Encoding": "identity"})
    )
    assert len(await backend.list()) == 1
    emulator.faults.set(Endless(at="GET /vms", piece=listed, codec="gzip", pieces=1))
    assert len(await backend.list()) == 1


ENDLESS: list[dict[str, Any]] = [
    {"piece": "x" * 65536},
    {"piece": "0" * MIB, "codec": "gzip"},
    {"piece": "0" * MIB, "codec": "deflate"},
    {"piece": " " * 65536},
    {"piece": '[{"labels":' * 5000},
]


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("body", ENDLESS, ids=["plain", "gzip", "deflate", "blank", "deep"])
async def test_a_reply_without_end_is_given_up_early(
    emulator: VersEmulator, machine: Machine, body: Mapping[str, Any], status: int
) -> None:
    client = api.VersApi(config_of(emulator))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    emulator.faults.set(Endless(status=status, **body, times=None))
    started = time.monotonic()
    for call in (
        client.vms,
        lambda: client.wake(machine.id),
        lambda: client.delete(machine.id),
        lambda: client.create({}),
        lambda: client.branch(machine.id, 1),
    ):
        with anyio.fail_after(LIMIT), pytest.raises(MachineError):
            await call()
    emulator.faults.clear()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 300 * MIB
    assert time.monotonic() - started < LIMIT
    await client.aclose()
    gc.collect()


@pytest.mark.parametrize("status", [200, 503])
async def test_a_reply_that_drips_is_given_up_in_time(
    emulator: VersEmulator, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(api, "ATTEMPT_SECONDS", 0.3)
    monkeypatch.setattr(api, "CALL_SECONDS", 0.5)
    client = api.VersApi(config_of(emulator))
    emulator.faults.set(Endless(status=status, piece=" ", pause=0.05, times=None))
    started = time.monotonic()
    with pytest.raises(MachineError, match="did not answer in time"):
        await client.vms()
    assert time.monotonic() - started < 2
    await client.aclose()
