"""The difference between two machines, as data and as text for models and people."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Any, Final, Literal

FactKind = Literal["debian", "python", "process", "variable"]

_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
}

_HEADINGS: Final = {
    "debian": "Debian packages",
    "python": "Python packages",
    "process": "Processes",
    "variable": "Variables",
}

_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a path is in one machine."""

    mode: int
    """Type and permissions, as in ``st_mode``."""
    size: int
    """The size of a file in bytes, of all files below a directory whose entries are only counted,
    or the number of a device; else 0."""
    owner: tuple[int, int]
    """User and group."""
    target: str
    """The target of a symlink; else empty."""

    @property
    def kind(self) -> str:
        """``file``, ``directory``, ``symlink``, …, or ``unknown``."""
        return _KINDS.get(stat.S_IFMT(self.mode), "unknown")


@dataclass(frozen=True, slots=True)
class FileChange:
    """A path that differs between the machines: added without an `old`, removed without a `new`."""

    path: str
    """Bytes that are not UTF-8 are surrogates, as in `os.fsdecode`."""
    old: Entry | None
    new: Entry | None
    content: bool
    """Whether the contents are known to differ."""
    below: int
    """The number of entries below it that were added or removed with it and are not listed."""
    diff: str
    """A unified diff without its header; empty if there is none."""

    @property
    def text(self) -> str:
        """The change in one line, without `diff`."""
        shape = self.new or self.old
        assert shape
        name = printable(self.path)
        if self.old and self.new:
            return f"~ {name} ({', '.join(self._aspects(self.old, self.new))})"
        sign = "+" if self.new else "-"
        if self.below:
            return f"{sign} {name}/ ({self.below:,} entries, {_size(shape.size)})"
        facts = {"file": f" ({_size(shape.size)})", "directory": "/"}
        facts["symlink"] = f" -> {printable(shape.target)}"
        return f"{sign} {name}{facts.get(shape.kind, f' ({shape.kind})')}"

    def as_json(self) -> dict[str, str]:
        """The same as JSON."""
        change = "added" if self.old is None else "removed" if self.new is None else "changed"
        fields = {"path": printable(self.path), "change": change, "summary": self.text}
        return {**fields, "diff": self.diff} if self.diff else fields

    def _aspects(self, old: Entry, new: Entry) -> list[str]:
        if old.kind != new.kind:
            more = f" with {self.below:,} entries" if self.below else ""
            return [f"{old.kind} → {new.kind}{more}"]
        aspects: list[str] = []
        if old.size != new.size:
            aspects.append(f"{_size(old.size)} → {_size(new.size)}")
        elif self.content:
            aspects.append("content")
        if old.target != new.target:
            aspects.append(f"{printable(old.target)} → {printable(new.target)}")
        if old.mode != new.mode:
            aspects.append(f"mode {stat.S_IMODE(old.mode):04o} → {stat.S_IMODE(new.mode):04o}")
        if old.owner != new.owner:
            aspects.append("owner {}:{} → {}:{}".format(*old.owner, *new.owner))
        return aspects


@dataclass(frozen=True, slots=True)
class FactChange:
    """A package, a process or a variable that differs between the machines."""

    kind: FactKind
    name: str
    """A Python package includes its directory, a process is named by its command line."""
    old: str | None
    """A version, a number of processes, or a variable's type and value."""
    new: str | None

    @property
    def text(self) -> str:
        """The change in one line."""
        name = printable(self.name)
        if self.old is None or self.new is None:
            value = printable(self.old or self.new or "")
            sign = "+" if self.old is None else "-"
            if self.kind == "process":
                return f"{sign} {name}" + (f" ({value} times)" if value != "1" else "")
            return f"{sign} {name}{':' if self.kind == 'variable' else ''} {value}"
        return f"~ {name}: {printable(self.old)} → {printable(self.new)}"

    def as_json(self) -> dict[str, str]:
        """The same as JSON."""
        fields = {"kind": self.kind, "name": self.name, "old": self.old, "new": self.new}
        return {name: printable(value) for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Difference:
    """How the second of two machines differs from the first."""

    files: tuple[FileChange, ...]
    """Ordered by path. If there are many, only the first ones."""
    facts: tuple[FactChange, ...]
    counts: dict[str, int]
    """The number of all ``added``, ``removed``, ``changed`` and ``unread`` paths, and of changes of
    each kind of fact, including those that are not listed."""
    unread: tuple[str, ...]
    """Paths that could not be read, and so not be compared."""
    skipped: tuple[str, ...]
    """Paths, and names in any directory, that were not compared."""
    notes: tuple[str, ...] = ()
    """Sentences on what else was not compared."""

    @property
    def text(self) -> str:
        """Everything as text: paths, packages, processes, variables, then diffs."""
        blocks = [self._files(), *map(self._facts, _HEADINGS), "\n".join(self._remarks())]
        blocks += [f"--- {printable(c.path)}\n{c.diff.rstrip()}" for c in self.files if c.diff]
        return "\n\n".join(block for block in blocks if block)

    def as_json(self) -> dict[str, Any]:
        """The same as JSON. Values that are None, empty or 0 are left out."""
        return {
            "counts": {name: count for name, count in self.counts.items() if count},
            "files": [change.as_json() for change in self.files],
            "facts": [fact.as_json() for fact in self.facts],
            "notes": self._remarks(),
        }

    def _files(self) -> str:
        counts = [self.counts.get(name, 0) for name in ("added", "removed", "changed")]
        if not any(counts):
            return "Files: no difference"
        listed = sum(1 + change.below for change in self.files)
        head = "Files: {:,} added, {:,} removed, {:,} changed".format(*counts)
        return _block(head, [change.text for change in self.files], sum(counts) - listed)

    def _facts(self, kind: str) -> str:
        lines = [fact.text for fact in self.facts if fact.kind == kind]
        return _block(_HEADINGS[kind], lines, self.counts.get(kind, 0) - len(lines))

    def _remarks(self) -> list[str]:
        """Sentences on what was not compared."""
        remarks = [*self.notes, f"Not compared: {', '.join(self.skipped)}."]
        if self.unread:
            more = self.counts.get("unread", 0) - len(self.unread)
            named = ", ".join(map(printable, self.unread))
            remarks.insert(0, f"Cannot be read: {named}" + (f", and {more} more." if more else "."))
        return remarks


def printable(text: str) -> str:
    """Text from a machine on one line and without control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _block(head: str, lines: list[str], left_out: int) -> str:
    if left_out > 0:
        lines = [*lines, f"… and {left_out:,} more"]
    return "\n".join([head, *lines]) if lines else ""


def _size(size: int) -> str:
    unit = min(max(0, (size.bit_length() - 1) // 10), len(_UNITS) - 1)
    return f"{size:,} bytes" if not unit else f"{size / 1024**unit:.1f} {_UNITS[unit]}"
