"""Compares two running machines."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any, Final

from vers_rlm_mcp.errors import MachineError

from ..code import LOADER_MARK
from ..paths import check_path
from .changes import Difference, Entry, FactChange, FileChange, printable
from .guest_programs import Guest, Program, work_with

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyio.abc import TaskGroup

    from ..base import Machine

SKIPPED: Final = ("/dev", "/proc", "/run", "/sys", "/tmp/.vers-rlm", "/workspace/.vers-rlm")  # noqa: S108 - in a machine
"""What belongs to the kernel or to us, such as saved variables."""

SKIPPED_NAMES: Final = ("__pycache__",)
"""Directories whose content can be made again."""

OWN_PROGRAMS: Final = ("/run/vers-rlm/", "/tmp/.vers-rlm/")  # noqa: S108 - in a machine
"""Where the programs lie that this server runs in machines."""

MAX_ENTRIES: Final = 100
"""Changes of each kind that are listed by default: some 5,000 tokens."""

MAX_DIFF_CHARS: Final = 20_000
"""Characters of all diffs by default: some 5,000 tokens."""

FILE_DIFF_CHARS: Final = 4_000
"""Characters of the diff of one file, so that a rewritten one leaves room for others."""

SECONDS: Final = 120.0
"""A Debian system takes a second or two, a machine with a million files most of this."""

MAX_TEXT: Final = 8192
"""Characters of a path or a fact: more than Linux allows in a path."""

SLACK: Final = 1000
"""Characters of lines that say how much was left out."""

MAX_NUMBER: Final = 2**64
"""An upper bound of sizes, owners and counts."""

COUNTED: Final = ("added", "removed", "changed", "unread", "debian", "python", "process")
"""The keys of `Difference.counts`."""


async def diff(
    first: Machine,
    second: Machine,
    *,
    roots: Sequence[str] = ("/",),
    max_entries: int = MAX_ENTRIES,
    max_diff_chars: int = MAX_DIFF_CHARS,
    seconds: float = SECONDS,
) -> Difference:
    """Compare the files, packages and processes of two machines.

    Paths are compared by type, permissions, owner, size, link target and content, not by times,
    inode numbers, hard links or extended attributes. Files of the same size and modification time
    (in ns) are taken to be the same, unless they are small and less than a day old: copies of a
    machine keep the times of files. A program that changes a file and resets its time is not
    detected. A directory that only one machine has is listed with its entries if they are few, and
    else with their number.

    Nothing that a machine sends is trusted; one that lies only spoils the result. Each machine
    learns file names of the other, and the text of short files that differ.

    Args:
        first: The machine as it was.
        second: The machine as it is now.
        roots: The directories to compare, including all file systems below them.
        max_entries: Changes of each kind to list. The rest is counted.
        max_diff_chars: Characters of all diffs together.
        seconds: How long it may take.

    Raises:
        PathRefused: One of `roots` is not an absolute path.
        MachineError: A machine has no Python, it took too long, or an answer makes no sense.
    """
    options = {
        "roots": _outermost(roots),
        "skip": SKIPPED,
        "skip_names": SKIPPED_NAMES,
        "own_programs": [*OWN_PROGRAMS, LOADER_MARK],
        "limit": max_entries,
        "diff_chars": max_diff_chars,
        "file_diff_chars": FILE_DIFF_CHARS,
        "counted": COUNTED,
    }
    programs = [
        Program(first, "compare", "list", options),
        Program(second, "compare", "compare", options),
        Program(first, "compare", "explain", options),
    ]

    async def act(guests: Sequence[Guest], tasks: TaskGroup) -> Difference:
        listing, comparison, explanation = guests
        tasks.start_soon(listing.feed, comparison)
        tasks.start_soon(comparison.feed, explanation)
        try:
            return await _receive_difference(explanation, max_entries, max_diff_chars)
        except MachineError:
            for guest in guests:  # the first one that failed made the others fail
                if not await guest.has_succeeded():
                    raise await guest.failure() from None
            raise

    return await work_with(programs, act, seconds=seconds)


async def _receive_difference(guest: Guest, most: int, diff_chars: int) -> Difference:
    """Receive findings up to the line that ends them."""
    files: list[FileChange] = []
    facts: list[FactChange] = []
    unread: list[str] = []
    counts: dict[str, int] = {}
    while (line := await guest.receive()) != ["end"]:
        try:
            match line:
                case ["file", old, new, below, bool(content), diff]:
                    change = _file(
                        old, new, _number(below), content, _text(diff, FILE_DIFF_CHARS + SLACK)
                    )
                    files.append(change)
                    diff_chars -= len(change.diff)
                case ["fact", name, old, new]:
                    facts.append(_fact(_text(name), old, new))
                case ["unread", path]:
                    unread.append(_text(path))
                case ["counts", *numbers] if len(numbers) == len(COUNTED):
                    counts = dict(zip(COUNTED, map(_number, numbers), strict=True))
                case _:
                    raise guest.nonsense()
        except ValueError:
            raise guest.nonsense() from None
        if len(files) + len(facts) + len(unread) > most * len(COUNTED) or diff_chars < -SLACK:
            raise guest.nonsense()
    skipped = (*SKIPPED, *SKIPPED_NAMES)
    return Difference(tuple(files), tuple(facts), counts, tuple(unread), skipped)


def _file(old: Any, new: Any, below: int, content: bool, diff: str) -> FileChange:
    """The change of a path. Raises `ValueError` if the line is not one."""
    records = [record for record in (old, new) if record is not None]
    paths = {_text(record[0]) for record in records if isinstance(record, list) and record}
    if len(paths) != 1:
        raise ValueError
    before, after = old and _entry(old), new and _entry(new)
    return FileChange(paths.pop(), before, after, content, below, _printed(diff))


def _entry(record: Any) -> Entry:
    match record:
        case [_, mode, size, _, [user, group], target, _]:
            owner = _number(user), _number(group)
            return Entry(_number(mode), _number(size), owner, _text(target))
        case _:
            raise ValueError


def _fact(name: str, old: Any, new: Any) -> FactChange:
    kind, _, rest = name.partition("/")
    values = [None if value is None else _text(value) for value in (old, new)]
    if kind not in ("debian", "python", "process") or values == [None, None]:
        raise ValueError
    return FactChange(kind, rest, *values)


def _text(value: Any, most: int = MAX_TEXT) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise ValueError
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < MAX_NUMBER:
        raise ValueError
    return value


def _printed(text: str) -> str:
    """Lines of a file without control characters but tab and newline."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def _outermost(roots: Sequence[str]) -> list[str]:
    """The roots, normalized, without those that lie in another one."""
    for root in roots:
        check_path(root)
    plain = sorted({posixpath.normpath(root).replace("//", "/") for root in roots})
    return [
        root
        for root in plain
        if not any(root != other and root.startswith(other.rstrip("/") + "/") for other in plain)
    ]
