"""Runs in a machine: changes file trees as it is told, and tells what they look like then.

Its arguments are the directories that are the trees. Each line of standard input is a JSON list of
changes, ``[name, argument, …]``; each is answered by a line with what came of them and what every
path is now. A path is the number of its tree and what follows, as in ``0/a/b``. Nothing stays open
in between, so that this process never stands in the way of a snapshot.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ROOTS = sys.argv[1:]

OPEN = os.O_NOFOLLOW | os.O_NONBLOCK
"""Neither through a link nor waiting for a FIFO's reader."""


def place(path: str) -> str:
    number, _, below = path.partition("/")
    return os.path.join(ROOTS[int(number)], below) if below else ROOTS[int(number)]


def write(path: str, text: str) -> None:
    descriptor = os.open(place(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | OPEN, 0o644)
    with open(descriptor, "w") as file:
        file.write(text)


def append(path: str, text: str) -> None:
    with open(os.open(place(path), os.O_WRONLY | os.O_APPEND | OPEN), "a") as file:
        file.write(text)


def patch(path: str, offset: int, text: str) -> None:
    with open(os.open(place(path), os.O_WRONLY | OPEN), "wb") as file:
        file.seek(offset)
        file.write(text.encode())


def truncate(path: str, size: int) -> None:
    with open(os.open(place(path), os.O_WRONLY | OPEN), "wb") as file:
        file.truncate(size)


def mkdir(path: str) -> None:
    os.mkdir(place(path), 0o755)


def mkfifo(path: str) -> None:
    os.mkfifo(place(path), 0o644)


def symlink(path: str, target: str) -> None:
    os.symlink(target, place(path))


def link(path: str, other: str) -> None:
    os.link(place(path), place(other), follow_symlinks=False)


def unlink(path: str) -> None:
    os.unlink(place(path))


def rmdir(path: str) -> None:
    os.rmdir(place(path))


def rmtree(path: str) -> None:
    os.lstat(place(path))
    subprocess.run(["rm", "-r", "--", place(path)], check=True, stderr=subprocess.DEVNULL)


def rename(path: str, other: str) -> bool:
    """Rename as `mv` does, which copies where the kernel will not rename; tell if it had to."""
    try:
        os.rename(place(path), place(other))
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return False
    argv = ["mv", "-T", "--", place(path), place(other)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return True


def chmod(path: str, mode: int) -> None:
    os.chmod(place(path), mode)


def utime(path: str, time: int) -> None:
    os.utime(place(path), ns=(time, time), follow_symlinks=False)


def setxattr(path: str, name: str, value: str) -> None:
    os.setxattr(place(path), name, bytes.fromhex(value), follow_symlinks=False)


def removexattr(path: str, name: str) -> None:
    os.removexattr(place(path), name, follow_symlinks=False)


CHANGES: dict[str, Callable[..., bool | None]] = {
    change.__name__: change
    for change in (
        write, append, patch, truncate, mkdir, mkfifo, symlink, link, unlink, rmdir, rmtree, rename,
        chmod, utime, setxattr, removexattr,
    )
}  # fmt: skip


def perform(name: str, arguments: list[Any]) -> list[Any]:
    """What came of a change: an error's name or None, and whether a rename was a copy."""
    try:
        return [None, bool(CHANGES[name](*arguments))]
    except OSError as error:
        return [errno.errorcode[error.errno or 0], False]
    except subprocess.CalledProcessError:
        return ["EEXIST", False]


def digest(path: str) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            found.update(chunk)
    return found.hexdigest()


def about(path: str) -> dict[str, Any]:
    info = os.lstat(path)
    facts: dict[str, Any] = {
        "kind": stat.S_IFMT(info.st_mode),
        "mode": stat.S_IMODE(info.st_mode),
        "owner": [info.st_uid, info.st_gid],
        "time": info.st_mtime_ns,
        "inode": [info.st_dev, info.st_ino],
    }
    if stat.S_ISLNK(info.st_mode):
        facts["target"] = os.readlink(path)
        return facts
    names = [name for name in os.listxattr(path) if name.startswith(("user.", "security.cap"))]
    facts["xattrs"] = {name: os.getxattr(path, name).hex() for name in names}
    if stat.S_ISREG(info.st_mode):
        facts.update(size=info.st_size, digest=digest(path), room=info.st_blocks * 512)
    return facts


def listing() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, root in enumerate(ROOTS):
        pending: list[str] = [""]
        while pending:
            below = pending.pop()
            path = root + below
            found[str(number) + below] = facts = about(path)
            if stat.S_ISDIR(facts["kind"]):
                pending += [below + "/" + name for name in os.listdir(path)]
    return found


def main() -> None:
    for root in ROOTS:
        os.makedirs(root, exist_ok=True)
    for line in sys.stdin:
        outcomes = [perform(name, arguments) for name, *arguments in json.loads(line)]
        json.dump([outcomes, listing()], sys.stdout)
        print(flush=True)


if __name__ == "__main__":
    main()
