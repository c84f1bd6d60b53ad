"""Looks for faults with tools of others: `python -m audit [NAME …]`; 1 if one of them finds any.

The inspector reads the schemas strictly over each transport, Cisco's scanner looks for what could
mislead a model, a fuzzer sends nonsense and attacks. Of the fuzzer's findings only crashes count:
an answer in which a model sees its own nonsense repeated is what this server means to give.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from environments import scripts_of

if TYPE_CHECKING:
    from collections.abc import Generator

HERE = Path(__file__).parent

SCRIPTS = Path(sysconfig.get_path("scripts"))

SERVER = str(SCRIPTS / "vers-rlm-mcp")

INSPECTOR = [
    str(SCRIPTS / "node"),
    str(HERE / "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"),
    *("--cli", "--method", "tools/list", "--strict"),
]

SCANNER, FUZZER = "cisco-ai-mcp-scanner==4.8.7", "mcp-fuzzer==0.7.0"

TIMEOUT_SECONDS = 300


def main(names: list[str]) -> int:
    """Run each tool, and say what it found."""
    audits = {"inspector": inspect, "scanner": scan, "fuzzer": fuzz}
    failed = 0
    for name in names or audits:
        faults = audits[name]()
        print(f"{name}: {'; '.join(faults) or 'no faults'}")
        failed |= bool(faults)
    return failed


def inspect() -> list[str]:
    """What the inspector has against the schemas, over each transport."""
    with tempfile.TemporaryDirectory() as home:
        targets = {"stdio": ["-e", f"VERS_RLM_STATE_DIR={home}/state", SERVER]}
        with serving("http", home) as (http, _), serving("sse", home) as (sse, _):
            targets |= {"http": [http], "sse": [sse]}
            return [
                f"{name}: {said.strip()}"
                for name, target in targets.items()
                if "Issue:" in (said := run([*INSPECTOR, *target], home, fail=True).stderr)
            ]


def scan() -> list[str]:
    """Tools that the scanner's rules call unsafe."""
    program = scripts_of(SCANNER) / "mcp-scanner"
    options = ["--analyzers", "yara", "--format", "summary", "stdio", "--stdio-command", SERVER]
    with tempfile.TemporaryDirectory() as home:
        said = run([str(program), *options], home, fail=True).stdout
    unsafe = re.search(r"Unsafe items: (\d+)", said)
    return [] if unsafe and unsafe[1] == "0" else [said]


def fuzz() -> list[str]:
    """How the server fared under a fuzzer: crashes, and faults in its log."""
    program = scripts_of(FUZZER) / "mcp-fuzzer"
    phases = ["--mode", "all", "--phase", "both", "--protocol-phase", "aggressive", "--seed", "1"]
    limits = ["--runs", "10", "--no-network", "--no-corpus", "--log-level", "ERROR"]
    with tempfile.TemporaryDirectory() as home:
        with serving("http", home) as (url, process):
            target = ["--protocol", "streamablehttp", "--endpoint", url, "--output-dir", home]
            run([str(program), *phases, *limits, *target], home, fail=False)
            faults = ["the server ended"] if process.poll() is not None else []
        findings = json.loads(Path(home, "findings.json").read_text())["findings"]
        faults += [json.dumps(found) for found in findings if "crash" in found["category"]]
        log = Path(home, "http.log").read_text()
    return faults + (["a traceback in the log: " + log] if "Traceback" in log else [])


@contextmanager
def serving(transport: str, home: str) -> Generator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a server, and its process."""
    log = Path(home, f"{transport}.log")
    command = [SERVER, "serve", "--transport", transport, "--port", "0", "--max-requests", "1000"]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stderr=file, env=environment(home)) as process,
    ):
        try:
            while not (found := re.search(r"Serving MCP at (\S+)\n", log.read_text())):
                process.poll()
                assert process.returncode is None, log.read_text()
            yield found[1], process
        finally:
            process.terminate()


def run(command: list[str], home: str, *, fail: bool) -> subprocess.CompletedProcess[str]:
    """Run a tool; where a failure of it means something, stop at one."""
    return subprocess.run(
        command,
        env=environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=fail,
    )


def environment(home: str) -> dict[str, str]:
    """Nobody's keys, and a state directory for the moment."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": home,
        "VERS_RLM_STATE_DIR": f"{home}/state",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
