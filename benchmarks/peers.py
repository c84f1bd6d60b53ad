"""The peers' virtual environments: made once, kept under `.peers/`, which git ignores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE / ".peers"
IMPORT_MAP = HERE / "adapters" / "import_map.json"

REQUIREMENTS = {
    "rlms": ("rlms==0.1.3",),
    "dspy": ("dspy==3.4.1", "deno==2.9.8"),
}

INSTALL_SECONDS = 900
"""What installing a peer may take."""

_RUNNER = "import dspy, pathlib; print(pathlib.Path(dspy.__file__).parent / 'primitives/runner.js')"


class PeerMissing(Exception):
    """A peer cannot be run here; the text says why."""


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is missing.

    Raises `PeerMissing` when it cannot be installed.
    """
    home = PEERS / peer
    ready = home / "requirements.json"
    wanted = json.dumps(REQUIREMENTS[peer])
    if not ready.exists() or ready.read_text() != wanted:
        print(f"Installing {', '.join(REQUIREMENTS[peer])} …", file=sys.stderr)
        shutil.rmtree(home, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(home))
        _run(str(home / "bin/pip"), "install", "--quiet", *REQUIREMENTS[peer])
        ready.write_text(wanted)
    return home / "bin" / "python"


def deno_environment() -> dict[str, str]:
    """What `dspy.PythonInterpreter` needs in its environment to run with nothing to be fetched.

    Its runner imports Pyodide from npm, and one function from deno.land. Where that host cannot be
    reached, an import map puts `read_lines.js` in its place. Raises `PeerMissing`.
    """
    python = python_of("dspy")
    environment = {"DENO_DIR": str(PEERS / "deno")}
    ready = PEERS / "deno" / "ready.json"
    if not ready.exists():
        runner = _run(str(python), "-c", _RUNNER).strip()
        deno = [str(python.with_name("deno")), "cache", "--no-config", "--no-lock", "--quiet"]
        try:
            _run(*deno, runner, **environment)
            found: dict[str, str] = {}
        except PeerMissing:
            _run(*deno, f"--import-map={IMPORT_MAP}", runner, **environment)
            found = {"IMPORT_MAP": str(IMPORT_MAP)}
        ready.write_text(json.dumps(found))
    return environment | json.loads(ready.read_text())


def _run(*argv: str, **environment: str) -> str:
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
            timeout=INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise PeerMissing(f"`{argv[0]}` took more than {INSTALL_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:] or ["no word"]
        raise PeerMissing(f"`{Path(argv[0]).name} {argv[1]}` failed: {last[0]}") from error
    return done.stdout
