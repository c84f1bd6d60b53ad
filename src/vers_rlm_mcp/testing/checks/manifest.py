"""Prints what a directory holds, one line per entry. Runs in the machine's own Python."""

# ruff: noqa: PTH115, PTH118, PTH123, T201 - paths are bytes, which pathlib does not take

from __future__ import annotations

import hashlib
import os
import stat
import sys


def entry(path: bytes, first_names: dict[int, bytes]) -> list[str]:
    """What must be the same in copies. `first_names` holds a name of each file, for hard links."""
    info = os.lstat(path)
    parts = [repr(path), oct(info.st_mode)]
    if stat.S_ISLNK(info.st_mode):
        return [*parts, repr(os.readlink(path))]
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        same_as = first_names.setdefault(info.st_ino, path)
        parts += [digest, str(info.st_size), str(info.st_mtime_ns), str(info.st_nlink)]
        return [*parts, repr(same_as)]
    return parts


def main(root: bytes) -> None:
    """Walk `root` in a fixed order."""
    first_names: dict[int, bytes] = {}
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(names + files):
            print(*entry(os.path.join(directory, name), first_names))


if __name__ == "__main__":
    main(os.fsencode(sys.argv[1]))
