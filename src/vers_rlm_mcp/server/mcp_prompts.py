"""Prompts, which a user chooses from the client's menu: three ways to use a machine.

Each has one argument, which is free text: clients that fill in several give each a single word of
what the user typed. A prompt is only text for the client's model.
"""

from collections.abc import Container
from typing import Annotated

from mcp.server.mcpserver.prompts import Prompt
from pydantic import Field

MORE = """\
If I typed more words after the command than are quoted here, they belong to it."""

MACHINE = """\
Work in the VM that I named, if I did; otherwise make one with vmCreate, and pass its id as vmId."""


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
) -> str:
    """Answer a question by experiment in a machine that can be snapshotted and branched."""
    return f"""\
Find out, by experiment in a sandboxed Linux machine: {question}

{MORE} {MACHINE} Look before you conclude: run commands with exec, and Python with python, whose \
variables stay between calls. Take a vmSnapshot before anything that cannot be undone, and go back \
with vmRestore. Where several explanations are possible, vmBranch the machine and test each in its \
own branch (exec and python take vmIds). If it needs many steps, or more text than you can read, \
hand it to vers_rlm instead.

Answer with what you found, the commands that show it, and what remains uncertain."""


def try_fixes(
    problem: Annotated[
        str, Field(description="What is wrong, and the command that succeeds once it is fixed")
    ],
) -> str:
    """Try several fixes side by side, each in a branch of one machine, and keep the best."""
    return f"""\
Fix this in a sandboxed Linux machine: {problem}

{MORE} {MACHINE} If I named no command that succeeds once it is fixed, find one that fails now: \
that is the check. First see it fail, then:
1. Think of two to four fixes that differ in kind, not in detail.
2. Make a branch for each with vmBranch (count), and apply one fix in each, with its vmId.
3. Run the check in every branch, with one exec and vmIds. A fix counts only if it passes there.
4. Of those that pass, choose the smallest that is right; continue with its vmId, and vmDelete the \
others.

Answer with the chosen change as a diff, why it, and what became of the others."""


def analyse_file(
    request: Annotated[
        str, Field(description="The file's path on this computer, and what you want to know of it")
    ],
) -> str:
    """Answer a question about a file that is too large to read, without it passing through chat."""
    return f"""\
Answer from a file on this computer: {request}

{MORE} Do not read the file yourself: call vers_rlm once, with
- files: {{"document": the path of the file}}
- inputs: {{"question": the question}}
- signature: "document, question -> answer: str, evidence: list[str]"
Give the outputs more precise names and types where the question suggests them. If the server \
refuses the path, tell me to allow its directory with --allow-dir.

Answer with the outputs, and quote the evidence with its place in the file."""
