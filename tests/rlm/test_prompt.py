"""The prompts, whole, as a model reads them.

After a change on purpose: ``pytest tests/rlm/test_prompt.py --inline-snapshot=fix``.
"""

from __future__ import annotations

from inline_snapshot import external_file, register_format_alias

from vers_rlm_mcp.rlm import (
    InputFile,
    MachineFacts,
    Signature,
    Task,
    describe,
    system_prompt,
    task_prompt,
)
from vers_rlm_mcp.rlm.prompt import extraction_prompt
from vers_rlm_mcp.runs.declarations import repl_functions

register_format_alias(".md", ".txt")

SIGNATURE = Signature.parse("question, reports: list[str] -> answer, score: float, source?: str")
TASK = Task(
    SIGNATURE,
    inputs=(
        describe("question", "Which quarter was the best?"),
        describe("reports", [f"Quarter {n}: {'figures ' * 20}" for n in range(400)]),
    ),
    files=(InputFile("/workspace/inputs/q 1's.csv", 1_234_567),),
    machine=MachineFacts(
        network=True,
        limits={"memory": "2048 MiB", "one cell": "300 s"},
        notes=("Processes of a deleted machine are gone at once.",),
    ),
    instructions="Answer the question from the reports and the table.",
)


def test_the_system_prompt_is_as_agreed() -> None:
    assert system_prompt(repl_functions()) == external_file("golden/system_prompt.md")


def test_the_task_prompt_is_as_agreed() -> None:
    assert task_prompt(TASK) == external_file("golden/task_prompt.md")


def test_the_extraction_prompt_is_as_agreed() -> None:
    prompt = extraction_prompt(SIGNATURE, "All 20 steps are used.")
    assert prompt == external_file("golden/extraction_prompt.md")


def test_the_system_prompt_names_every_function() -> None:
    prompt = system_prompt(repl_functions())
    for function in repl_functions():
        assert f"`{function.call}`" in prompt


def test_a_large_input_and_many_files_do_not_make_a_large_prompt() -> None:
    files = tuple(InputFile(f"/workspace/{n}", n) for n in range(10_000))
    task = Task(
        Signature.parse("log -> answer"), inputs=(describe("log", "x" * 10_000_000),), files=files
    )
    assert len(task_prompt(task)) < 5_000
    assert "and 9,950 more" in task_prompt(task)


def test_what_the_machine_is_and_can_is_said() -> None:
    strong = MachineFacts(isolation="vm", fidelity="memory", root=True, network=False)
    said = task_prompt(Task(Signature.parse("-> answer"), machine=strong))
    for fact in ("Isolation: vm.", "running processes.", "You are root.", "no network"):
        assert fact in said
