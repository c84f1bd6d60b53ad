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
        "rlmQuery",
        "rlm_query",
        'rlmQuery(task, inputs={}, outputs="answer", merge=[])',
        "give a part of the task to a model that works as you do, in a REPL on a copy of the "
        "machine: dearer than llmQuery, for what takes several steps. Returns the value of its "
        "output, or a dict of several; `merge`: files and directories of its copy to bring back",
    ),
    ReplFunction(
        "branches",
        "branches",
        'branches(plans, outputs=None, score=None, keep="best", verify=None)',
        "try several plans at once, each on a copy of the machine by a copy of you that knows all "
        "you know now. Returns a list of dicts: `outputs`, `error`, `score`, `steps`, `machine`. "
        '`outputs`: what each hands in, as in `"patch: str, passed: int"`; `score`: the name of '
        "an output or a function of the dict, the highest wins; `verify`: a shell command that "
        "must exit with 0; the winner's machine becomes the current one",
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
    ReplFunction(
        "vmDiff",
        "vm_diff",
        "vmDiff(a, b=None, path=None)",
        "what is different in machine or commit b (default: the current machine) than in a: "
        "files (below a directory), packages, processes, variables; returns text",
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

REPL_NAMES = frozenset(name for f in FUNCTIONS for name in (f.name, f.twin))
"""Names that an input must not have, since its variable would hide the function."""
