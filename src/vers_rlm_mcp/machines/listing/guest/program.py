"""The entry point of the program that finds files.

Its argument after the loader's is JSON: `paths`, of single files; `directories`, all of whose files
are meant; `patterns`, where ``**`` stands for any directories; `most`, the number of files after
which it stops. Everything is relative to its working directory. It prints JSON: `files`, a list of
objects with a `path`, and a `size` or a `fault`; and `more`, whether there were more.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator


def main() -> None:
    """Print what was found."""
    options: dict[str, Any] = json.loads(sys.argv[3])
    files: list[dict[str, Any]] = []
    more = False
    for path in _candidates(options):
        if len(files) == options["most"]:
            more = True
            break
        files.append(_describe(path))
    json.dump({"files": files, "more": more}, sys.stdout)


def _candidates(options: dict[str, Any]) -> Iterator[str]:
    seen: set[str] = set()
    path: str
    yield from options["paths"]
    for directory in options["directories"]:
        for parent, below, names in os.walk(str(directory)):
            below.sort()
            links = (name for name in below if os.path.islink(os.path.join(parent, name)))
            for name in sorted([*names, *links]):  # links to directories are not followed
                path = os.path.join(parent, name)
                seen.add(path)
                yield path
    for pattern in options["patterns"]:
        for path in glob.iglob(pattern, recursive=True):
            path = os.path.normpath(path)
            # A directory that a pattern matches stands for nothing; links are not followed.
            if path not in seen and (os.path.islink(path) or not os.path.isdir(path)):
                seen.add(path)
                yield path


def _describe(path: str) -> dict[str, Any]:
    try:
        found = os.lstat(path)
    except (OSError, ValueError) as error:
        missing = getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR)
        return {"path": path, "fault": "there is no such file" if missing else str(error)}
    if stat.S_ISREG(found.st_mode):
        return {"path": path, "size": found.st_size}
    kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a link or a special file"
    return {"path": path, "fault": f"it is {kind}, not a regular file"}
