"""Selects host files for a run: single ones, directories, and patterns such as ``data/*.csv``.

Files of a directory keep their paths below it. What its ``.gitignore`` files leave out is left out
here, too, and so is ``.git``; symbolic links in a directory are not followed.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from pathspec import GitIgnoreSpec

from vers_rlm_mcp.errors import InputError, PathRefused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAX_FILES: Final = 512
"""Files that one run may take: each is an open descriptor until the run ends."""

MOST_EXAMINED: Final = 100_000
"""Files and directories that are looked at before a selection is refused as too wide."""

NAME_MAX: Final = 255
"""Bytes in a file name, as on every common Linux file system."""

GIT: Final = ".git"
GITIGNORE: Final = ".gitignore"
MOST_GITIGNORE_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Selection:
    """Host files by their names in the machine, and sentences on what was left out."""

    files: dict[str, Path] = field(default_factory=dict[str, Path])
    notes: list[str] = field(default_factory=list[str])


Items: TypeAlias = "Sequence[str | Path | tuple[str, str]] | Mapping[str, str] | Mapping[str, Path]"
"""Paths and patterns, whose files keep their names, or names in the machine with paths."""


def select_files(items: Items, roots: Sequence[Path]) -> Selection:
    """Find the files that paths, directories and patterns stand for.

    Args:
        items: What to take. Files with the same name are told apart by their directories.
        roots: Directories, resolved, outside of which nothing is looked at.

    Raises:
        InputError: A name cannot be one in the machine, or there are too many files.
        PathRefused: A path is outside the allowed directories, or a pattern matches nothing.
    """
    pairs = items.items() if isinstance(items, Mapping) else items
    named = [each if isinstance(each, tuple) else (None, each) for each in pairs]
    found: list[tuple[str, Path, str]] = []
    selection = Selection()
    for name, item in named:
        _collect(name, str(item), roots, found, selection.notes)
    _name(found, selection)
    return selection


def _collect(
    name: str | None,
    item: str,
    roots: Sequence[Path],
    found: list[tuple[str, Path, str]],
    notes: list[str],
) -> None:
    """Append the files of one item, each with its name and the path that was given for it."""
    if not item:
        raise InputError("A path of a file is empty; leave it out.")
    if name is not None:
        _check_name(name, item)
    # Variables are not expanded: the answer would tell a client what this process has in them.
    path = Path(item).expanduser()
    if not _is_missing(path) and path.is_dir():
        directory = require_inside(path, roots)
        below = _Walk(directory, roots)
        base = name or directory.name or "files"
        found += [(f"{base}/{each}", directory / each, "") for each in below.files()]
        notes += below.describe(path)
    elif glob.has_magic(item) and _is_missing(path):
        prefix = _fixed_part(path)
        require_inside(prefix, roots)
        matches = _matches(path, prefix)
        if not matches:
            raise PathRefused(f"{item} matches no file. Correct the pattern, or name a directory.")
        base = f"{name}/" if name else ""
        found += [(f"{base}{each.relative_to(prefix)}", each, "") for each in matches]
    else:
        found.append((name or path.name, path, "" if name else str(path)))
    if len(found) > MAX_FILES:
        raise InputError(
            f"{len(found):,} files were selected, and a run takes at most {MAX_FILES}: name fewer, "
            "use a pattern, or pack them in an archive."
        )


def require_inside(path: Path, roots: Sequence[Path]) -> Path:
    """The resolved path. Raises `PathRefused` if it is outside the allowed directories."""
    if not roots:
        raise PathRefused(
            f"{path} cannot be taken: no host directory is allowed. "
            "Start the server with --allow-dir DIRECTORY or set VERS_RLM_ALLOW_DIR."
        )
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise PathRefused(f"{path} cannot be resolved: {error}.") from error
    if not any(resolved.is_relative_to(root) for root in roots):
        # Said of every path outside, so that the answer does not tell which of them exist.
        names = ", ".join(str(root) for root in roots)
        raise PathRefused(f"{path} is outside the allowed directories ({names}).")
    return resolved


class _Walk:
    """Finds the files of a directory, and counts what it leaves out."""

    def __init__(self, directory: Path, roots: Sequence[Path]) -> None:
        self._directory = directory
        self._links = self._ignored = 0
        self._specs = dict(_inherited_specs(directory, roots))

    def files(self) -> list[str]:
        """Their paths below the directory, sorted."""
        found: list[str] = []
        examined = 0
        for parent, directories, names in os.walk(self._directory):
            place = Path(parent)
            if spec := _read_spec(place):
                self._specs[place] = spec
            examined += len(directories) + len(names)
            if examined > MOST_EXAMINED:
                raise InputError(
                    f"{self._directory} holds more than {MOST_EXAMINED:,} files: name a smaller "
                    "directory or a pattern."
                )
            directories[:] = sorted(
                each for each in directories if each != GIT and self._is_wanted(place / each, "/")
            )
            found += [
                str((place / each).relative_to(self._directory))
                for each in sorted(names)
                if self._is_wanted(place / each)
            ]
            if len(found) > MAX_FILES:
                break
        return found

    def describe(self, path: Path) -> list[str]:
        """Sentences on what was left out."""
        notes: list[str] = []
        if self._ignored:
            notes.append(f"{self._ignored:,} entries of {path} were left out, as .gitignore says.")
        if self._links:
            notes.append(f"{self._links:,} links or special files in {path} were left out.")
        return notes

    def _is_wanted(self, path: Path, end: str = "") -> bool:
        if self._is_ignored(path, end):
            self._ignored += 1
            return False
        mode = path.lstat().st_mode if os.path.lexists(path) else 0
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            self._links += 1
            return False
        return True

    def _is_ignored(self, path: Path, end: str) -> bool:
        for parent in path.parents:  # the nearest file that has a say decides
            if spec := self._specs.get(parent):
                said = spec.check_file(f"{path.relative_to(parent)}{end}").include
                if said is not None:
                    return said
        return False


def _inherited_specs(
    directory: Path, roots: Sequence[Path]
) -> Iterator[tuple[Path, GitIgnoreSpec]]:
    """What the files of the repository say that the directory is in, if it is in one."""
    above: list[Path] = []
    for parent in (directory, *directory.parents):
        if not any(parent.is_relative_to(root) for root in roots):
            return
        above.append(parent)
        if (parent / GIT).exists():
            yield from ((each, spec) for each in above[1:] if (spec := _read_spec(each)))
            return


def _read_spec(directory: Path) -> GitIgnoreSpec | None:
    path = directory / GITIGNORE
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        with path.open("rb") as file:
            text = file.read(MOST_GITIGNORE_BYTES).decode(errors="replace")
        return GitIgnoreSpec.from_lines(text.splitlines())
    except (OSError, ValueError):  # ValueError: one of its patterns is none
        return None


def _matches(pattern: Path, prefix: Path) -> list[Path]:
    """The files that match a pattern; directories that are links are not entered."""
    every = islice(glob.iglob(str(pattern), recursive=True), MOST_EXAMINED)  # noqa: PTH207 - whole paths
    paths = [Path(each) for each in sorted(every)]
    root = prefix.resolve()
    return [
        each
        for each in paths
        if each.parent.resolve() == root / each.parent.relative_to(prefix)
        and each.is_file()
        and each.resolve().is_relative_to(root)
    ]


def _fixed_part(pattern: Path) -> Path:
    """The directory of a pattern above its first part that is one."""
    fixed = Path()
    for part in pattern.parts:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _is_missing(path: Path) -> bool:
    try:
        return not path.exists()
    except (OSError, ValueError):
        return True


def _name(found: Iterable[tuple[str, Path, str]], selection: Selection) -> None:
    """Give each file its name; those of one name get the directories that tell them apart."""
    by_name: dict[str, list[tuple[Path, str]]] = {}
    for name, path, given in found:
        _check_name(name, path)
        same = by_name.setdefault(name, [])
        if path not in [other for other, _ in same]:
            same.append((path, given))
    for name, same in by_name.items():
        for alone, path in zip(_apart(name, same), (path for path, _ in same), strict=True):
            if alone in selection.files:
                raise InputError(
                    f"Two files are called {alone!r} ({selection.files[alone]} and {path}); "
                    "give a mapping with a different name for each."
                )
            selection.files[alone] = path


def _apart(name: str, same: Sequence[tuple[Path, str]]) -> list[str]:
    if len(same) == 1 or not all(given for _, given in same):
        return [name] * len(same)
    parts = [Path(os.path.abspath(given)).parts[1:] for _, given in same]  # noqa: PTH100 - links stay
    for depth in range(2, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [name] * len(same)


def _check_name(name: str, path: Path | str) -> None:
    for part in name.split("/"):
        if part in ("", ".", "..") or "\0" in part:
            raise InputError(
                f"{name!r}, the name for {str(path)!r}, is not a relative path without `..`; "
                "use a plain name."
            )
        if len(os.fsencode(part)) > NAME_MAX:
            raise InputError(f"The name for {path} is longer than {NAME_MAX} bytes; shorten it.")
