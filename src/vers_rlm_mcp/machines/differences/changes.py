"""What differs between two machines: data, and the text that a model or a person reads."""

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
    """What is at a path in one machine."""

    mode: int
    """Type and permissions, as in ``st_mode``."""
    size: int
    """Bytes of a file, or of all files below a directory whose entries are only counted; the number
    of a device; else 0."""
    owner: tuple[int, int]
    """User and group."""
    target: str
    """Of a symlink, else empty."""

    @property
    def kind(self) -> str:
        """What it is: ``file``, ``directory``, ``symlink``, …, or ``unknown``."""
        return _KINDS.get(stat.S_IFMT(self.mode), "unknown")


@dataclass(frozen=True, slots=True)
class FileChange:
    """A path that is not the same in both machines. It was added when there is no `old`."""

    path: str
    """Bytes that are not UTF-8 are surrogates, as `os.fsdecode` makes them."""
    old: Entry | None
    new: Entry | None
    content: bool
    """Whether the contents were seen to differ."""
    below: int
    """Entries below it that came or went with it and are not told of one by one."""
    diff: str
    """The lines that differ in the usual form, without a header; empty where they are unknown."""

    @property
    def text(self) -> str:
        """One line, without the lines that differ."""
        shape = self.new or self.old
        assert shape
        name = shown(self.path)
        if self.old and self.new:
            return f"~ {name} ({', '.join(self._aspects(self.old, self.new))})"
        sign = "+" if self.new else "-"
        if self.below:
            return f"{sign} {name}/ ({self.below:,} entries, {_size(shape.size)})"
        facts = {"file": f" ({_size(shape.size)})", "directory": "/"}
        facts["symlink"] = f" -> {shown(shape.target)}"
        return f"{sign} {name}{facts.get(shape.kind, f' ({shape.kind})')}"

    def as_json(self) -> dict[str, str]:
        """The same as values of JSON."""
        change = "added" if self.old is None else "removed" if self.new is None else "changed"
        fields = {"path": shown(self.path), "change": change, "summary": self.text}
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
            aspects.append(f"{shown(old.target)} → {shown(new.target)}")
        if old.mode != new.mode:
            aspects.append(f"mode {stat.S_IMODE(old.mode):04o} → {stat.S_IMODE(new.mode):04o}")
        if old.owner != new.owner:
            aspects.append("owner {}:{} → {}:{}".format(*old.owner, *new.owner))
        return aspects


@dataclass(frozen=True, slots=True)
class FactChange:
    """A package, a process or a variable that is not the same in both machines."""

    kind: FactKind
    name: str
    """Of a Python package: with the directory it is in. Of a process: its command line."""
    old: str | None
    """A version, how many processes there are, or a variable's type and value."""
    new: str | None

    @property
    def text(self) -> str:
        """One line."""
        name = shown(self.name)
        if self.old is None or self.new is None:
            value = shown(self.old or self.new or "")
            sign = "+" if self.old is None else "-"
            if self.kind == "process":
                return f"{sign} {name}" + (f" ({value} times)" if value != "1" else "")
            return f"{sign} {name}{':' if self.kind == 'variable' else ''} {value}"
        return f"~ {name}: {shown(self.old)} → {shown(self.new)}"

    def as_json(self) -> dict[str, str]:
        """The same as values of JSON."""
        fields = {"kind": self.kind, "name": self.name, "old": self.old, "new": self.new}
        return {name: shown(value) for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Difference:
    """How the second of two machines differs from the first."""

    files: tuple[FileChange, ...]
    """In the order of their paths; not all of them, if there are many."""
    facts: tuple[FactChange, ...]
    counts: dict[str, int]
    """How many there are, told or not: ``added``, ``removed``, ``changed`` paths, ``unread`` ones,
    and changes of each kind of fact."""
    unread: tuple[str, ...]
    """Paths that could not be compared because they cannot be read."""
    skipped: tuple[str, ...]
    """Paths, and names wherever they are, that were not looked at."""
    notes: tuple[str, ...] = ()
    """Whole sentences on what else was not compared."""

    @property
    def text(self) -> str:
        """All of it, grouped: paths, packages, processes, variables, then lines of files."""
        blocks = [self._files(), *map(self._facts, _HEADINGS), "\n".join(self._remarks())]
        blocks += [f"--- {shown(c.path)}\n{c.diff.rstrip()}" for c in self.files if c.diff]
        return "\n\n".join(block for block in blocks if block)

    def as_json(self) -> dict[str, Any]:
        """The same as values of JSON; what is None, empty or 0 is left out."""
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
        told = sum(1 + change.below for change in self.files)
        head = "Files: {:,} added, {:,} removed, {:,} changed".format(*counts)
        return _block(head, [change.text for change in self.files], sum(counts) - told)

    def _facts(self, kind: str) -> str:
        lines = [fact.text for fact in self.facts if fact.kind == kind]
        return _block(_HEADINGS[kind], lines, self.counts.get(kind, 0) - len(lines))

    def _remarks(self) -> list[str]:
        """Whole sentences on what is not known."""
        remarks = [*self.notes, f"Not compared: {', '.join(self.skipped)}."]
        if self.unread:
            more = self.counts.get("unread", 0) - len(self.unread)
            named = ", ".join(map(shown, self.unread))
            remarks.insert(0, f"Cannot be read: {named}" + (f", and {more} more." if more else "."))
        return remarks


def shown(text: str) -> str:
    """A path, or other text from a machine, on one line and without orders to a terminal."""
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
