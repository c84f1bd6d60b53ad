"""The emulator as a process of its own, as people at a terminal run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2

import vers_emulator
from vers_rlm_mcp.settings import Settings

SECONDS = 30


def test_it_tells_what_a_client_needs_and_leaves_nothing_behind(
    state: Path, tmp_path: Path
) -> None:
    paths = [str(Path(vers_emulator.__file__).parents[1]), *sys.path]
    with subprocess.Popen(
        [sys.executable, "-m", "vers_emulator", "--state", state],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        headers = {"Authorization": f"Bearer {facts['api_key']}"}
        with httpx2.Client(base_url=facts["base_url"], headers=headers, timeout=SECONDS) as http:
            assert http.post("/vm/new_root", json={"vm_config": {}}).status_code == 201
        names = {name.lower() for name in facts["environment"]}
        settings = {f"vers_rlm_{name}" for name in Settings.model_fields}
        assert names - settings == {"vers_api_key", "vers_base_url"}
        assert Path(facts["ca_file"]).read_text().startswith("-----BEGIN CERTIFICATE")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert "copy the disk only" in errors
    assert list(tmp_path.iterdir()) == []
    assert list(state.glob("*/machines/*")) == []
