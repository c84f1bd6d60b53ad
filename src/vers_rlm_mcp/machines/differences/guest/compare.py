"""Compares two machines, as three programs that each read the output of the one before.

    list     in the first machine: lists everything, in order
    compare  in the second: finds what differs, with evidence if only the times do
    explain  in the first again: decides what really differs, and how

So no list is held in memory, and only the machines spend time on comparing.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import time
from collections import Counter

from .tree import END, ROOT, decoded, digest, encoded, key, open_file, read_list, walk, write_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

RECENT_SECONDS = 24 * 3600
"""Two copies may have written one file in the same tick of the clock, and as many bytes. So files
are compared by content even if their times agree, up to this age…"""

RECENT_BYTES = 1024 * 1024
"""…and this size: more is not written in one tick."""

FEW = 20
"""Entries of a directory of only one machine that are listed one by one. More are summed up."""

TEXT_BYTES = 64 * 1024
"""Bytes of a file whose lines are compared."""

TEXT_LINES = 2000
"""Lines of such a file. Comparing more takes long if they repeat."""

TEXTS_BYTES = 8 * 1024 * 1024
"""Lines of all such files together."""

MAX_COMMAND = 200
"""Characters of a process's command line."""

DISTRIBUTION = re.compile(rb"(.+?)-(\d[^-]*)(?:-py[\d.]+)?\.(?:dist|egg)-info")
"""The directory that names a Python package beside it, and its version."""


def perform(command: str, options: dict[str, Any]) -> None:
    """Act as lister, comparer or explainer."""
    if command == "list":
        for record in listing(options):
            write_line(record)
    elif command == "compare":
        compare(pairs(read_list(), listing(options)))
    else:
        Explanation(options).explain()
    write_line(END)


def listing(options: dict[str, Any]) -> Iterator[Any]:
    """Records of files, then facts, ``[name, value]``, all in the order of `key`."""
    facts = {"debian/" + name: version for name, version in debian_packages()}
    commands = Counter(running_commands(options["own_programs"]))
    facts.update(("process/" + command, str(count)) for command, count in commands.items())
    for record in walk(options["roots"], options["skip"], options["skip_names"]):
        path = encoded(record[0])
        found = DISTRIBUTION.fullmatch(os.path.basename(path))
        if found:
            place = decoded(os.path.dirname(path))
            facts[f"python/{decoded(found[1])} in {place}"] = decoded(found[2])
        yield record
    for name in sorted(facts, key=key):
        yield [name, facts[name]]


def debian_packages() -> Iterator[tuple[str, str]]:
    """Names and versions of the packages that dpkg has installed."""
    fields: dict[bytes, bytes] = {}
    try:
        with open(ROOT + b"/var/lib/dpkg/status", "rb") as file:
            for line in file:
                if line[:1] not in (b" ", b"\n"):
                    name, _, value = line.partition(b":")
                    fields[name] = value.strip()
                elif line == b"\n":
                    yield from installed_package(fields)
                    fields = {}
    except OSError:
        return
    yield from installed_package(fields)


def installed_package(fields: dict[bytes, bytes]) -> Iterator[tuple[str, str]]:
    """The package that a paragraph of dpkg's file describes, if it is installed."""
    if fields.get(b"Status", b"").endswith(b" installed"):
        yield decoded(fields.get(b"Package", b"")), decoded(fields.get(b"Version", b""))


def running_commands(own: list[str]) -> Iterator[str]:
    """The command lines of processes, except the machine's first one and ours.

    Ours have an argument that begins with one of `own`.
    """
    for pid in os.listdir(ROOT + b"/proc") if os.path.isdir(ROOT + b"/proc") else ():
        words = arguments(pid) if pid.isdigit() and pid != b"1" else []
        if words and not any(decoded(word).startswith(tuple(own)) for word in words):
            yield decoded(b" ".join(words))[:MAX_COMMAND]


def arguments(pid: bytes) -> list[bytes]:
    """A process's arguments; none if it has ended or is a kernel thread."""
    try:
        with open(b"/proc/" + pid + b"/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0")
    except OSError:
        return []
    return words.split(b"\0") if words else []


def pairs(theirs: Iterator[Any], ours: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """Pairs of the records of both sides; None for what only the other side has."""
    old, new = next(theirs, None), next(ours, None)
    while old or new:
        if old and (not new or key(old[0]) < key(new[0])):
            yield old, None
            old = next(theirs, None)
        elif new and (not old or key(new[0]) < key(old[0])):
            yield None, new
            new = next(ours, None)
        else:
            yield old, new
            old, new = next(theirs, None), next(ours, None)


def compare(found: Iterable[tuple[Any, Any]]) -> None:
    """Write what differs, as lines whose first word is `fact`, `file` or `unread`."""
    proofs = Proofs()
    whole: Whole | None = None
    for old, new in found:
        if whole and whole.add(old, new):
            continue
        if whole:
            whole.write()
        whole = None
        name, *facts = old or new
        if len(facts) == 1:
            if old != new:
                write_line(["fact", name, old and old[1], new and new[1]])
        elif is_directory(old) != is_directory(new):
            whole = Whole(old, new)
        else:
            compare_files(old, new, proofs)
    if whole:
        whole.write()


def compare_files(old: Any, new: Any, proofs: Proofs) -> None:
    """Write a path that is no directory, or a directory on both sides."""
    if not (old or new)[6] or not (new or old)[6]:
        write_line(["unread", (old or new)[0]])
        if not ((old or new)[1] and (new or old)[1]):
            return
    proof = proofs.make(old, new) if old and new and is_file(old) and is_file(new) else None
    if old is None or new is None or proof or compared_fields(old) != compared_fields(new):
        write_line(["file", old, new, 0, proof])


def compared_fields(record: Any) -> Any:
    """What is compared of a path besides content: mode, size, owner and target."""
    return [record[1], record[2], record[4], record[5]]


def is_directory(record: Any) -> bool:
    """Whether there is a record, of a directory."""
    return record is not None and len(record) > 2 and stat.S_ISDIR(record[1])


def is_file(record: Any) -> bool:
    """Whether it is a record of a regular file."""
    return stat.S_ISREG(record[1])


class Whole:
    """A directory that only one machine has, with all that is below it."""

    def __init__(self, old: Any, new: Any) -> None:
        self._first = (old, new)
        self._below = key((old or new)[0]) + b"\0"
        self._items: list[tuple[Any, Any]] = []
        self._count = self._size = 0

    def add(self, old: Any, new: Any) -> bool:
        """Add a record from below the directory; returns False for any other."""
        record = old or new
        if not key(record[0]).startswith(self._below):
            return False
        if not record[6]:
            write_line(["unread", record[0]])
        self._count += 1
        self._size += record[2] if is_file(record) else 0
        if self._count <= FEW:
            self._items.append((old, new))
        return True

    def write(self) -> None:
        """Write each record, or the directory alone with the sum of all sizes."""
        old, new = self._first
        if self._count > FEW:
            (old if is_directory(old) else new)[2] = self._size
            write_line(["file", old, new, self._count, None])
            return
        for pair in (self._first, *self._items):
            write_line(["file", *pair, 0, None])


class Proofs:
    """Evidence by which the other machine finds out whether a file's content is the same."""

    def __init__(self) -> None:
        self._recent = (time.time() - RECENT_SECONDS) * 1e9
        self._texts = 0

    def make(self, old: Any, new: Any) -> Any:
        """Evidence: a kind (text, digest, size, unread) and its value; None without a doubt."""
        lately = new[3] > self._recent and new[2] <= RECENT_BYTES
        if old[2:4] == new[2:4] and not lately:
            return None
        try:
            text = None
            if old[2:4] != new[2:4] and self._texts < TEXTS_BYTES:
                text = text_of(new[0])
            if text is not None:
                self._texts += len(text)
                return ["text", text]
            if old[2] != new[2]:
                return ["size", ""]
            return ["digest", digest(ROOT + encoded(new[0]))]
        except OSError:
            return ["unread", ""]


def text_of(path: str) -> str | None:
    """The content of a file that is text, and short enough for its lines to be compared."""
    file = open_file(ROOT + encoded(path))
    try:
        size = os.fstat(file).st_size
        data = os.pread(file, TEXT_BYTES, 0) if size <= TEXT_BYTES else b"\0"
    finally:
        os.close(file)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text or text.count("\n") > TEXT_LINES else text


class Explanation:
    """Describes how each finding differs, as long as there is room."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._limit: int = options["limit"]
        self._diff_chars: int = options["diff_chars"]
        self._file_chars: int = options["file_diff_chars"]
        self._counted: list[str] = options["counted"]
        self._lines: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def explain(self) -> None:
        """Read findings, write what remains of them, and finally the number of each kind."""
        for form, *finding in read_list():
            if form == "file":
                self._explain_file(*finding)
            elif form == "unread":
                self._write(form, [form, *finding])
            else:
                self._write(finding[0].partition("/")[0], [form, *finding])
        write_line(["counts", *(self._counts[kind] for kind in self._counted)])

    def _explain_file(self, old: Any, new: Any, below: int, proof: Any) -> None:
        """Write a path, unless only its time differs."""
        changed, diff = self._examine(old[0], *proof) if proof else (False, "")
        if old and new and not changed and compared_fields(old) == compared_fields(new):
            return
        kind = "changed" if old and new else "removed" if old else "added"
        self._write(kind, ["file", old, new, below, changed, diff], 1 + below)

    def _examine(self, path: str, form: str, theirs: str) -> tuple[bool, str]:
        """Whether a file's content differs, and how, from what is known of the other's."""
        try:
            if form == "size":
                return True, ""
            if form == "digest":
                return digest(ROOT + encoded(path)) != theirs, ""
            if form == "text":
                ours = text_of(path)
                return ours != theirs, self._diff(ours, theirs) if ours is not None else ""
        except OSError:
            pass
        self._write("unread", ["unread", path])
        return False, ""

    def _diff(self, ours: str, theirs: str) -> str:
        """A unified diff, as far as there is room for it."""
        room = min(self._file_chars, self._diff_chars)
        if room <= 0 or self._lines["changed"] >= self._limit:
            return ""
        lines = list(difflib.unified_diff(ours.split("\n"), theirs.split("\n"), lineterm=""))[2:]
        text, count = "", 0
        while count < len(lines) and len(text) + len(lines[count]) < room:
            text, count = text + lines[count] + "\n", count + 1
        if count < len(lines):
            text += f"… {len(lines) - count} more lines\n"
            self._diff_chars = self._diff_chars - len(text) if room < self._diff_chars else 0
        else:
            self._diff_chars -= len(text)
        return text

    def _write(self, kind: str, line: Any, count: int = 1) -> None:
        """Write one more of a kind, or only count it."""
        if self._lines[kind] < self._limit:
            write_line(line)
        self._lines[kind] += 1
        self._counts[kind] += count
