"""The package `rlms` (github.com/alexzhang13/rlm) with its default environment, `local`."""

from __future__ import annotations

from pathlib import Path

from jobs import MODEL, Job, Unsupported, jobs, timed_outcome
from rlm.logger import RLMLogger

from rlm import RLM


def perform(job: Job) -> str:
    if job.cell_seconds:
        raise Unsupported("has no limit on the time of a cell")
    rlm = RLM(
        backend_kwargs=endpoint(job.root_url),
        other_backends=["openai"],
        other_backend_kwargs=[endpoint(job.sub_url)],
        max_iterations=job.max_iterations,
        max_timeout=job.run_seconds,
        logger=RLMLogger(log_dir=job.log_directory) if job.log_directory else None,
    )
    return rlm.completion(Path(job.input_file).read_text()).response


def endpoint(url: str) -> dict[str, str]:
    return {"model_name": MODEL, "base_url": url, "api_key": "none"}


for each in jobs():
    with timed_outcome() as outcome:
        outcome.answer = perform(each)
        outcome.log = each.log_directory
