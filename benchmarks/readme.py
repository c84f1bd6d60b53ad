"""The README's table, made from the results: what a reader cares about, as ratios to our figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .tables import TIMES, Cell, line, number

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .tables import Row, Section

MARKS = ("<!-- benchmarks -->\n", "<!-- /benchmarks -->\n")
"""The lines between which the table stands."""

ENGINE_ROWS: Mapping[str, tuple[str, str]] = {
    "a run of one step, in a new process": ("fixed cost of a run, in a new process", "ratio"),
    "a run of one step, the second of its process": (
        "the same, second run of the process",
        "ratio",
    ),
    "an iteration, the first ten of 100": ("an iteration, first ten of 100", "ratio"),
    "an iteration, the last ten of 100": ("an iteration, last ten of 100", "ratio"),
    "an iteration, longer with 100 MB of input": (
        "an iteration, more with 100 MB of input",
        "figure",
    ),
    "256 sub-calls of 50 ms": ("256 sub-calls of 50 ms", "ratio"),
    "256 more in the same run": ("256 more in the same run", "ratio"),
    "an iteration that prints 50 MB": ("an iteration that prints 50 MB", "ratio"),
    "a run over its limit of 1 s, in the midst of a cell": (
        "time over a run's limit of 1 s",
        "figure",
    ),
    "the log of 100 turns": ("log of 100 turns", "ratio"),
    "of that, new": ("new tokens sent in 10 steps (no prefix of the request before)", "ratio"),
}
"""The rows shown, what they are called here, and what of the peers is."""

MACHINE_ROWS = ("create, kernel included", "snapshot", "branch", "16 branches at once", "restore")


def write(path: Path, sections: Mapping[str, Section]) -> None:
    """Put the table into a file, in place of what stands between the marks.

    Raises `ValueError` when the file has no marks.
    """
    before, opening, rest = path.read_text().partition(MARKS[0])
    _, closing, after = rest.partition(MARKS[1])
    if not (opening and closing):
        raise ValueError(f"{path} has no lines {' and '.join(map(repr, MARKS))}.")
    path.write_text(f"{before}{opening}\n{markdown(sections)}\n{closing}{after}")


def markdown(sections: Mapping[str, Section]) -> str:
    """The tables of the sections that there are."""
    parts: list[str] = []
    if engines := sections.get("engines"):
        parts.append(_engines(engines))
    if machine := sections.get("machine"):
        parts.append(_machine(machine))
    if server := sections.get("server"):
        parts.append(_server(server))
    if vers := sections.get("vers"):
        parts.append(_vers(vers))
    return "\n\n".join(parts) + "\n"


def _engines(section: Section) -> str:
    ours, *peers = section.columns
    lines = [
        "Our median, and each peer's as a multiple of it or a figure of its own, with a model that "
        f"answers at once, on {section.computer}. `none`: it has no such thing, or failed; the "
        "results say why. `local` runs the model's code with all that the user may do.",
        "",
        line("", *section.columns),
        line("---", *["---:"] * len(section.columns)),
    ]
    for what, (name, kind) in ENGINE_ROWS.items():
        if row := section.row(what):
            base = row.cells[ours]
            texts = [
                _ratio(row.cells[peer], base) if kind == "ratio" else _figure(row, peer)
                for peer in peers
            ]
            lines.append(line(name, _figure(row, ours), *texts))
    return "\n".join(lines)


def _machine(section: Section) -> str:
    rows = [row for what in MACHINE_ROWS if (row := section.row(what))]
    return "\n".join(
        [
            line("a machine on bubblewrap, kernel and variables included", *section.columns),
            line("---", *["---:"] * len(section.columns)),
            *(
                line(row.what, *(_figure(row, column) for column in section.columns))
                for row in rows
            ),
        ]
    )


def _server(section: Section) -> str:
    ours, bare = section.columns
    compared = (
        f"{row.what} {_figure(row, ours)}, {_ratio(row.cells[ours], row.cells[bare])} that of a "
        "bare server of the same SDK"
        for row in section.rows[:2]
    )
    return f"The MCP server: {'; '.join(compared)}."


def _vers(section: Section) -> str:
    ours, seed = section.columns
    compared = (
        f"{row.what} {_figure(row, ours)}, {seed} {_ratio(row.cells[seed], row.cells[ours])} that"
        for row in section.rows
        if row.unit == "ms"
    )
    return f"On a machine of the Vers emulator: {'; '.join(compared)}."


def _figure(row: Row, column: str) -> str:
    cell = row.cells.get(column, Cell())
    return f"{number(cell.median)} {row.unit.partition(' (')[0]}" if cell.values else "none"


def _ratio(cell: Cell, base: Cell) -> str:
    if not cell.values:
        return "none"
    return f"{number(cell.median / base.median)} {TIMES}" if base.values else "?"
