"""Limits of a machine: cgroups if this process can create them, else checks by the machine's PID 1.

A machine's cgroup is made beside the server's own (version 2, where a cgroup with processes has no
limited children) or below it (version 1). Root may do that, and so may a user to whom systemd has
delegated the parent. PID 1 enforces what cgroups do not: it kills the largest process when the
machine exceeds its memory.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    from collections.abc import Mapping

CGROUPS: Final = Path("/sys/fs/cgroup")
PREFIX: Final = "vers-rlm-"

CPU_PERIOD: Final = 100_000
"""Microseconds over which processor time is shared out: the kernel's default."""

OPEN_FILES: Final = 65536
"""Descriptors that a process may have, where the host allows as many."""

NO_CORE: Final = 1
"""Bytes of a core dump. With 0, a host whose cores are piped to a program would still run that, as
its root, on what a machine prepared; 1 is the kernel's own mark for "not even then" (core(5))."""

RESERVE: Final = 16
"""Processes that only the host can start, so that a machine full of processes can still be asked to
end them. Of a small number of processes, at most 1/RESERVE is reserved."""

PER_NAMESPACE: Final = (5, 14)
"""The version of Linux since which RLIMIT_NPROC counts the processes of one user namespace."""

FILLED_SECONDS: Final = 60.0
"""A cgroup is empty for less time than this before its machine is moved into it."""

CORE_PATTERN: Final = Path("/proc/sys/kernel/core_pattern")
CAP_SYS_RESOURCE: Final = 24

REMOVE_TRIES: Final = 100
REMOVE_POLL: Final = 0.01
"""A cgroup can be removed once the kernel has noticed that its last process is gone."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a machine may use."""

    memory: int
    """Bytes."""
    processes: int
    """Processes and threads, including those that only the host can start."""
    processors: int
    disk: int
    """Bytes that it may write."""


@dataclass(frozen=True, slots=True)
class Controller:
    """How one resource is limited in a cgroup."""

    resource: str
    name: str
    version: int
    parent: Path
    """The cgroup in which a machine's is made."""


@dataclass(slots=True)
class Cgroup:
    """The cgroups of one machine: a directory for each hierarchy."""

    held: frozenset[str] = frozenset()
    """The resources that are limited."""
    directories: list[Path] = field(default_factory=list[Path])

    async def remove(self) -> None:
        """Remove the directories, once the machine's processes are gone."""
        for directory in self.directories:
            for _ in range(REMOVE_TRIES):
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    await anyio.sleep(REMOVE_POLL)
                else:
                    break


def controllers() -> tuple[Controller, ...]:
    """The controllers under which this process can make cgroups, found by making one."""
    found: list[Controller] = []
    for controller in _candidates():
        probe = controller.parent / f"{PREFIX}probe-{os.getpid()}-{random.getrandbits(32):x}"
        try:
            probe.mkdir()
        except OSError:
            continue
        files = _settings(controller, Limits(1 << 30, 100, 1, 0))
        if all(os.access(probe / name, os.W_OK) for name in files):
            found.append(controller)
        with contextlib.suppress(OSError):
            probe.rmdir()
    return tuple(found)


def confine(
    name: str, pid: int, limits: Limits, available: tuple[Controller, ...], note: Path
) -> Cgroup:
    """Put a process, and so everything that it starts, under the limits that cgroups enforce.

    The directories are recorded in the file `note`, for clean-up after this process has died.
    """
    cgroup = Cgroup()
    held: set[str] = set()
    for controller in available:
        directory = controller.parent / f"{PREFIX}{name}"
        try:
            if directory not in cgroup.directories:
                directory.mkdir(exist_ok=True)
                cgroup.directories.append(directory)
            for file, value in _settings(controller, limits).items():
                (directory / file).write_text(value)
            (directory / "cgroup.procs").write_text(str(pid))
        except OSError:  # PID 1 enforces the limit instead; `held` says which is which.
            continue
        held.add(controller.resource)
    _prefer_processors(pid, limits.processors)
    cgroup.held = frozenset(held)
    note.write_text("\n".join(map(str, cgroup.directories)))
    return cgroup


def read_note(note: Path) -> Cgroup:
    """The cgroups that `confine` recorded."""
    return Cgroup(directories=[Path(line) for line in _read(note).splitlines()])


def sweep(available: tuple[Controller, ...]) -> None:
    """Remove the empty cgroups of dead servers; cgroups of live servers contain machines."""
    for parent in {controller.parent for controller in available}:
        for directory in (*parent.glob(f"{PREFIX}*"), *parent.parent.glob(f"*/{PREFIX}*")):
            with contextlib.suppress(OSError):  # It is in use, or another server has removed it.
                if time.time() - directory.stat().st_mtime > FILLED_SECONDS:
                    directory.rmdir()


def resource_limits(limits: Limits) -> Mapping[int, int]:
    """The resource limits of every program of a machine."""
    wanted = {
        resource.RLIMIT_CORE: NO_CORE,
        resource.RLIMIT_FSIZE: limits.disk,
        resource.RLIMIT_NOFILE: min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
    }
    release = os.uname().release.split(".")
    if tuple(map(int, release[:2])) >= PER_NAMESPACE:
        reserve = min(RESERVE, limits.processes // RESERVE)
        wanted[resource.RLIMIT_NPROC] = limits.processes - reserve
    return wanted


def give_limits(pid: int, wanted: Mapping[int, int]) -> Mapping[int, int]:
    """Let a process set resource limits as wanted, and return those that it may set.

    The server's own hard limits may be lower. Only root may raise them for a machine.
    """
    given: dict[int, int] = {}
    for kind, value in wanted.items():
        given[kind] = value
        soft, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY and hard < value:
            try:
                resource.prlimit(pid, kind, (soft, value))
            except (OSError, ValueError):
                given[kind] = hard
    return given


def shortfalls(wanted: Mapping[int, int]) -> Mapping[str, str]:
    """What the hard limits of this process keep machines from, if it may not raise them."""
    lower = {
        kind: hard
        for kind, value in wanted.items()
        if 0 <= (hard := resource.getrlimit(kind)[1]) < value
    }
    if not lower or _may_raise():
        return {}
    texts: dict[str, str] = {}
    if (most := lower.get(resource.RLIMIT_FSIZE)) is not None:
        texts["file size"] = f"{most:,} bytes, the hard limit of this process (ulimit -Hf)"
    if (most := lower.get(resource.RLIMIT_NPROC)) is not None:
        texts["processes of a user"] = f"{most}, the hard limit of this process (ulimit -Hu)"
    if resource.RLIMIT_CORE in lower and _read(CORE_PATTERN).startswith("|"):
        texts["core dumps"] = (
            "not held: the hard limit of this process (ulimit -Hc) is 0, which lets the host's "
            "handler of core dumps run on what machines prepared; start it with a higher one"
        )
    return texts


def _may_raise() -> bool:
    """Whether this process may raise its hard limits."""
    status = _read(Path("/proc/self/status"))
    held = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff:0")
    return bool(int(held.split(":")[1], 16) >> CAP_SYS_RESOURCE & 1)


def mechanisms(available: tuple[Controller, ...]) -> Mapping[str, str]:
    """A description of how each limit is enforced."""
    words = {item.resource: f"cgroup v{item.version}" for item in available}
    return {
        "memory": words.get("memory", "watchdog: the largest process is killed"),
        "processes": words.get("processes", "resource limit of each user in the machine"),
        "cpu": words.get("cpu", "processor affinity, which programs may change"),
        "disk": "watchdog: programs that write are stopped; no file larger than the limit",
    }


def _candidates() -> list[Controller]:
    resources = {"memory": "memory", "pids": "processes", "cpu": "cpu"}
    found: list[Controller] = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if names == "":
            parent = CGROUPS / path.strip("/")
            parent = parent.parent if path != "/" else parent
            enabled = _read(parent / "cgroup.subtree_control").split()
            found += [Controller(resources[n], n, 2, parent) for n in resources if n in enabled]
        for name in names.split(","):
            if name in resources:
                own = CGROUPS / name / path.strip("/")
                parent = own if own.is_dir() else CGROUPS / name
                found.append(Controller(resources[name], name, 1, parent))
    return found


def _settings(controller: Controller, limits: Limits) -> Mapping[str, str]:
    """The files of a cgroup that set a limit, and their content."""
    quota = limits.processors * CPU_PERIOD
    match controller.name, controller.version:
        case "memory", 2:
            return {"memory.max": str(limits.memory), "memory.swap.max": "0"}
        case "memory", _:
            return {"memory.limit_in_bytes": str(limits.memory)}
        case "pids", _:
            return {"pids.max": str(limits.processes)}
        case "cpu", 2:
            return {"cpu.max": f"{quota} {CPU_PERIOD}"}
        case _:
            return {"cpu.cfs_period_us": str(CPU_PERIOD), "cpu.cfs_quota_us": str(quota)}


def _prefer_processors(pid: int, count: int) -> None:
    """Bind a machine to as many processors as it may use, so that it sees no more."""
    ours = sorted(os.sched_getaffinity(0))
    with contextlib.suppress(OSError):
        os.sched_setaffinity(pid, random.sample(ours, min(count, len(ours))))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
