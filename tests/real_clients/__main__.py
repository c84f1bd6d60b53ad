"""Lets each client list the tools and complete a run: `python -m real_clients [NAME …]`.

A script plays the model. Each client's packages are installed where `make clients` is first run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from environments import scripts_of

HERE = Path(__file__).parent

PACKAGES = {
    "fastmcp_client": "fastmcp==4.1.2",
    "langchain_adapters": "langchain-mcp-adapters==0.3.2",
    "openai_agents": "openai-agents==0.24.0",
    "pydantic_ai_toolset": "pydantic-ai-slim[mcp]==2.68.0",
}
"""What each script of `scripts` needs."""

RUN_SECONDS = 7
"""What the run takes at least: longer than openai-agents waits if nobody tells it to."""

REPLIES = f"""\
--- reply
```python
answer = int(exec("sleep {RUN_SECONDS}; echo $((6 * 7))"))
```
--- reply
```python
FINAL(answer=answer)
```
"""

TIMEOUT_SECONDS = 120


def main(names: list[str]) -> int:
    """Try each client; 1 if one of them fails."""
    failed = [name for name in names or PACKAGES if not works(name)]
    return 1 if failed else 0


def works(name: str) -> bool:
    """Whether a client sees the tools and gets the answer of a run. Says so."""
    with tempfile.TemporaryDirectory() as directory:
        finished = subprocess.run(
            [scripts_of(PACKAGES[name]) / "python", HERE / "scripts" / f"{name}.py"],
            env=environment(Path(directory)),
            stdout=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    if finished.returncode != 0:
        print(f"{name}: ended with {finished.returncode}")
        return False
    said: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    well = {"vers_rlm", "exec"} <= set(said["tools"]) and "42" in said["answer"]
    print(f"{name}: {len(said['tools'])} tools, {'42' if well else said['answer']}")
    return well


def environment(directory: Path) -> dict[str, str]:
    """Of a client, which starts the server with it."""
    replies = directory / "replies"
    replies.write_text(REPLIES)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "SERVER": str(Path(sysconfig.get_path("scripts"), "vers-rlm-mcp")),
        "VERS_RLM_STATE_DIR": str(directory / "state"),
        "VERS_RLM_MODEL": f"scripted:{replies}",
        "VERS_RLM_LOG_LEVEL": "warning",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
