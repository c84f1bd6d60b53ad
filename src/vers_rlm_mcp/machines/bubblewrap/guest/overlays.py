"""The machine's writable directories: one overlay each, over frozen layers and a base.

All paths are relative to the hidden directory that PID 1 works in:

    base/…                    what the machine starts from, read-only
    layers/LAYER/SLOT/u       frozen layers, read-only; only the slots that a layer changed
    machine/up/SLOT/{u,w}     what this machine writes, and overlayfs' own work directory
    c/NN                      short names for layers, as mount options must fit into one page
"""

from __future__ import annotations

import os

from . import calls

FLAGS = calls.MS_NOSUID | calls.MS_NODEV
FRESH = "fresh"
"""Where a new overlay is mounted before it takes the place of the old one."""


class Overlay:
    """One writable directory of the machine."""

    def __init__(self, slot: str, target: str, base: str) -> None:
        self.slot = slot
        self.target = target
        self.base = base
        self.layers: list[str] = []
        """Frozen layers of this slot, newest first."""
        self.mount_id = self.device = -1

    @property
    def upper(self) -> str:
        """What was written since the last freeze."""
        return f"machine/up/{self.slot}/u"

    @property
    def changed(self) -> bool:
        """Whether anything was written, the directory's own attributes included."""
        with os.scandir(self.upper) as entries:
            if next(entries, None) is not None:
                return True
        return _attributes(self.upper) != _attributes(self._below())

    def mount(self, target: str) -> None:
        """Mount the overlay at `target`. `volatile` spares a sync of the host's whole disk."""
        if not os.path.isdir(self.upper):
            self._make_upper()
        work = f"machine/up/{self.slot}/w"
        volatile = f"{work}/work/incompat/volatile"
        if os.path.isdir(volatile):  # Left by a mount that ended with the host's server.
            os.rmdir(volatile)
            os.rmdir(f"{work}/work/incompat")
        lower = ":".join([f"{_short(layer)}/{self.slot}/u" for layer in self.layers] + [self.base])
        options = f"lowerdir={lower},upperdir={self.upper},workdir={work},userxattr,volatile"
        calls.mount(b"overlay", os.fsencode(target), b"overlay", FLAGS, options.encode())

    def place(self, root: str) -> None:
        """Mount the overlay under `root`, where its directory is made."""
        os.makedirs(root + self.target, exist_ok=True)
        self.mount(root + self.target)

    def look(self) -> None:
        """Learn how the kernel names this mount now."""
        descriptor = os.open(self.target, os.O_PATH | os.O_CLOEXEC)
        try:
            self.device = os.fstat(descriptor).st_dev
            self.mount_id = _mount_id(f"/proc/self/fdinfo/{descriptor}")
        finally:
            os.close(descriptor)

    def protect(self, flags: int) -> None:
        """Set the mount read-only (refused while a file is open for writing) or, with 0, back."""
        calls.remount(os.fsencode(self.target), flags)

    def prepare(self, layer: str) -> None:
        """Build, out of sight, the overlay whose newest frozen layer is `layer`."""
        self.layers.insert(0, layer)
        os.makedirs(f"{FRESH}/{self.slot}", exist_ok=True)
        self.mount(f"{FRESH}/{self.slot}")

    def abandon(self) -> None:
        """Undo `prepare`."""
        self.layers.pop(0)
        if os.path.ismount(f"{FRESH}/{self.slot}"):
            calls.detach(os.fsencode(f"{FRESH}/{self.slot}"))

    def switch(self) -> None:
        """Put what `prepare` built in the place of the old overlay."""
        target = os.fsencode(self.target)
        calls.detach(target)
        calls.mount(os.fsencode(f"{FRESH}/{self.slot}"), target, b"", calls.MS_MOVE)
        self.look()

    def _below(self) -> str:
        return f"layers/{self.layers[0]}/{self.slot}/u" if self.layers else self.base

    def _make_upper(self) -> None:
        """A fresh upper with the attributes of the directory below, as it is what is seen."""
        os.makedirs(f"machine/up/{self.slot}/w", exist_ok=True)
        making = f"{self.upper}.new"
        os.makedirs(making, exist_ok=True)
        below = self._below()
        info = os.stat(below)
        for name in os.listxattr(below):
            if name.startswith("user.") and not name.startswith("user.overlay."):
                os.setxattr(making, name, os.getxattr(below, name))
        if _is_mapped(info):
            os.chown(making, info.st_uid, info.st_gid)
        os.chmod(making, info.st_mode & 0o7777)
        os.utime(making, ns=(info.st_atime_ns, info.st_mtime_ns))
        os.rename(making, self.upper)


OVERFLOW_ID = 65534


def _is_mapped(info: os.stat_result) -> bool:
    """Whether a file's owner exists in this user namespace."""
    return OVERFLOW_ID not in {info.st_uid, info.st_gid}


def _attributes(path: str) -> tuple[int, ...]:
    info = os.stat(path)
    owner = (info.st_uid, info.st_gid) if _is_mapped(info) else ()
    return (info.st_mode, info.st_mtime_ns, *owner)


def _short(layer: str) -> str:
    """A name of a few characters for a layer's directory."""
    names = _short_names
    if layer not in names:
        names[layer] = f"c/{len(names):x}"
        os.makedirs("c", exist_ok=True)
        os.symlink(f"../layers/{layer}", names[layer])
    return names[layer]


_short_names: dict[str, str] = {}


def _mount_id(fdinfo: str) -> int:
    """The mount that an open file belongs to."""
    with open(fdinfo, "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    return -1


def _in_use(pid: int, overlays: list[Overlay]) -> bool:
    """Whether a process holds a directory or a file of one of the overlays open.

    Its view would stay with the layers of before, so that it would miss what is written later.
    """
    devices = {overlay.device for overlay in overlays}
    for link in ("cwd", "root"):
        if os.stat(f"/proc/{pid}/{link}").st_dev in devices:
            return True
    mounts = {overlay.mount_id for overlay in overlays}
    return any(
        _mount_id(f"/proc/{pid}/fdinfo/{number}") in mounts
        for number in os.listdir(f"/proc/{pid}/fd")
    )


def holder(pids: list[int], overlays: list[Overlay]) -> int | None:
    """The first of the processes that holds something of the overlays; None when none does."""
    for pid in pids:
        try:
            if _in_use(pid, overlays):
                return pid
        except (FileNotFoundError, ProcessLookupError):
            continue  # It ended before it could be stopped.
    return None
