from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import user_data
from vers_rlm_mcp.store import Ledger

COMMAND = str(Path(sys.executable).with_name("vers-rlm-mcp"))


@dataclass
class Cli:
    """The installed command, with a state directory of its own and nobody's keys."""

    home: Path
    command: str = COMMAND

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_DATA_HOME": str(user_data.DIRECTORY),
            "VERS_RLM_STATE_DIR": str(self.state),
        }

    def __call__(
        self, *arguments: str | Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [COMMAND, *map(str, arguments)],
            env={**self.environment, **environment},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def shell_in_mount_namespace(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script, the command its `$0`, whose mounts go when it ends."""
        return subprocess.run(
            ["unshare", "--mount", "sh", "-ec", script, COMMAND],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it; its standard error can be read."""
        return subprocess.Popen(
            [COMMAND, *arguments],
            env=self.environment,
            cwd=self.home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ok(self, *arguments: str | Path, **environment: str) -> str:
        """The output of a command that must succeed."""
        done = self(*arguments, **environment)
        assert done.returncode == 0, done
        return done.stdout

    def script(self, *codes: str) -> str:
        """A scripted model whose replies are cells with this code."""
        path = self.home / "script"
        path.write_text("".join(f"--- reply\nSo.\n```python\n{code}\n```\n" for code in codes))
        return f"scripted:{path}"

    def live(self) -> list[str | None]:
        """The machines that the ledger still has."""
        ledger = Ledger(self.state)
        try:
            return [record.machine_id for record in ledger.live("bubblewrap")]
        finally:
            ledger.close()


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)
