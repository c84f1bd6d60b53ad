"""`dspy.RLM`, with the interpreter that is asked for: `local`, or `deno` (its default)."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import dspy
from jobs import MODEL, Job, Unsupported, jobs, timed_outcome


def perform(job: Job) -> str:
    if job.log_directory:
        raise Unsupported("keeps no log on disk")
    if job.run_seconds:
        raise Unsupported("has no limit on the time of a run")
    rlm = dspy.RLM(
        "context -> answer",
        max_iters=job.max_iterations,
        max_llm_calls=job.max_sub_calls,
        sub_lm=model(job.sub_url),
        interpreter_factory=local(job) if job.interpreter == "local" else deno(job),
    )
    with dspy.context(lm=model(job.root_url)):
        return rlm(context=Path(job.input_file).read_text()).answer


def model(url: str) -> dspy.LM:
    # Not the default, which answers what was asked before from a cache on disk.
    return dspy.LM(f"openai/{MODEL}", api_base=url, api_key="none", cache=False)


def local(job: Job) -> partial[dspy.LocalInterpreter]:
    factory = partial(dspy.LocalInterpreter, execution_timeout=job.cell_seconds)
    return described(factory, dspy.LocalInterpreter)


def deno(job: Job) -> partial[dspy.PythonInterpreter]:
    if job.cell_seconds:
        raise Unsupported("has no limit on the time of a cell")
    return described(partial(started_with_import_map), dspy.PythonInterpreter)


def started_with_import_map() -> dspy.PythonInterpreter:
    interpreter = dspy.PythonInterpreter()
    if import_map := os.environ.get("IMPORT_MAP"):
        interpreter.deno_command.insert(2, f"--import-map={import_map}")
    return interpreter


def described(factory: partial, interpreter: type) -> partial:
    """The factory, with what `dspy.RLM` tells the model of the interpreter itself."""
    factory.execution_instructions = interpreter.execution_instructions
    return factory


for each in jobs():
    with timed_outcome() as outcome:
        outcome.answer = perform(each)
