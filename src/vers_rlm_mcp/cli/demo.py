"""`vers-rlm-mcp demo`: the main job on real files in a real machine, through a real MCP client.

It starts this very server as a client would, over stdio, and calls `vers_rlm`. With a provider's
key in the environment the model works; without one its part is read from a script, and every
figure is still computed in the machine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp import Client, StdioServerParameters

from vers_rlm_mcp.errors import ModelUnavailable
from vers_rlm_mcp.models import open_model

if TYPE_CHECKING:
    from vers_rlm_mcp.settings import Settings

SCRIPT = Path(__file__).with_name("demo_script.txt")

SIGNATURE = (
    "task -> most_complex: list[dict], longest_functions: list[dict], original_untouched: bool, "
    "summary: str"
)

TASK = (
    "Find out which modules of the Python standard library on this machine are the most complex "
    "(count decision points with `ast`; leave tests out) and check its three longest functions: "
    "lines, decision points, whether they are documented and compile alone, and a remark of a "
    "sub-model on each. Copy the three into /workspace/review. Then take a snapshot, branch the "
    "machine, delete /workspace/review on the branch, and show that the original is untouched."
)


async def demonstrate(settings: Settings) -> int:
    """Run the demonstration; 0 when it ended well and its machines are gone."""
    environment, whose = await _environment(settings)
    _say(whose)
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "vers_rlm_mcp"], env=environment
    )
    async with Client(server) as client:
        started = time.monotonic()
        result = await client.call_tool(
            "vers_rlm", {"signature": SIGNATURE, "inputs": {"task": TASK}}, progress_callback=_show
        )
        seconds = time.monotonic() - started
        if result.is_error or result.structured_content is None:
            _say("", "The run failed:", *(getattr(part, "text", "") for part in result.content))
            return 1
        machines: dict[str, Any] = (await client.call_tool("vmList", {})).structured_content or {}
    return _report(result.structured_content, machines, seconds)


async def _environment(settings: Settings) -> tuple[dict[str, str], str]:
    """What the server is started with, and the line that says who plays the model."""
    environment = {**os.environ, **settings.environment()}
    try:
        model = open_model(settings.model)
    except ModelUnavailable:
        if settings.model is not None:
            raise
        environment |= dict.fromkeys(("VERS_RLM_MODEL", "VERS_RLM_SUB_MODEL"), f"scripted:{SCRIPT}")
        return environment, (
            "The model's part is SCRIPTED, since no API key is set: its words were written "
            "beforehand, its code runs now, in a real machine. Set ANTHROPIC_API_KEY or "
            "OPENAI_API_KEY to see a model do it."
        )
    await model.aclose()
    environment["VERS_RLM_MODEL"] = model.name
    return environment, f"The model is {model.name}."


async def _show(progress: float, total: float | None, message: str | None) -> None:
    del total
    if message:
        _say(f"[{progress:5.1f} s] {message}")


def _report(answer: dict[str, Any], machines: dict[str, Any], seconds: float) -> int:
    left = [vm["id"] for vm in machines.get("vms", [])]
    machine, outputs, used = answer["machine"], answer["outputs"], answer["usage"]
    _say("", "Outputs", json.dumps(outputs, indent=2, ensure_ascii=False), "")
    _say(
        f"{answer['status']} after {answer['steps']} steps in {seconds:.1f} s on "
        f"{machine['backend']} (isolation: {machine['isolation']}, fidelity: "
        f"{machine['fidelity']}), {used['sub_calls']} sub-calls, {used['tokens']:,} tokens.",
        f"Machines left behind: {', '.join(left) if left else 'none'}.",
    )
    well = answer["status"] == "finished" and outputs.get("original_untouched") is True
    return 0 if well and answer["run_id"] and machine["id"] not in left else 1


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)
