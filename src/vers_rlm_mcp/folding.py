"""Shows output as a terminal would: models and people read this, records hold what was written."""

from __future__ import annotations

import re


def fold(text: str) -> str:
    """`text` as a terminal would show it: of a progress bar its last state, no colours."""
    if not _CONTROL.search(text):
        return text
    lines: list[list[str]] = [[]]
    row = column = 0
    for match in _PIECES.finditer(text):
        piece = match.group()
        if match["plain"]:
            line = lines[row]
            line += [" "] * (column - len(line))
            line[column : column + len(piece)] = piece
            column += len(piece)
        elif piece == "\n":
            row, column = row + 1, 0
            if row == len(lines):
                lines.append([])
        elif piece == "\r":
            column = 0
        elif piece == "\b":
            column = max(0, column - 1)
        elif match["command"]:
            row, column = _obey(match["command"], match["numbers"], lines, row, column)
    return "\n".join("".join(line).rstrip() for line in lines)


def _obey(
    command: str, numbers: str, lines: list[list[str]], row: int, column: int
) -> tuple[int, int]:
    """Move or erase as an escape sequence says; what only colours is passed over."""
    first = numbers.partition(";")[0]
    count = min(int(first), _FARTHEST) if first.isdecimal() and len(first) < 6 else 0
    if command == "A":
        row = max(0, row - (count or 1))
    elif command == "B":
        row = min(len(lines) - 1, row + (count or 1))
    elif command == "C":
        column = min(column + (count or 1), _FARTHEST)
    elif command == "D":
        column = max(0, column - (count or 1))
    elif command == "G":
        column = max(0, count - 1)
    elif command == "K":
        line = lines[row]
        if count == 0:
            del line[column:]
        else:
            line[: column if count == 1 else len(line)] = [" "] * (column if count == 1 else 0)
    elif command == "J" and count in (0, 2):
        del lines[row + 1 :]
        lines[row] = lines[row][:column] if count == 0 else []
    return row, column


_CONTROL = re.compile("[\r\b\x1b]")
_PIECES = re.compile(
    r"(?P<plain>[^\r\n\b\x1b]+)|\n|\r|[\b]"
    r"|\x1b\[(?P<numbers>[0-9;?]*)(?P<command>[A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b.?"
)
_FARTHEST = 1_000
"""Columns or lines that one sequence moves at most."""
