"""The command lines that are sent to a machine's shell over SSH.

SSH carries a command as one string, which the shell of the user takes apart again. Everything in
it that is data is quoted here, and the rest are the programs in `guest`.
"""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vers_rlm_mcp.errors import PathRefused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COMMAND_LIMIT: Final = 128 * 1024 - 64
"""Bytes of a command line: the server hands it to the shell as one argument, of which Linux takes
128 KiB; some room is left for what comes before it."""

_NOT_UTF8 = re.compile("([\udc80-\udcff]+)")
_GUEST = Path(__file__).with_name("guest")


def start_program(argv: Sequence[str], env: Mapping[str, str], directory: str) -> str:
    """Start a program through `launch.sh`. Raises `PathRefused` for what cannot be sent."""
    line = ["sh", "-c", _guest("launch.sh"), "sh", directory, *argv]
    if env:
        # Not the shell's `export`: that takes only some names, and has variables of its own.
        line = ["env", "--", *(f"{name}={value}" for name, value in env.items()), *line]
    return _command(line, f"start {argv[0]!r} in {directory!r}")


def kill_session(session: int) -> str:
    """Kill what runs in a session."""
    return _command(["sh", "-c", _guest("kill.sh"), "sh", str(session)], "kill a program")


def read_file(path: str, offset: int, length: int | None) -> str:
    """Read a slice of a file."""
    numbers = [str(offset), str(-1 if length is None else length)]
    return _command([*_PYTHON, _guest("files.py"), "read", path, *numbers], f"read {path!r}")


def write_file(path: str, mode: int) -> str:
    """Write a file."""
    return _command([*_PYTHON, _guest("files.py"), "write", path, str(mode)], f"write {path!r}")


_PYTHON: Final = ("python3", "-I", "-S", "-c")


def _command(words: Sequence[str], what: str) -> str:
    if any("\0" in word for word in words):
        raise PathRefused(f"Cannot {what}: there is a NUL byte in it.")
    command = "exec " + " ".join(map(_quoted, words))
    size = len(command.encode())
    if size > COMMAND_LIMIT:
        raise PathRefused(
            f"Cannot {what}: the command would be {size:,} bytes long, and a Vers machine takes "
            f"{COMMAND_LIMIT:,}. Write it to a file in the machine and run that."
        )
    return command


def _quoted(word: str) -> str:
    """A word for the shell, in valid UTF-8, which some servers insist on."""
    parts = _NOT_UTF8.split(word)
    return (
        "".join(
            _octal(part) if number % 2 else shlex.quote(part)
            for number, part in enumerate(parts)
            if part
        )
        or "''"
    )


def _octal(part: str) -> str:
    digits = "".join(f"\\{ord(letter) - 0xDC00:03o}" for letter in part)
    return f"\"$(printf '{digits}')\""


@cache
def _guest(name: str) -> str:
    """A program for the machine, without the lines that only people read."""
    lines = (_GUEST / name).read_text().splitlines()
    return "\n".join(line for line in lines if line.strip() and not line.strip().startswith("#"))
