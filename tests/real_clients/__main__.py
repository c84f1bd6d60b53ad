"""Lets each client list the tools and complete a run: `python -m real_clients [NAME …]`.

The run takes longer than the client waits for one call, so that it is answered `running` first and
waited for with `rlmResult`, as often as it takes. A script plays the model. Each client's packages
are installed where `make clients` is first run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import scripts_of

HERE = Path(__file__).parent

LIMIT_SECONDS = 5
"""What each client waits for a call: openai-agents unless it is told otherwise, the others since
they are told, for what they wait by themselves is too long to try."""

WAIT_SECONDS = 3
"""What the server is told in turn, by the setting that the guides name for such a client."""

RUN_SECONDS = 7
"""What the run takes at least: more than one call and one `rlmResult` may wait."""

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


@dataclass(frozen=True)
class Client:
    """A client, and the script that drives it."""

    package: str
    script: str
    default_limit: str
    """Of its calls over stdio, and the name in its source that says so."""
    arguments: tuple[str, ...] = ()


CLIENTS = {
    "sdk_handshake": Client(
        "mcp==2.3.0", "sdk_client.py", "none (Client.read_timeout_seconds)", ("legacy",)
    ),
    "sdk_stateless": Client(
        "mcp==2.3.0", "sdk_client.py", "none (Client.read_timeout_seconds)", ("2026-07-28",)
    ),
    "fastmcp": Client("fastmcp==4.1.2", "fastmcp_client.py", "none (Client, timeout)"),
    "langchain": Client(
        "langchain-mcp-adapters==0.3.2",
        "langchain_adapters.py",
        "none (StdioConnection, session_kwargs)",
    ),
    "openai_agents": Client(
        "openai-agents==0.24.0",
        "openai_agents.py",
        "5 s (MCPServerStdio, client_session_timeout_seconds)",
    ),
    "pydantic_ai": Client(
        "pydantic-ai-slim[mcp]==2.68.0",
        "pydantic_ai_toolset.py",
        "300 s (MCPToolset, read_timeout)",
    ),
}


def main(names: list[str]) -> int:
    """Try each client; 1 if one of them fails."""
    failed = [name for name in names or CLIENTS if not works(name, CLIENTS[name])]
    return 1 if failed else 0


def works(name: str, client: Client) -> bool:
    """Whether a client sees the tools and gets the answer of a run. Says so."""
    python = scripts_of(client.package) / "python"
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        finished = subprocess.run(
            [python, HERE / "scripts" / client.script, *client.arguments],
            env=environment(Path(directory)),
            stdout=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    seconds = time.monotonic() - started
    if finished.returncode != 0:
        print(f"{name}: ended with {finished.returncode}")
        return False
    said: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    tools, answers = said["tools"], said["answers"]
    well = {"vers_rlm", "rlmResult"} <= set(tools) and len(answers) > 1 and "42" in answers[-1]
    print(
        f"{name}: {client.package}, waits by itself: {client.default_limit}; {len(tools)} tools, "
        f"{'42' if well else answers} after {len(answers)} calls of at most {LIMIT_SECONDS} s, "
        f"{seconds:.1f} s"
    )
    return well


def environment(directory: Path) -> dict[str, str]:
    """Of a client, which starts the server with it."""
    replies = directory / "replies"
    replies.write_text(REPLIES)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "SERVER": str(Path(sysconfig.get_path("scripts"), "vers-rlm-mcp")),
        "LIMIT_SECONDS": str(LIMIT_SECONDS),
        "VERS_RLM_STATE_DIR": str(directory / "state"),
        "VERS_RLM_MODEL": f"scripted:{replies}",
        "VERS_RLM_LOG_LEVEL": "warning",
        "VERS_RLM_WAIT_SECONDS": str(WAIT_SECONDS),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
