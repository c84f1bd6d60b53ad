"""The lineage of machines and commits, of a run or of a whole fleet, as a tree."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vers_rlm_mcp.store import in_thread

from .events import (
    CheckpointMade,
    ChildChosen,
    ChildFinished,
    ChildStarted,
    CommitMade,
    InChild,
    MachineDeleted,
    MachineMade,
    MachineRecovered,
    ModelAsked,
    RunFinished,
    RunResumed,
)
from .history import read_events, summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vers_rlm_mcp import rlm
    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.store import StoredJournal

ABOUT_CHARS = 80
"""Characters of a plan or a reason that a line shows."""


@dataclass(kw_only=True)
class Node:
    """A machine or a commit."""

    id: str
    kind: Literal["machine", "commit"]
    parent: str | None
    """The machine that it was branched or committed from, or the commit it was restored from."""
    origin: str
    """How it came to be: ``created``, ``branched``, ``restored``, ``attached``, ``vmSnapshot``,
    ``checkpoint``."""
    step: int | None = None
    """At which step of its conversation."""
    alive: bool = True
    run: str | None = None
    remarks: list[str] = field(default_factory=list[str])
    """Its plan and result, a recovery, whether it won."""

    def __str__(self) -> str:
        step = f" at step {self.step}" if self.step is not None else ""
        gone = "" if self.alive else ", deleted"
        remarks = "".join(f"; {remark}" for remark in self.remarks)
        return f"{self.kind} {self.id} ({self.origin}{step}{gone}){remarks}"


def run_lineage(journal: StoredJournal) -> tuple[str, Sequence[Node]]:
    """A line on the run that a journal records, and the run's machines and commits."""
    reader = _Reader(journal.run_id)
    for _, event in read_events(journal):
        if isinstance(event, InChild):
            reader.read(event.event, event.child)
        else:
            reader.read(event, "")
    about = summary(journal)
    line = f"{journal.run_id}: {about.signature} [{about.state}{reader.cost}]"
    return line, list(reader.nodes.values())


async def fleet_lineage(fleet: Fleet) -> Sequence[Node]:
    """The existing machines and commits, and their ancestors."""
    ledger, backend = fleet.ledger, fleet.backend.name
    nodes: dict[str, Node] = {}
    infos = {info.id: info for info in await fleet.list()}
    commits = {commit.id: commit for commit in await fleet.commits()}
    for record in await in_thread(ledger.machines, backend):
        if id_ := record.machine_id:
            parent = record.parent
            origin = "created" if parent is None else "restored" if parent in commits else "copied"
            nodes[id_] = Node(
                id=id_,
                kind="machine",
                parent=parent,
                origin=origin,
                step=None,
                alive=id_ in infos,
                run=record.run,
            )
    for record in await in_thread(ledger.commits, backend):
        origin = "vmSnapshot" if record.step is None else "checkpoint"
        alive = record.id in commits
        nodes[record.id] = Node(
            id=record.id,
            kind="commit",
            parent=record.machine_id,
            origin=origin,
            step=record.step,
            alive=alive,
            run=record.run,
        )
    for info in infos.values():
        nodes.setdefault(
            info.id, Node(id=info.id, kind="machine", parent=info.parent, origin="made elsewhere")
        )
    for commit in commits.values():
        nodes.setdefault(
            commit.id,
            Node(id=commit.id, kind="commit", parent=commit.machine_id, origin="made elsewhere"),
        )
    return list(_with_ancestors(nodes))


def render_lineage(nodes: Sequence[Node], *, limit: int | None = None) -> Iterator[str]:
    """The tree, one line per node. After `limit` lines, one says how many more there are."""
    children: defaultdict[str | None, list[Node]] = defaultdict(list)
    known = {node.id for node in nodes}
    for node in nodes:
        children[node.parent if node.parent in known else None].append(node)
    for number, line in enumerate(_lines(children)):
        if number == limit:
            yield f"… and {len(nodes) - number} more"
            return
        yield line


def _lines(children: Mapping[str | None, Sequence[Node]]) -> Iterator[str]:
    # Chains of restored and committed machines are long: no recursion.
    stack = [(node, "", last) for node, last in _last_first(children.get(None, ()))]
    while stack:
        node, lead, last = stack.pop()
        yield f"{lead}{'└─' if last else '├─'} {node}"
        below = lead + ("   " if last else "│  ")
        stack += [(each, below, end) for each, end in _last_first(children.get(node.id, ()))]


def _last_first(nodes: Sequence[Node]) -> Iterator[tuple[Node, bool]]:
    for place, node in reversed(list(enumerate(nodes, 1))):
        yield node, place == len(nodes)


def _with_ancestors(nodes: Mapping[str, Node]) -> Iterable[Node]:
    """The nodes that are alive, and their ancestors, in order."""
    wanted: set[str] = set()
    for node in nodes.values():
        at = node if node.alive else None
        while at and at.id not in wanted:
            wanted.add(at.id)
            at = nodes.get(at.parent) if at.parent else None
    return (node for node in nodes.values() if node.id in wanted)


class _Reader:
    """Makes the nodes of a run from its events."""

    def __init__(self, run_id: str) -> None:
        self.nodes: dict[str, Node] = {}
        self.cost = ""
        self._run = run_id
        self._steps: dict[str, int] = {}
        self._child_machines: dict[str, str] = {}

    def read(self, event: rlm.Event, path: str) -> None:
        """Take in one event, of the conversation with this path."""
        match event:
            case ModelAsked():
                self._steps[path] = event.step
            case MachineMade():
                self._add(path, event.machine_id, "machine", event.parent, event.origin)
            case CommitMade():
                self._add(path, event.commit_id, "commit", event.machine_id, "vmSnapshot")
            case CheckpointMade():
                self._checkpoint(event)
            case MachineDeleted():
                self._gone(event.machine_id)
            case RunResumed():
                self.cost = ""
            case RunFinished():
                self._finished(event)
            case _:
                self._read_remark(event)

    def _read_remark(self, event: rlm.Event) -> None:
        match event:
            case ChildStarted():
                self._child_machines[event.child] = event.machine_id
                self._remark(event.machine_id, f"{event.origin} {event.child}", event.about)
            case ChildFinished():
                machine = self._child_machines.get(event.child, "")
                self._remark(machine, f"{event.status} in {event.steps} steps, {_cost(event)}")
                if event.score is not None:
                    self._remark(machine, f"score {event.score:g}")
            case ChildChosen():
                self._remark(self._child_machines.get(event.child, ""), "it won")
            case MachineRecovered():
                self._remark(event.machine_id, "put back", event.why)
            case _:
                pass  # it makes no machine

    def _finished(self, event: RunFinished) -> None:
        self.cost = f" after {event.steps} steps, {_cost(event)}"
        for node in self.nodes.values():
            kept = event.kept and node.id == event.machine_id
            if node.kind == "machine" and node.origin != "attached" and not kept:
                node.alive = False

    def _add(
        self, path: str, id_: str, kind: Literal["machine", "commit"], parent: str | None, how: str
    ) -> None:
        self.nodes[id_] = Node(
            id=id_,
            kind=kind,
            parent=parent,
            origin=how,
            step=self._steps.get(path, 0),
            run=self._run,
        )

    def _checkpoint(self, event: CheckpointMade) -> None:
        made = {event.commit_id: event.machine_id}
        if event.current_commit_id:
            made[event.current_commit_id] = event.current_id
        for commit, machine in made.items():
            self.nodes[commit] = Node(
                id=commit,
                kind="commit",
                parent=machine,
                origin="checkpoint",
                step=event.step,
                run=self._run,
            )

    def _gone(self, id_: str) -> None:
        if node := self.nodes.get(id_):
            node.alive = False

    def _remark(self, id_: str, what: str, about: str = "") -> None:
        if node := self.nodes.get(id_):
            about = " ".join(about.split())
            shown = about if len(about) <= ABOUT_CHARS else f"{about[:ABOUT_CHARS]}…"
            node.remarks.append(f"{what}: {shown}" if shown else what)


def _cost(event: ChildFinished | RunFinished) -> str:
    usage = event.usage
    money = "" if usage.usd is None else f", ${usage.usd:.4f}"
    return f"{usage.tokens:,} tokens{money}, {event.seconds:.1f} s"
