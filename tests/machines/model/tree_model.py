"""What a file tree should look like after any changes: the model that machines are held against.

Each change of `tree_guest` has a method of the same name. What cannot be known beforehand, such as
the time of a change that was just made, is None until it is taken over from the machine; from then
on it must not change any more.
"""

from __future__ import annotations

import copy
import hashlib
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PAGE: Final = 4096
"""Bytes that a file system gives out at once."""

SLACK: Final = 4 * PAGE
"""What a file may take up besides its content: attributes, and the map of its blocks."""

COPIED: Final = 1 << 20
"""Bytes that overlayfs copies at once: it leaves no hole that begins within so many bytes."""

SET_ID: Final = stat.S_ISUID | stat.S_ISGID

CAPABILITY: Final = "security.capability"
"""An attribute that the kernel removes when a file's content changes."""

Facts = dict[str, Any]
Listing = dict[str, Facts]
"""What is known of each path."""


class Refused(Exception):
    """A change that the kernel must refuse as well."""


@dataclass(slots=True, eq=False)
class Inode:
    """A file of any kind, whatever names it has."""

    mode: int
    time: int | None = None
    xattrs: dict[str, str] = field(default_factory=dict[str, str])
    frozen: bool = False
    """Whether it may lie in a layer that is never written again."""
    renumbered: bool = False
    """Whether it was copied up: overlayfs goes on to show the old number of such a file for the
    name that it had, but the new one for every name that it is given."""

    kind = 0

    def learn(self, found: Facts) -> None:
        """Take over what could not be known."""
        if self.time is None:
            self.time = found["time"]

    def facts(self) -> Facts:
        return {"kind": self.kind, "mode": self.mode, "time": self.time, "xattrs": self.xattrs}


@dataclass(slots=True, eq=False)
class File(Inode):
    content: bytes = b""
    pages: frozenset[int] = frozenset()
    """Those that were ever written; the others are holes."""
    touched: bool = False
    """Whether the kernel may have taken its set-id bits away, as its content has changed."""

    kind = stat.S_IFREG

    def patch(self, offset: int, data: bytes) -> None:
        padded = self.content.ljust(offset, b"\0")
        self.content = padded[:offset] + data + padded[offset + len(data) :]
        self.pages |= set(range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1))
        self.touch()

    def copy_up(self) -> None:
        """What overlayfs does before the first change: it writes as much at once as `COPIED`."""
        last = len(self.content) // PAGE
        filled = {copied for page in self.pages for copied in range(page, page + COPIED // PAGE)}
        self.pages = frozenset(page for page in filled if page <= last)

    def resize(self, size: int) -> None:
        self.content = self.content[:size].ljust(size, b"\0")
        self.pages = frozenset(page for page in self.pages if page * PAGE < size)
        self.touch()

    def touch(self) -> None:
        self.time = None
        self.touched = True
        self.xattrs.pop(CAPABILITY, None)

    def learn(self, found: Facts) -> None:
        Inode.learn(self, found)
        if self.touched and found.get("mode") == self.mode & ~SET_ID:
            self.mode &= ~SET_ID
        self.touched = False

    def facts(self) -> Facts:
        digest = hashlib.sha256(self.content).hexdigest()
        return {**Inode.facts(self), "size": len(self.content), "digest": digest}


@dataclass(slots=True, eq=False)
class Directory(Inode):
    entries: dict[str, Inode] = field(default_factory=dict[str, Inode])

    kind = stat.S_IFDIR


@dataclass(slots=True, eq=False)
class Symlink(Inode):
    target: str = ""

    kind = stat.S_IFLNK

    def facts(self) -> Facts:
        return {"kind": self.kind, "mode": 0o777, "time": self.time, "target": self.target}


@dataclass(slots=True, eq=False)
class Fifo(Inode):
    kind = stat.S_IFIFO


Kind = TypeVar("Kind", bound=Inode)


class Tree:
    """Some numbered directories and all below them."""

    def __init__(self, roots: int, *, copies_up: bool) -> None:
        """`copies_up` says that a file is copied when it is first changed after a commit."""
        self._top = Directory(0o755, entries={str(n): Directory(0o755) for n in range(roots)})
        self._copies_up = copies_up

    def copy(self) -> Tree:
        """The same tree in another machine or in a commit: all of it is frozen there."""
        other = copy.deepcopy(self)
        other.freeze()
        return other

    def freeze(self) -> None:
        """Note that what is there now may lie in a layer that is never written again."""
        for inode in self.paths().values():
            inode.frozen, inode.renumbered = True, False

    # Looking

    def paths(self, *kinds: type[Inode]) -> dict[str, Inode]:
        """Everything of these kinds (or any), by its path; the roots come first."""
        return {
            path: inode for path, inode in _walk(self._top) if isinstance(inode, kinds or Inode)
        }

    def is_ambiguous(self, directory: str) -> bool:
        """Whether it cannot be known which names in a copy of this directory would be one file."""
        found = {path: inode for path, inode in _walk(self._top) if inode.renumbered}
        return any(
            path.startswith(f"{directory}/") for group in _names_together(found) for path in group
        )

    def listing(self) -> Listing:
        """What a machine should tell, as far as it is known."""
        return {path: inode.facts() for path, inode in _walk(self._top)}

    def compare(self, found: Listing) -> None:
        """Hold what a machine tells against this tree, and learn what could not be known."""
        paths = self.paths()
        for path, inode in paths.items():
            if path in found:
                inode.learn(found[path])
        wanted = self.listing()
        assert {path: _only(facts, wanted.get(path, facts)) for path, facts in found.items()} == (
            wanted
        )
        numbers = _names_together({path: tuple(facts["inode"]) for path, facts in found.items()})
        names = _names_together(paths)
        sure = {group for group in names if not paths[min(group)].renumbered}
        assert sure <= numbers
        assert all(any(group <= whole for whole in names) for group in numbers)
        assert len({tuple(facts["owner"]) for facts in found.values()}) == 1
        for path, inode in paths.items():
            if isinstance(inode, File):
                assert found[path]["room"] <= len(inode.pages) * PAGE + SLACK, f"{path} is filled"

    # Changing: each raises Refused where a machine must refuse it

    def write(self, path: str, text: str) -> None:
        directory, name = self._place(path)
        if name not in directory.entries:
            self._add(path, File(0o644))
        file = self._own(path, File)
        file.resize(0)
        file.patch(0, text.encode())

    def append(self, path: str, text: str) -> None:
        file = self._own(path, File)
        file.patch(len(file.content), text.encode())

    def patch(self, path: str, offset: int, text: str) -> None:
        self._own(path, File).patch(offset, text.encode())

    def truncate(self, path: str, size: int) -> None:
        self._own(path, File).resize(size)

    def mkdir(self, path: str) -> None:
        self._add(path, Directory(0o755))

    def mkfifo(self, path: str) -> None:
        self._add(path, Fifo(0o644))

    def symlink(self, path: str, target: str) -> None:
        self._add(path, Symlink(0o777, target=target))

    def link(self, path: str, other: str) -> None:
        if isinstance(self._find(path), Directory):
            raise Refused
        self._require_free(other)
        self._add(other, self._own(path, Inode))

    def unlink(self, path: str) -> None:
        if isinstance(self._find(path), Directory):
            raise Refused
        self._remove(path)

    def rmdir(self, path: str) -> None:
        directory = self._find(path)
        if not isinstance(directory, Directory) or directory.entries:
            raise Refused
        self._remove(path)

    def rmtree(self, path: str) -> None:
        self._find(path)
        self._remove(path)

    def rename(self, path: str, other: str, *, copied: bool = False) -> None:
        """Rename; with `copied`, the machine has made a copy and removed the original."""
        inode = self._find(path)
        directory, name = self._place(other)
        if path == other:
            return
        if other.startswith(f"{path}/"):
            raise Refused
        taken = directory.entries.get(name)
        if taken is not None and not _gives_way(taken, inode):
            raise Refused
        if copied:
            inode = copy.deepcopy(inode)
            for _, below in ("", inode), *_walk(inode):
                below.frozen = below.renumbered = False
        elif not isinstance(inode, Directory):
            inode = self._own(path, Inode)
        if inode is not taken:
            self._remove(path)
            directory.entries.pop(name, None)
            self._add(other, inode)

    def chmod(self, path: str, mode: int) -> None:
        self._own(path, Inode).mode = mode

    def utime(self, path: str, time: int) -> None:
        self._own(path, Inode).time = time

    def setxattr(self, path: str, name: str, value: str) -> None:
        self._bearer(path).xattrs[name] = value

    def removexattr(self, path: str, name: str) -> None:
        if name not in self._bearer(path).xattrs:
            raise Refused
        del self._own(path, Inode).xattrs[name]

    # Helpers

    def _find(self, path: str) -> Inode:
        inode: Inode = self._top
        for name in path.split("/"):
            if not isinstance(inode, Directory) or name not in inode.entries:
                raise Refused
            inode = inode.entries[name]
        return inode

    def _place(self, path: str) -> tuple[Directory, str]:
        above, _, name = path.rpartition("/")
        directory = self._find(above) if above else self._top
        if not isinstance(directory, Directory):
            raise Refused
        return directory, name

    def _require_free(self, path: str) -> None:
        directory, name = self._place(path)
        if name in directory.entries:
            raise Refused

    def _add(self, path: str, inode: Inode) -> None:
        self._require_free(path)
        directory, name = self._place(path)
        directory.entries[name] = inode
        directory.time = None

    def _remove(self, path: str) -> None:
        directory, name = self._place(path)
        del directory.entries[name]
        directory.time = None

    def _own(self, path: str, kind: type[Kind]) -> Kind:
        """What has this name, to be changed."""
        inode = self._find(path)
        if not isinstance(inode, kind):
            raise Refused
        if inode.frozen and self._copies_up and not isinstance(inode, Directory):
            inode = self._copy_up(path, inode)
        return inode

    def _copy_up(self, path: str, inode: Kind) -> Kind:
        """Copy a file to where it can be written: other names of it stay behind."""
        directory, name = self._place(path)
        copied = copy.deepcopy(inode)
        copied.frozen, copied.renumbered = False, True
        if isinstance(copied, File):
            copied.copy_up()
        directory.entries[name] = copied
        return copied

    def _bearer(self, path: str) -> Inode:
        if not isinstance(self._find(path), File | Directory):
            raise Refused
        return self._own(path, Inode)


def _gives_way(taken: Inode, inode: Inode) -> bool:
    """Whether a rename may replace the one by the other."""
    if isinstance(taken, Directory):
        return isinstance(inode, Directory) and not taken.entries
    return not isinstance(inode, Directory)


def _walk(inode: Inode, above: str = "") -> Iterator[tuple[str, Inode]]:
    """Everything below a directory, with its path."""
    if isinstance(inode, Directory):
        for name, entry in inode.entries.items():
            yield above + name, entry
            yield from _walk(entry, f"{above}{name}/")


def _only(facts: Facts, wanted: Facts) -> Facts:
    """Those facts that are asked for."""
    return {name: value for name, value in facts.items() if name in wanted}


def _names_together(inodes: Mapping[str, object]) -> set[frozenset[str]]:
    """The names of each file that has several."""
    names: defaultdict[object, set[str]] = defaultdict(set)
    for path, inode in inodes.items():
        names[inode].add(path)
    return {frozenset(group) for group in names.values() if len(group) > 1}
