"""What an attempt is, and how its outcome is found."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SECONDS = 10
"""How long one attempt may take; the longest takes half a second."""

REFUSALS = frozenset(
    {
        *(errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS, errno.ENOENT, errno.ESRCH),
        *(errno.ENXIO, errno.ENODEV, errno.ENOTTY, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT),
        *(errno.ECONNREFUSED, errno.ENETUNREACH, errno.EIO, errno.EOPNOTSUPP),
    }
)
"""Errors that say no. Any other says that the attempt itself was made wrongly."""


@dataclass(frozen=True)
class Bait:
    """What the host has laid out, so that the attacker need not search."""

    secret: str
    """In files, the environment, arguments and shared memory of the host, and nowhere here."""
    paths: list[str]
    """Files on the host that hold it."""
    pid: int
    """A process of the host."""
    abstract: str
    """The name of an abstract socket on which the host listens."""
    port: int
    """A TCP port on which it listens at all of its addresses."""
    addresses: list[str]
    shared_memory: list[int]
    """Key and id of System V shared memory."""
    numbers: dict[str, int]
    """System calls that are needed here and have no function in the C library."""


class Outcome(NamedTuple):
    """How an attempt ended."""

    kind: Literal["refused", "succeeded", "broken"]
    text: str


Attempt = "Callable[[Bait], object]"
ATTEMPTS: dict[str, Callable[[Bait], object]] = {}

libc = ctypes.CDLL(None, use_errno=True)


def attempt(act: Callable[[Bait], object]) -> Callable[[Bait], object]:
    """An attempt returns what it gained; nothing, or an error in `REFUSALS`, is a refusal."""
    ATTEMPTS[act.__name__] = act
    return act


def check(result: int) -> int:
    """The result of a C function. Raises OSError for -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def call(number: int, *arguments: object) -> int:
    """A system call by its number. Raises OSError."""
    return check(libc.syscall(ctypes.c_long(number), *arguments))


def worked(variants: Mapping[str, Callable[[], object]]) -> list[str]:
    """The variants that were not refused."""
    return [name for name, act in variants.items() if not _is_refused(act)]


def contains(text: str, paths: list[str]) -> list[str]:
    """The files among `paths` that can be read and hold `text`."""
    found: list[str] = []
    for path in paths:
        try:
            with open(path, "rb", opener=_without_waiting) as file:
                if text.encode() in file.read(1 << 20):
                    found.append(path)
        except OSError:
            continue
    return found


def outcome(act: Callable[[Bait], object], bait: Bait) -> Outcome:
    """Make an attempt in a process of its own, as it may end or change that."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        os.write(writing, json.dumps(_made(act, bait)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        told = file.read()
    _, status = os.waitpid(child, 0)
    if told:
        return Outcome(*json.loads(told))
    return Outcome("broken", f"it ended with wait status {status}")


def _made(act: Callable[[Bait], object], bait: Bait) -> Outcome:
    try:
        gained = act(bait)
    except OSError as error:
        if error.errno in REFUSALS:
            return Outcome("refused", str(error))
        return Outcome("broken", traceback.format_exc())
    except Exception:  # noqa: BLE001 - told to the test, which then fails
        return Outcome("broken", traceback.format_exc())
    return Outcome("succeeded", repr(gained)[:2000]) if gained else Outcome("refused", "")


def _is_refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except OSError as error:
        if error.errno in REFUSALS:
            return True
        raise
    return False


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
