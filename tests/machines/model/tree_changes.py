"""Draws changes of a tree that are likely to do something, and now and then must be refused."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st
from tree_model import CAPABILITY, Directory, File, Inode, Refused, Symlink, Tree

if TYPE_CHECKING:
    from subjects import Subject

Change = list[Any]
"""A name of `tree_guest`, and its arguments."""

NAMES: Final = ("a", "b", "c", "d e", "-n", ".wh.a", "ü\n", "\udcff", "x" * 255)
TEXTS: Final = st.integers(0, 3).flatmap(
    lambda power: st.text("xyz\n", min_size=1, max_size=5).map(lambda text: text * 40**power)
)
OFFSETS: Final = st.sampled_from((0, 1, 4096, 70_000, 1 << 20))
SIZES: Final = st.sampled_from((0, 1, 5000, 300_000, 3 << 20))
TARGETS: Final = st.sampled_from(("a", "../b", "nowhere", "/etc/passwd", "."))
FILE_MODES: Final = (0o600, 0o640, 0o755, 0o666)
ODD_FILE_MODES: Final = (0o000, 0o4755, 0o6711)
DIRECTORY_MODES: Final = (0o700, 0o755, 0o1777)
ODD_DIRECTORY_MODES: Final = (0o000, 0o555)
TIMES: Final = st.sampled_from((0, 1, 981_173_106_789_000_001, 2_000_000_000_000_000_000))
ATTRIBUTES: Final = ("user.a", "user.b", "user.overlay.opaque")
VALUES: Final = st.sampled_from(("", "79", "00ff" * 100))

NET_RAW: Final = bytes.fromhex("0100000200200000000000000000000000000000").hex()
"""A file capability as the kernel stores it: version 2, effective, CAP_NET_RAW."""

KINDS: Final = (
    "write", "append", "patch", "truncate", "mkdir", "mkfifo", "symlink", "link", "unlink", "rmdir",
    "rmtree", "rename", "chmod", "utime", "setxattr", "capability", "removexattr",
)  # fmt: skip
OFTEN: Final = ("write", "mkdir", "rename", "rename", "rmtree", "link")


class Changes:
    """Draws changes one after the other, each with those before in mind."""

    def __init__(self, data: st.DataObject, tree: Tree, subject: Subject) -> None:
        self._data = data
        self._tree = copy.deepcopy(tree)
        self._odd = not subject.obeys_modes()

    def draw(self) -> Change:
        """The next change."""
        kind: str = self._data.draw(st.sampled_from(OFTEN + KINDS), label="kind")
        change: Change = getattr(self, f"_{kind}")()
        with contextlib.suppress(Refused):
            getattr(self._tree, change[0])(*change[1:])
        return change

    def _write(self) -> Change:
        return ["write", self._target(), self._data.draw(TEXTS)]

    def _append(self) -> Change:
        return ["append", self._some(File), self._data.draw(TEXTS)]

    def _patch(self) -> Change:
        return ["patch", self._some(File), self._data.draw(OFFSETS), self._data.draw(TEXTS)]

    def _truncate(self) -> Change:
        return ["truncate", self._some(File), self._data.draw(SIZES)]

    def _mkdir(self) -> Change:
        return ["mkdir", self._target()]

    def _mkfifo(self) -> Change:
        return ["mkfifo", self._target()]

    def _symlink(self) -> Change:
        return ["symlink", self._target(), self._data.draw(TARGETS)]

    def _link(self) -> Change:
        path = self._some(File)
        return ["link", path, self._target(root=path[0])]

    def _unlink(self) -> Change:
        return ["unlink", self._some()]

    def _rmdir(self) -> Change:
        return ["rmdir", self._some(Directory)]

    def _rmtree(self) -> Change:
        return ["rmtree", self._some()]

    def _rename(self) -> Change:
        path = self._some(*self._data.draw(st.sampled_from(((), (Directory,)))))
        if self._tree.is_ambiguous(path):
            return ["rmtree", path]
        return ["rename", path, self._target()]

    def _chmod(self) -> Change:
        if self._data.draw(st.booleans()):
            modes = DIRECTORY_MODES + ODD_DIRECTORY_MODES * self._odd
            return ["chmod", self._some(Directory, roots=True), self._one(modes)]
        return ["chmod", self._some(File), self._one(FILE_MODES + ODD_FILE_MODES * self._odd)]

    def _utime(self) -> Change:
        kinds = self._one((File, Directory, Symlink))
        return ["utime", self._some(kinds, roots=True), self._data.draw(TIMES)]

    def _setxattr(self) -> Change:
        path = self._some(File, Directory, roots=True)
        return ["setxattr", path, self._one(ATTRIBUTES), self._data.draw(VALUES)]

    def _capability(self) -> Change:
        return ["setxattr", self._some(File), CAPABILITY, NET_RAW]

    def _removexattr(self) -> Change:
        return ["removexattr", self._some(File, Directory, roots=True), self._one(ATTRIBUTES)]

    def _one(self, choices: tuple[Any, ...]) -> Any:
        return self._data.draw(st.sampled_from(choices))

    def _some(self, *kinds: type[Inode], roots: bool = False) -> str:
        """A path of one of these kinds if there is any, else one that does not exist."""
        paths = [path for path in self._tree.paths(*kinds) if roots or "/" in path]
        return self._data.draw(st.sampled_from(paths or ["0/missing"]), label="path")

    def _target(self, root: str = "") -> str:
        """A path that may exist or not, mostly of a directory that does."""
        places = [path for path in self._tree.paths(Directory) if path.startswith(root)]
        return f"{self._one(tuple(places))}/{self._one(NAMES)}"
