"""Figures, and the tables made of them."""

from __future__ import annotations

import os
import platform
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path

TIMES = "\N{MULTIPLICATION SIGN}"


class NoFigure(Exception):
    """There is no figure, for the reason that is the text."""


@dataclass
class Cell:
    """What was measured of one thing: a value for each round, or the reason why there is none."""

    values: list[float] = field(default_factory=list[float])
    remark: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self) -> str:
        """The median, with the least and the most of all rounds."""
        if not self.values:
            return "none"
        least, most = min(self.values), max(self.values)
        spread = f" ({number(least)} to {number(most)})" if least < most else ""
        return f"{number(self.median)}{spread}"


@dataclass
class Row:
    """One thing that was measured, of each column."""

    what: str
    unit: str
    goal: float | None = None
    """What our own median should not exceed."""
    cells: dict[str, Cell] = field(default_factory=dict[str, Cell])


@dataclass
class Section:
    """A table, and where and of what it was measured. The first column is ours."""

    title: str
    columns: list[str]
    computer: str
    rows: list[Row] = field(default_factory=list[Row])
    notes: list[str] = field(default_factory=list[str])

    def row(self, what: str) -> Row | None:
        """The row of this name, if there is one."""
        return next((row for row in self.rows if row.what == what), None)

    def cell(self, what: str, unit: str, column: str, goal: float | None = None) -> Cell:
        """The cell of a row, which is made if it is not there yet."""
        row = self.row(what)
        if row is None:
            row = Row(what, unit, goal)
            self.rows.append(row)
        return row.cells.setdefault(column, Cell())

    def markdown(self) -> str:
        """The whole table, with what is to be said of its figures below."""
        remarks: list[str] = []
        lines = [
            f"## {self.title}",
            "",
            f"Median of all rounds (least to most), on {self.computer}.",
            "",
            line("", "unit", *self.columns, "goal"),
            line("---", "---", *["---:"] * len(self.columns), "---:"),
        ]
        for row in self.rows:
            texts = [_marked(row.cells.get(column, Cell()), remarks) for column in self.columns]
            lines.append(line(row.what, row.unit, *texts, _goal(row, self.columns[0])))
        lines += ["", *(f"- {note}" for note in self.notes), ""]
        lines += [f"{n}. {remark}" for n, remark in enumerate(remarks, 1)]
        return "\n".join(lines).rstrip() + "\n"


def number(value: float) -> str:
    """Two significant digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"


def line(*cells: str) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def _marked(cell: Cell, remarks: list[str]) -> str:
    if not cell.remark:
        return cell.text()
    if cell.remark not in remarks:
        remarks.append(cell.remark)
    return f"{cell.text()} [{remarks.index(cell.remark) + 1}]"


def _goal(row: Row, ours: str) -> str:
    if row.goal is None:
        return ""
    cell = row.cells.get(ours, Cell())
    missed = not cell.values or cell.median > row.goal
    return f"≤ {row.goal:g}{', missed' if missed else ''}"


def computer() -> str:
    """What matters of this computer for its figures, without its name."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    facts = [
        f"{os.cpu_count()} cores of {cpu[1].strip() if cpu else platform.machine()}",
        f"{memory:.0f} GiB of memory",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        "as root" if os.geteuid() == 0 else "as an ordinary user",
        f"load {os.getloadavg()[0]:.1f} at the start",
    ]
    return ", ".join(facts)
