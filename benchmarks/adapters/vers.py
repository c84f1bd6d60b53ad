"""This project's engine, called as its command line calls it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from jobs import MODEL, Job, jobs, timed_outcome

from vers_rlm_mcp import runs
from vers_rlm_mcp.machines import open_fleet
from vers_rlm_mcp.models import Model, open_model
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from vers_rlm_mcp.machines import Fleet


async def main() -> None:
    async with AsyncExitStack() as stack:
        fleet: Fleet | None = None
        for job in jobs():
            with timed_outcome() as outcome:
                limits = {"cell_timeout": job.cell_seconds} if job.cell_seconds else {}
                settings = Settings.model_validate({"backend": "bubblewrap", **limits})
                if fleet is None:
                    fleet = await stack.enter_async_context(open_fleet(settings))
                result = await perform(fleet, job, settings)
                outcome.answer = str(result.outputs.get("answer", result.reason))
                outcome.log = str(settings.state_dir / "runs" / result.run_id)


async def perform(fleet: Fleet, job: Job, settings: Settings) -> runs.RunResult:
    request = runs.RunRequest(
        "context -> answer",
        files={"context": Path(job.input_file)},
        max_iterations=job.max_iterations,
        max_llm_calls=job.max_sub_calls,
        max_seconds=job.run_seconds,
    )
    async with AsyncExitStack() as stack:
        model, sub_model = (opened(stack, url) for url in (job.root_url, job.sub_url))
        return await runs.run(
            request, fleet=fleet, model=model, sub_model=sub_model, settings=settings
        )


def opened(stack: AsyncExitStack, url: str) -> Model:
    model = open_model(f"openai:{MODEL}", {"OPENAI_BASE_URL": url})
    stack.push_async_callback(model.aclose)
    return model


if __name__ == "__main__":
    anyio.run(main)
