"""Watch a run: python watch_a_run.py "How many prime numbers are below 10,000?"."""

import sys

import anyio

from vers_rlm_mcp import RLM
from vers_rlm_mcp.events import CellOutput, StepFinished, SubCallStarted


async def main(question: str) -> None:
    async with RLM() as rlm:
        events = rlm.stream("question -> answer", question=question)
        async for event in events:
            match event:
                case CellOutput(text=text):
                    print(text, end="")
                case SubCallStarted(prompt=prompt):
                    print(f"[asks a sub-model: {prompt[:60]}]")
                case StepFinished(step=step, usage=usage):
                    print(f"[step {step}: {usage.tokens} tokens]")
                case _:
                    pass
        print(events.result.outputs["answer"])


anyio.run(main, sys.argv[1])
