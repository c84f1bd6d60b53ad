"""The machine's writable file systems: overlays over frozen layers and a base.

There are as few overlays as possible, since mounting one costs milliseconds on a busy disk: each
is mounted out of sight, and its directories are shown in the machine's root one by one.

All paths are relative to the hidden directory that PID 1 works in:

    base/…                    what the machine starts from, read-only
    layers/LAYER/SLOT/u       frozen layers, read-only; only the slots that a layer changed
    machine/up/SLOT/{u,w}     what this machine writes, and overlayfs' own work directory
    live/SLOT                 the overlay
    c/N                       short names for those, as mount options must fit into one page
"""

from __future__ import annotations

import os

from . import linux

FLAGS = linux.MS_NOSUID | linux.MS_NODEV

ENOSPC = 28

OVERFLOW_ID = 65534
"""The id that is shown for owners that do not exist in this user namespace."""

PRIVATE = "user.overlay."
ESCAPED = "user.overlay.overlay."
"""The prefix of overlayfs' own attributes, and of those that programs set under that prefix."""


class Overlay:
    """One writable file system of the machine."""

    def __init__(
        self, slot: str, base: str, layers: list[str], views: list[tuple[str, str]]
    ) -> None:
        self.slot = slot
        self.base = base
        """One or more directories, topmost first, separated by colons."""
        self.layers = layers
        """Frozen layers of this slot, newest first."""
        self._before = layers
        self.views = views
        """Directories in it, and where the machine sees them."""
        self.device = -1
        self.mounts: set[int] = set()

    @property
    def upper(self) -> str:
        """The directory of what was written since the last freeze."""
        return f"machine/up/{self.slot}/u"

    @property
    def frozen(self) -> list[str]:
        """The directories of the frozen layers, newest first."""
        return [f"layers/{layer}/{self.slot}/u" for layer in self.layers]

    @property
    def live(self) -> str:
        """Where the overlay is mounted, out of sight."""
        return f"live/{self.slot}"

    @property
    def fresh(self) -> str:
        """Where a new overlay waits to take the place of the old one."""
        return f"fresh/{self.slot}"

    @property
    def changed(self) -> bool:
        """Whether anything was written, the top directory's own attributes included."""
        with os.scandir(self.upper) as entries:
            if next(entries, None) is not None:
                return True
        return _attributes(self.upper) != _attributes(self._below())

    def start(self, root: str) -> None:
        """Mount the overlay and show it below `root`, where its directories are made."""
        self._mount(self.live)
        for _, target in self.views:
            os.makedirs(root + target, exist_ok=True)
        self._show(root)

    def refresh_mounts(self) -> None:
        """Read the device and the mount ids that the kernel uses now."""
        self.mounts = set()
        for _, target in self.views:
            descriptor = os.open(target, os.O_PATH | os.O_CLOEXEC)
            self.device = os.fstat(descriptor).st_dev
            self.mounts.add(_mount_id(f"/proc/self/fdinfo/{descriptor}"))
            os.close(descriptor)

    def protect(self, flags: int) -> None:
        """Set it read-only (refused while a file is open for writing) or, with 0, writable."""
        linux.mount(b"none", os.fsencode(self.live), b"", linux.MS_REMOUNT | FLAGS | flags)

    def prepare(self, layer: str, merged: list[str]) -> None:
        """Mount, out of sight, an overlay whose newest frozen layer is `layer`.

        Below it are the previous layers or, if there is one, the layer in `merged` made of them.
        """
        self._before = self.layers
        older = merged if merged and self.layers else self.layers
        self.layers = [layer, *older]
        self._mount(self.fresh)

    def abandon(self) -> None:
        """Undo `prepare`, complete or not."""
        self.layers = self._before
        if os.path.ismount(self.fresh):
            linux.detach(os.fsencode(self.fresh))

    def switch(self) -> None:
        """Replace the old overlay with the prepared one."""
        for _, target in self.views:
            linux.detach(os.fsencode(target))
        live = os.fsencode(self.live)
        linux.detach(live)
        linux.mount(os.fsencode(self.fresh), live, b"", linux.MS_MOVE)
        self._show("")
        self.refresh_mounts()

    def _mount(self, target: str) -> None:
        """Mount the overlay. `volatile` spares a sync of the host's whole disk at every freeze."""
        os.makedirs(target, exist_ok=True)
        if not os.path.isdir(self.upper):
            self._make_upper()
        work = f"machine/up/{self.slot}/w"
        _clear(f"{work}/work/incompat")  # Left by a mount that ended with the host's server.
        lower = ":".join([_short_name(layer, self.slot) for layer in self.layers] + [self.base])
        options = f"lowerdir={lower},upperdir={self.upper},workdir={work},userxattr,volatile"
        linux.mount(b"overlay", os.fsencode(target), b"overlay", FLAGS, options.encode())
        if os.statvfs(target).f_flag & os.ST_RDONLY:  # There was no room for its work directory.
            raise OSError(ENOSPC, os.strerror(ENOSPC), target)

    def _show(self, root: str) -> None:
        for name, target in self.views:
            source = os.fsencode(f"{self.live}/{name}")
            linux.mount(source, os.fsencode(root + target), b"", linux.MS_BIND)

    def _below(self) -> str:
        return self.frozen[0] if self.layers else self.base.split(":")[0]

    def _make_upper(self) -> None:
        """Make an empty upper with the attributes of the directory below, which programs see."""
        os.makedirs(f"machine/up/{self.slot}/w", exist_ok=True)
        making = f"{self.upper}.new"
        os.makedirs(making, exist_ok=True)
        below = self._below()
        info = os.stat(below)
        for name, value in _user_attributes(below).items():
            os.setxattr(making, name, value)
        if _is_mapped(info):
            os.chown(making, info.st_uid, info.st_gid)
        os.chmod(making, info.st_mode & 0o7777)
        os.utime(making, ns=(info.st_atime_ns, info.st_mtime_ns))
        os.rename(making, self.upper)


def _is_mapped(info: os.stat_result) -> bool:
    """Whether a file's owner exists in this user namespace."""
    return OVERFLOW_ID not in {info.st_uid, info.st_gid}


def _attributes(path: str) -> tuple[object, ...]:
    info = os.stat(path)
    owner = (info.st_uid, info.st_gid) if _is_mapped(info) else ()
    return (info.st_mode, info.st_mtime_ns, *owner, _user_attributes(path))


def _user_attributes(path: str) -> dict[str, bytes]:
    """Extended attributes that programs have set, without overlayfs' own."""
    names = [name for name in os.listxattr(path) if name.startswith("user.")]
    own = [name for name in names if not name.startswith(PRIVATE) or name.startswith(ESCAPED)]
    return {name: os.getxattr(path, name) for name in own}


def _short_name(layer: str, slot: str) -> str:
    """A name of a few characters for a layer's directory."""
    path = f"../layers/{layer}/{slot}/u"
    if path not in _short_names:
        _short_names[path] = f"c/{len(_short_names):x}"
        os.makedirs("c", exist_ok=True)
        os.symlink(path, _short_names[path])
    return _short_names[path]


_short_names: dict[str, str] = {}


def _clear(directory: str) -> None:
    """Empty a small directory, if it exists."""
    if os.path.isdir(directory):
        for name in os.listdir(directory):
            path = f"{directory}/{name}"
            if os.path.isdir(path):
                _clear(path)
                os.rmdir(path)
            else:
                os.unlink(path)


def _mount_id(fdinfo: str) -> int:
    """The mount that an open file belongs to."""
    with open(fdinfo, "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    return -1


def same_mount(descriptor: int, directory: str) -> bool:
    """Whether an open file lies in the mount of a directory."""
    other = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        own, others = (_mount_id(f"/proc/self/fdinfo/{number}") for number in (descriptor, other))
        return own == others
    finally:
        os.close(other)
