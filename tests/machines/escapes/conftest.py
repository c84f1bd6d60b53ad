from __future__ import annotations

import ctypes
import json
import os
import secrets
import socket
import subprocess
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import attacks
import pytest
from attacks import Bait, Outcome

from vers_rlm_mcp.machines import run_command
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend, seccomp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vers_rlm_mcp.machines import Machine

SECONDS = 60.0
"""How long all attempts together may take; some three seconds are usual."""

IPC_CREAT, IPC_RMID = 0o1000, 0
PAGE = 4096

NEEDED = {
    "x86_64": {"clone": 56, "kcmp": 312, "modify_ldt": 154},
    "aarch64": {"clone": 220, "kcmp": 272},
}
"""System calls that attempts make by number and that are not all refused by it."""

SINCE_2019 = {"pidfd_getfd": 438, "clone3": 435, "quotactl_fd": 443}


async def deliver(machine: Machine) -> None:
    """Bring the attacker's program into a machine."""
    for source in Path(attacks.__file__).parent.glob("*.py"):
        await machine.write(f"/workspace/attacks/{source.name}", source.read_bytes())


@pytest.fixture(scope="module")
async def outcomes(bait: Bait, state: Path) -> dict[str, Outcome]:
    """The outcome of every attempt, all made in one machine."""
    async with BubblewrapBackend(state) as backend:
        other = await backend.create()
        await other.write("/workspace/other", bait.secret.encode())
        machine = await backend.create()
        await deliver(machine)
        told = json.dumps(asdict(bait)).encode()
        result = await run_command(
            machine, ["python3", "-m", "attacks"], stdin=told, timeout=SECONDS
        )
        await machine.delete()
        await other.delete()
    assert result.status, "the attempts did not end"
    assert result.status.ok, result.stderr.text
    return {name: Outcome(*told) for name, told in json.loads(result.stdout.text).items()}


@pytest.fixture(scope="module")
def bait(state: Path, tmp_path_factory: pytest.TempPathFactory, secret: str) -> Iterator[Bait]:
    """What is worth reaching on this host."""
    place = tmp_path_factory.mktemp("bait") / secrets.token_hex(8)
    place.write_text(secret)
    beside = state / "bubblewrap" / secrets.token_hex(8)
    beside.parent.mkdir(exist_ok=True, mode=0o700)
    beside.write_text(secret)
    name = secrets.token_hex(8)
    with ExitStack() as stack:
        canary = stack.enter_context(
            subprocess.Popen(["sh", "-c", "read ending", secret], stdin=subprocess.PIPE)
        )
        stack.callback(canary.kill)
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{name}")
        abstract.listen()
        server = stack.enter_context(socket.create_server(("", 0)))
        yield Bait(
            secret=secret,
            paths=[str(place), str(beside), f"/proc/{canary.pid}/environ"],
            pid=canary.pid,
            abstract=name,
            port=server.getsockname()[1],
            addresses=["127.0.0.1", "::1", *_own_addresses()],
            shared_memory=_shared_memory(secret, stack),
            numbers={
                **seccomp.refused(),
                **NEEDED[os.uname().machine],
                **SINCE_2019,
                "first unknown": seccomp.FIRST_UNKNOWN,
            },
        )
        assert canary.poll() is None, "a process of the host was ended"


@pytest.fixture(scope="module")
def secret(monkeypatch_module: pytest.MonkeyPatch) -> str:
    """A text that is in the host's environment and in the bait's places, and nowhere else."""
    text = f"secret-{secrets.token_hex(16)}"
    monkeypatch_module.setenv("ANTHROPIC_API_KEY", text)
    return text


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def _own_addresses() -> list[str]:
    """The host's address towards the world, if it has one. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [probe.getsockname()[0]]


def _shared_memory(secret: str, stack: ExitStack) -> list[int]:
    libc = ctypes.CDLL(None, use_errno=True)
    key = secrets.randbits(30)
    number = libc.shmget(key, PAGE, IPC_CREAT | 0o666)
    assert number >= 0
    stack.callback(libc.shmctl, number, IPC_RMID, None)
    return [key, number]
