"""Prompts, which a user chooses from the client's menu: three ways to use a machine.

Their arguments are text, as the protocol requires. A prompt is only text for the client's model.
"""

import json
from collections.abc import Container
from typing import Annotated

from mcp.server.mcpserver.prompts import Prompt
from pydantic import Field

VmId = Annotated[str, Field(description="A VM to start from; without it, a new one")]


def prompts(tools: Container[str]) -> list[Prompt]:
    """The prompts that these tools can follow, in the order in which clients list them."""
    table = [
        (investigate, "Investigate with a machine", "exec"),
        (try_fixes, "Try several fixes", "vmBranch"),
        (analyse_file, "Analyse a large file", "vers_rlm"),
    ]
    return [
        Prompt.from_function(function, title=title)
        for function, title, needed in table
        if needed in tools
    ]


def investigate(
    question: Annotated[str, Field(description="What you want to know")],
    vmId: VmId = "",  # noqa: N803
) -> str:
    """Answer a question by experiment in a machine that can be snapshotted and branched."""
    return f"""\
Find out, by experiment in a sandboxed Linux machine: {question}

{_machine(vmId)} Look before you conclude: run commands with exec, and Python with python, whose \
variables stay between calls. Take a vmSnapshot before anything that cannot be undone, and go back \
with vmRestore. Where several explanations are possible, vmBranch the machine and test each in its \
own branch. If it needs many steps or more text than you can read, hand it to vers_rlm instead.

Answer with what you found, the commands that show it, and what remains uncertain."""


def try_fixes(
    problem: Annotated[str, Field(description="What is wrong")],
    check: Annotated[str, Field(description="Command that succeeds once it is fixed")],
    vmId: VmId = "",  # noqa: N803
) -> str:
    """Try several fixes side by side, each in a branch of one machine, and keep the best."""
    return f"""\
Fix this in a sandboxed Linux machine: {problem}

{_machine(vmId)} First see it fail: `{check}` must fail before it can be shown to be fixed. Then:
1. Think of two to four fixes that differ in kind, not in detail.
2. Make a branch for each with vmBranch (count), and apply one fix in each, with its vmId.
3. Run `{check}` in every branch. A fix counts only if it passes there.
4. Of those that pass, choose the smallest that is right; vmSwitch to its branch (over HTTP: go on \
with its vmId) and vmDelete the others.

Answer with the chosen change as a diff, why it, and what became of the others."""


def analyse_file(
    path: Annotated[str, Field(description="The file, on this computer")],
    question: Annotated[str, Field(description="What you want to know of it")],
) -> str:
    """Answer a question about a file that is too large to read, without it passing through chat."""
    return f"""\
Answer from the file {path}: {question}

Do not read the file yourself: call vers_rlm once, with
- files: {json.dumps({"document": path})}
- inputs: {{"question": the question above}}
- signature: "document, question -> answer: str, evidence: list[str]"
Give the outputs more precise names and types where the question suggests them. If the server \
refuses the path, tell me to allow its directory with --allow-dir.

Answer with the outputs, and quote the evidence with its place in the file."""


def _machine(vm_id: str) -> str:
    if vm_id:
        return f"Work in the VM {vm_id} (pass it as vmId)."
    return "Make a VM with vmCreate, and pass its id as vmId where there is no current VM."
