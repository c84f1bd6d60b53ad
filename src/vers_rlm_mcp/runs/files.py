"""Host files that a run may take into its machine.

The caller that names the files is not trusted with the host: only regular files inside the allowed
directories are taken, wherever their symlinks lead. Each file is opened once, without following
links, and handed on as a path to the open descriptor, so that nothing swapped in afterwards is
ever read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vers_rlm_mcp.errors import InputError, PathRefused

MAX_FILES = 256
"""Files that one run may take: each is an open descriptor until the run ends."""

NAME_MAX = 255
"""Bytes in a file name, as on every common Linux file system."""


@contextmanager
def opened_files(
    files: Sequence[str] | Mapping[str, str], allowed: Sequence[Path]
) -> Generator[dict[str, Path]]:
    """Open host files for a run; they stay open inside the ``with``.

    Args:
        files: Host paths, known in the machine by their file names, or a mapping from names in the
            machine to host paths.
        allowed: Directories whose files, at any depth, may be taken.

    Yields:
        Names in the machine to paths under `/proc/self/fd`, which open the very files that were
        checked, whatever happens to the original paths.

    Raises:
        InputError: A name is not a plain file name, or stands for two files.
        PathRefused: A path is outside the allowed directories, or is no readable regular file.
    """
    named = _name_files(files)
    roots = [directory.resolve() for directory in allowed]
    with ExitStack() as stack:
        opened: dict[str, Path] = {}
        for name, path in named.items():
            descriptor = _open_inside(Path(path).expanduser(), roots)
            stack.callback(os.close, descriptor)
            opened[name] = Path(f"/proc/self/fd/{descriptor}")
        yield opened


def _name_files(files: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    pairs = (
        list(files.items())
        if isinstance(files, Mapping)
        else [(Path(path).name, path) for path in files]
    )
    if len(pairs) > MAX_FILES:
        raise InputError(
            f"{len(pairs)} files were given, and a run takes at most {MAX_FILES}; "
            "pack them in an archive."
        )
    named: dict[str, str] = {}
    for name, path in pairs:
        _check_name(name, path)
        if name in named:
            raise InputError(
                f"Two files are called {name!r} ({named[name]} and {path}); "
                "give a mapping with a different name for each."
            )
        named[name] = path
    return named


def _check_name(name: str, path: str) -> None:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InputError(
            f"{name!r}, the name for {path!r}, is not a plain file name; use one without slashes."
        )
    if len(os.fsencode(name)) > NAME_MAX:
        raise InputError(f"The name for {path!r} is longer than {NAME_MAX} bytes; shorten it.")


def _open_inside(path: Path, roots: Sequence[Path]) -> int:
    if not roots:
        raise PathRefused(
            f"{path} cannot be taken: no host directory is allowed. "
            "Start the server with --allow-dir DIRECTORY or set VERS_RLM_ALLOW_DIR."
        )
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise PathRefused(f"{path} cannot be resolved: {error}.") from error
    root = next((root for root in roots if resolved.is_relative_to(root)), None)
    if root is None:
        # Said of every path outside, so that the answer does not tell which of them exist.
        names = ", ".join(str(root) for root in roots)
        raise PathRefused(f"{path} is outside the allowed directories ({names}).")
    try:
        return _open_regular(root, resolved.relative_to(root).parts)
    except OSError as error:
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
