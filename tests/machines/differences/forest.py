"""Runs in a machine: changes a tree at random, or tells what it holds. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import sys

NAMES = (b"a", b"b", b"c d", b"-n", b"new\nline", b"\xff\xfe", "ü".encode(), b"x" * 255, b"a.b")
CONTENTS = (b"", b"one\n", b"two\n", b"one\ntwo\n", bytes(range(256)) * 40, b"\0" * 300_000)
MODES = (0o600, 0o644, 0o755, 0o400)
TARGETS = (b"a", b"../b", b"/nowhere", b"\xff")


def mutate(root: bytes, seed: int, count: int) -> None:
    """Do some things that only depend on the seed and the tree."""
    chance = random.Random(seed)
    os.makedirs(root, exist_ok=True)
    for _ in range(count):
        directories, others = [root], list[bytes]()
        for place, folders, files in os.walk(root):
            directories += [os.path.join(place, name) for name in folders]
            others += [os.path.join(place, name) for name in files]
        fresh = os.path.join(chance.choice(sorted(directories)), chance.choice(NAMES))
        there = chance.choice(sorted(others + directories[1:]) or [fresh])
        act(chance, fresh, there)


def act(chance: random.Random, fresh: bytes, there: bytes) -> None:
    kind = chance.choice(("write", "write", "append", "mkdir", "mkdir", "link", "chmod", "remove"))
    if kind == "remove" and os.path.lexists(there):
        shutil.rmtree(there) if is_directory(there) else os.unlink(there)
    elif kind == "chmod" and os.path.lexists(there) and not os.path.islink(there):
        os.chmod(there, 0o700 if is_directory(there) else chance.choice(MODES))
    elif kind == "append" and os.path.isfile(there) and not os.path.islink(there):
        append(there, chance.choice(CONTENTS))
    elif os.path.lexists(fresh):
        return
    elif kind == "write":
        with open(fresh, "wb") as file:
            file.write(chance.choice(CONTENTS))
    elif kind == "mkdir":
        os.mkdir(fresh)
    elif kind == "link":
        os.symlink(chance.choice(TARGETS), fresh)


def append(path: bytes, content: bytes) -> None:
    mode = os.stat(path).st_mode
    os.chmod(path, 0o600)  # Not everywhere do modes bind nobody.
    with open(path, "ab") as file:
        file.write(content)
    os.chmod(path, stat.S_IMODE(mode))


def is_directory(path: bytes) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def facts(path: bytes) -> list[object]:
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        return ["link", 0, os.fsdecode(os.readlink(path))]
    if stat.S_ISDIR(info.st_mode):
        return ["directory", stat.S_IMODE(info.st_mode), ""]
    with open(path, "rb") as file:
        return ["file", stat.S_IMODE(info.st_mode), hashlib.sha256(file.read()).hexdigest()]


def listing(root: bytes) -> dict[str, list[object]]:
    """What there is below the root, by its path from there."""
    found: dict[str, list[object]] = {}
    for place, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(place, name)
            found[os.fsdecode(os.path.relpath(path, root))] = facts(path)
    return found


def main() -> None:
    root = os.fsencode(sys.argv[1])
    if len(sys.argv) > 2:
        mutate(root, int(sys.argv[2]), int(sys.argv[3]))
    json.dump(listing(root), sys.stdout)


if __name__ == "__main__":
    main()
