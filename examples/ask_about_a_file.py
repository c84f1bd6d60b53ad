"""Ask about a file of any size: python ask_about_a_file.py access.log "Why did it go down?"."""

import json
import sys
from pathlib import Path

import anyio

from vers_rlm_mcp import RLM


async def main(path: str, question: str) -> None:
    async with RLM(max_usd=1.0) as rlm:
        # The file is copied into the machine; the model reads it there, piece by piece.
        result = await rlm(
            "log, question -> answer: str, evidence: list[str]",
            log=Path(path),
            question=question,
            max_iterations=10,
        )
    if result.status == "partial":
        sys.exit(f"No answer: {result.reason}")
    print(json.dumps(result.outputs, indent=2))
    print(f"{len(result.steps)} steps, {result.usage.tokens} tokens, {result.usage.usd} USD")


anyio.run(main, sys.argv[1], sys.argv[2])
