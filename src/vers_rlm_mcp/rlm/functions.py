"""What a model can call in the REPL: names, snake_case twins, and one line of usage each.

One table for three readers: the system prompt shows it, the signature reserves its names, and a
test holds the kernel's names against it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplFunction:
    """A function of the REPL, as the model is told about it."""

    name: str
    twin: str
    """The same function by its snake_case name; equal to `name` where there is none."""
    call: str
    usage: str


FUNCTIONS = (
    ReplFunction(
        "exec",
        "exec",
        "exec(command, timeout=None)",
        "run a shell command in the current machine. Returns a str: stdout, stderr, then "
        "`[exit code: N]` if not 0; also `.stdout`, `.stderr`, `.exit_code`",
    ),
    ReplFunction(
        "readFile",
        "read_file",
        "readFile(path)",
        "the text of a file there; `readFile(path, binary=True)` gives its bytes",
    ),
    ReplFunction("writeFile", "write_file", "writeFile(path, text)", "write a file there"),
    ReplFunction("llmQuery", "llm_query", "llmQuery(prompt)", "ask a sub-model; returns its text"),
    ReplFunction(
        "llmQueryBatched",
        "llm_query_batched",
        "llmQueryBatched(prompts)",
        "ask many at once; returns their texts, in order. One that failed begins with `[Error:`",
    ),
    ReplFunction(
        "vmSnapshot",
        "vm_snapshot",
        "vmSnapshot()",
        "freeze the current machine; returns a commit id",
    ),
    ReplFunction(
        "vmBranch",
        "vm_branch",
        "vmBranch(count=1)",
        "copy the current machine; returns the copy's id (a list of ids if count > 1)",
    ),
    ReplFunction("vmSwitch", "vm_switch", "vmSwitch(id)", "make another machine the current one"),
    ReplFunction(
        "vmRestore",
        "vm_restore",
        "vmRestore(commit)",
        "make a new machine from a commit and switch to it; returns its id",
    ),
    ReplFunction("currentVmId", "current_vm_id", "currentVmId()", "the id of the current machine"),
    ReplFunction("budget", "budget", "budget()", "what is used and left, as a dict"),
    ReplFunction(
        "FINAL", "FINAL", "FINAL(name=value, ...)", "hand in the outputs, by name, and end the task"
    ),
    ReplFunction(
        "FINAL_VAR", "FINAL_VAR", 'FINAL_VAR("variable")', "the same, with a variable's value"
    ),
)

_PLANNED = frozenset({"branches", "rlmQuery", "rlm_query"})
"""Names of the REPL's language that are kept free, so that signatures stay valid."""

REPL_NAMES = frozenset(name for f in FUNCTIONS for name in (f.name, f.twin)) | _PLANNED
"""Names that an input must not have, since its variable would hide the function."""
