"""Finds what keeps overlays in use, so that their layers cannot be switched.

A process that holds a file or directory of an overlay would keep seeing the old layers: it would
miss later writes, or its own would be lost.
"""

from __future__ import annotations

import os
import stat

from . import linux, processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .overlays import Overlay

SOCKETS = "/proc/net/unix"
PATH_COLUMN = 7


def obstacle(frozen: list[Overlay]) -> str:
    """Why these overlays cannot be switched; empty if they can, and they become read-only."""
    pid = _holder(frozen)
    if pid is not None:
        return f"process {pid} ({_command(pid)}) has files or a directory open there"
    path = _bound_socket({overlay.device for overlay in frozen})
    if path is not None:
        return f"a socket is bound to {path!a}"
    protected: list[Overlay] = []
    for overlay in frozen:
        try:
            overlay.protect(linux.MS_RDONLY)
        except OSError:
            for earlier in protected:
                earlier.protect(0)
            return f"a file in {overlay.views[0][1]} is open for writing"
        protected.append(overlay)
    return ""


def _holder(frozen: list[Overlay]) -> int | None:
    """The first process that holds something of the overlays; None when none does."""
    devices = {overlay.device for overlay in frozen}
    mounts = {number for overlay in frozen for number in overlay.mounts}
    for pid in processes.living():
        for view in processes.views(pid):
            try:
                if _in_use(view, devices, mounts):
                    return pid
            except (FileNotFoundError, ProcessLookupError):  # noqa: PERF203 - each may end
                continue  # It ended before it could be stopped.
    return None


def _in_use(process: str, devices: set[int], mounts: set[int]) -> bool:
    """Whether a process has a directory or a file open there, or watches one for changes.

    It is given by its directory in /proc.
    """
    for link in ("cwd", "root"):
        if os.stat(f"{process}/{link}").st_dev in devices:
            return True
    watched = {b"sdev:%x" % os.minor(device) for device in devices}  # The major number is 0.
    for number in os.listdir(f"{process}/fd"):
        with open(f"{process}/fdinfo/{number}", "rb") as file:
            for line in file:
                if line.startswith(b"mnt_id:") and int(line[7:]) in mounts:
                    return True
                if line.startswith(b"inotify") and not watched.isdisjoint(line.split()):
                    return True
    return False


def _bound_socket(devices: set[int]) -> str | None:
    """The path of a socket in one of the overlays, which could not be reached after a switch."""
    with open(SOCKETS, "rb") as file:
        next(file, None)
        for line in file:
            fields = line.rstrip(b"\n").split(maxsplit=PATH_COLUMN)
            path = fields[PATH_COLUMN] if len(fields) > PATH_COLUMN else b"@"
            if not path.startswith(b"@") and _may_lie_in(path, devices):
                return os.fsdecode(path)
    return None


def _may_lie_in(path: bytes, devices: set[int]) -> bool:
    """Whether a socket may be there; a relative path does not say."""
    if not path.startswith(b"/"):
        return True
    try:
        above = os.stat(os.path.dirname(path))
        return above.st_dev in devices and stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:  # Removed: nothing can connect to it anyway.
        return False


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).decode(errors="replace").strip()
    except OSError:
        return "gone"
