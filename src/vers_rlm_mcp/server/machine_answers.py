"""The answers of the tools: fields for clients that show `structuredContent`, text for others.

A field that is None is left out of the JSON. Field names are those of Vers' own JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, PrivateAttr

from .toolset import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.machines import Capabilities, CommandResult, Commit, MachineInfo
    from vers_rlm_mcp.machines.differences import Difference
    from vers_rlm_mcp.values import CellResult

TEXT_LIMIT = 40_000
"""Characters of a cell's output or an error in an answer: some 10,000 tokens."""


def cut(text: str, limit: int) -> str:
    """At most about `limit` characters of `text`: its beginning and its end."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"


class ExecAnswer(Answer):
    """How a command went."""

    vm_id: str
    stdout: str
    stderr: str
    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    omitted_bytes: int = 0
    seconds: float

    @classmethod
    def of(cls, machine_id: str, result: CommandResult) -> ExecAnswer:
        """Of a command's result."""
        return cls(
            vm_id=machine_id,
            stdout=result.stdout.text,
            stderr=result.stderr.text,
            exit_code=result.status.code if result.status else None,
            signal=result.status.signal if result.status else None,
            timed_out=result.status is None,
            omitted_bytes=result.stdout.omitted + result.stderr.omitted,
            seconds=round(result.seconds, 3),
        )

    def text(self) -> str:
        """Both outputs, then whatever was not as hoped."""
        parts = [self.stdout.rstrip("\n"), self.stderr.rstrip("\n"), *self._remarks()]
        return "\n".join(part for part in parts if part) or "(no output)"

    def _remarks(self) -> list[str]:
        remarks: list[str] = []
        if self.omitted_bytes:
            remarks.append(
                "[output was cut; send it to a file and read that with readFile to see all of it]"
            )
        if self.timed_out:
            remarks.append(f"[killed: it took longer than its time-out, {self.seconds:.0f} s]")
        if self.exit_code:
            remarks.append(f"[exit code: {self.exit_code}]")
        if self.signal:
            remarks.append(f"[killed by signal {self.signal}]")
        return remarks


class FileAnswer(Answer):
    """A part of a file."""

    path: str
    content: str
    encoding: Literal["utf-8", "base64"]
    offset: int
    length: int
    next_offset: int | None = None

    def text(self) -> str:
        """The content, and where to go on."""
        remarks: list[str] = []
        if self.encoding == "base64":
            remarks.append("[not UTF-8: this is base64]")
        if self.next_offset is not None:
            remarks.append(f"[there is more; go on with offset {self.next_offset}]")
        return "\n".join([self.content, *remarks]) if self.content else "(empty)"


class WrittenAnswer(Answer):
    """A file was written."""

    path: str
    size: int

    def text(self) -> str:
        """What was written."""
        return f"Wrote {self.size:,} bytes to {self.path}"


class CellAnswer(Answer):
    """How a cell went."""

    vm_id: str
    status: Literal["ok", "error", "final", "timeout", "died", "interrupted"]
    output: str
    error: str | None = None
    final: Any = None
    notes: tuple[str, ...] = ()
    seconds: float

    @classmethod
    def of(cls, machine_id: str, result: CellResult, notes: Sequence[str]) -> CellAnswer:
        """Of a cell's result, and what else there is to know."""
        final = result.final and (
            result.final.kwargs
            or (result.final.args[0] if len(result.final.args) == 1 else result.final.args)
        )
        return cls(
            vm_id=machine_id,
            status=result.status,
            output=cut(result.output, TEXT_LIMIT),
            error=cut(result.error, TEXT_LIMIT) if result.error else None,
            final=final,
            notes=tuple(notes),
            seconds=round(result.seconds, 3),
        )

    def text(self) -> str:
        """The output, the traceback, and what became of the kernel."""
        parts = [self.output.rstrip("\n"), self.error or ""]
        if self.status not in ("ok", "error"):
            parts.append(f"[{self.status} after {self.seconds:.1f} s]")
        if self.final is not None:
            parts.append(f"FINAL: {self.final}")
        parts += [f"[{note}]" for note in self.notes]
        return "\n".join(part for part in parts if part) or "(no output)"


class NewMachine(Answer):
    """A machine was made; what else is said of it depends on its backend."""

    vm_id: str


class MachineAnswer(NewMachine):
    """A machine, and what it can do."""

    backend: str
    isolation: Literal["vm", "namespace", "none"]
    fidelity: Literal["memory", "disk"]
    root: bool
    network: bool
    kept: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, info: MachineInfo, can: Capabilities, *, kept: bool = False) -> MachineAnswer:
        """Of a machine of a backend with the capabilities `can`."""
        return cls(
            vm_id=info.id,
            backend=info.backend,
            isolation=can.isolation,
            fidelity=can.fidelity,
            root=can.root,
            network=can.network,
            kept=kept,
            notes=can.notes,
        )

    def text(self) -> str:
        """The id first."""
        facts = [
            f"{self.backend}, isolation: {self.isolation}",
            f"snapshots keep: {'disk and memory' if self.fidelity == 'memory' else 'the disk'}",
            "root" if self.root else "system directories read-only",
            "network" if self.network else "no network",
            *(["kept when the server ends"] if self.kept else []),
        ]
        return "\n".join([f"VM {self.vm_id} ({'; '.join(facts)})", *self.notes])


class Listed(BaseModel):
    """A machine in a list."""

    id: str
    created_at: float
    parent: str | None = None
    running: bool


class ListedCommit(BaseModel):
    """A commit in a list."""

    id: str
    vm_id: str
    created_at: float
    fidelity: Literal["memory", "disk"]


class ListAnswer(Answer):
    """Machines and commits, the newest first."""

    current: str | None = None
    vms: list[Listed]
    commits: list[ListedCommit]
    next_offset: int | None = None

    @classmethod
    def of(
        cls,
        current: str | None,
        machines: Sequence[MachineInfo],
        commits: Sequence[Commit],
        page: slice,
    ) -> ListAnswer:
        """One page of both lists, which come oldest first."""
        more = max(len(machines), len(commits)) > page.stop
        return cls(
            current=current,
            vms=[
                Listed(id=m.id, created_at=m.created_at, parent=m.parent, running=m.running)
                for m in machines[::-1][page]
            ],
            commits=[
                ListedCommit(
                    id=c.id, vm_id=c.machine_id, created_at=c.created_at, fidelity=c.fidelity
                )
                for c in commits[::-1][page]
            ],
            next_offset=page.stop if more else None,
        )

    def text(self) -> str:
        """One line for each."""
        lines = [
            f"VM {vm.id}"
            + (f" from {vm.parent}" if vm.parent else "")
            + ("" if vm.running else " (stopped)")
            + (" ← current" if vm.id == self.current else "")
            for vm in self.vms
        ]
        lines += [f"Commit {c.id} of {c.vm_id} ({c.fidelity})" for c in self.commits]
        if self.next_offset is not None:
            lines.append(f"[there is more; go on with offset {self.next_offset}]")
        return "\n".join(lines) or "No VMs and no commits."


class SnapshotAnswer(Answer):
    """A commit was made."""

    commit_id: str
    vm_id: str
    fidelity: Literal["memory", "disk"]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """The id first."""
        head = f"Commit {self.commit_id} of VM {self.vm_id} (keeps: {self.fidelity})"
        return "\n".join([head, *self.notes])


class BranchAnswer(Answer):
    """Copies were made."""

    vm_ids: list[str]
    parent: str
    fidelity: Literal["memory", "disk"]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """The ids first."""
        head = f"Branched VM {self.parent} into {', '.join(self.vm_ids)} (kept: {self.fidelity})"
        return "\n".join([head, *self.notes])


class CurrentAnswer(Answer):
    """Which machine the tools act on, and which it was before."""

    vm_id: str | None = None
    previous: str | None = None

    def text(self) -> str:
        """One line."""
        if self.vm_id is None:
            return "There is no current VM; the first call that needs one makes it."
        came = f" (before: {self.previous})" if self.previous else ""
        return f"The current VM is {self.vm_id}{came}"


class DeletedAnswer(Answer):
    """A machine is gone."""

    vm_id: str

    def text(self) -> str:
        """One line."""
        return f"Deleted VM {self.vm_id}; its commits and branches live on."


class DiffAnswer(Answer):
    """What is not the same in two machines."""

    counts: dict[str, int]
    """How many there are of each kind, also of those that are left out below."""
    files: list[dict[str, str]]
    """Each with ``path``, ``change`` (added, removed or changed), ``summary`` and ``diff``."""
    facts: list[dict[str, str]]
    """Packages, processes and variables: ``kind``, ``name``, ``old`` and ``new``."""
    notes: list[str]
    """Sentences on what was not compared, or cannot be read."""
    _text: str = PrivateAttr()

    @classmethod
    def of(cls, difference: Difference) -> DiffAnswer:
        """Of what was found."""
        answer = cls(**difference.as_json())
        answer._text = cut(difference.text, TEXT_LIMIT)
        return answer

    def text(self) -> str:
        """As `machines diff` prints it."""
        return self._text
