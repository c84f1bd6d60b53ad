"""Host files that a run may take into its machine.

The caller that names the files is not trusted with the host: only regular files inside the allowed
directories are taken, wherever their symlinks lead. Each file is opened once, without following
links, and handed on as a path to the open descriptor, so that nothing swapped in afterwards is
ever read.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vers_rlm_mcp.errors import InputError, PathRefused

from .file_selection import require_inside, select_files

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from .file_selection import Items


class OpenedFiles(dict[str, Path]):
    """Open files by their names in the machine."""

    notes: tuple[str, ...] = ()
    """Sentences on what was left out of directories."""


@contextmanager
def opened_files(files: Items, allowed: Sequence[Path]) -> Generator[OpenedFiles]:
    """Open host files for a run; they stay open inside the ``with``.

    Args:
        files: Paths, directories and patterns, as `select_files` has them.
        allowed: Directories whose files, at any depth, may be taken.

    Yields:
        Names in the machine to paths under `/proc/self/fd`, which open the very files that were
        checked, whatever happens to the original paths.

    Raises:
        InputError: A name cannot be used, or there are too many files.
        PathRefused: A path is outside the allowed directories, or is no readable regular file.
    """
    roots = [directory.resolve() for directory in allowed]
    selection = select_files(files, roots)
    with ExitStack() as stack:
        opened = OpenedFiles()
        opened.notes = tuple(selection.notes)
        for name, path in selection.files.items():
            descriptor = _open_inside(path, roots)
            stack.callback(os.close, descriptor)
            opened[name] = Path(f"/proc/self/fd/{descriptor}")
        yield opened


def _open_inside(path: Path, roots: Sequence[Path]) -> int:
    resolved = require_inside(path, roots)
    root = next(root for root in roots if resolved.is_relative_to(root))
    try:
        return _open_regular(root, resolved.relative_to(root).parts)
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise InputError(
                "This process may not open as many files: name fewer, or raise `ulimit -n`."
            ) from error
        raise PathRefused(f"{path} cannot be read: {error.strerror}.") from error


def _open_regular(root: Path, parts: Sequence[str]) -> int:
    """Open the regular file `parts` below `root`, refusing any symlink on the way.

    The path was resolved before, so a link here was put there since.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(root, flags | os.O_DIRECTORY)
    for part in parts:
        directory = descriptor
        try:
            descriptor = os.open(part, flags, dir_fd=directory)
        finally:
            os.close(directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is not a regular file")
    return descriptor
