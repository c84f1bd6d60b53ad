"""The command line on Vers: the doctor, the demonstration, and that no secret gets anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from vers_rlm_mcp.store import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Cli

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
CLOSED = "http://127.0.0.1:9"
"""An address where nobody answers."""


@pytest.fixture(scope="module")
def facts() -> Iterator[dict[str, Any]]:
    """An emulator in a process of its own."""
    argv = [sys.executable, "-m", "vers_emulator"]
    with subprocess.Popen(argv, cwd=TESTS, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.terminate()


def watch_command_lines(stop: threading.Event, seen: set[bytes]) -> None:
    """Collect what any process of this computer was started with."""
    while not stop.wait(0.05):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(path.read_bytes())
            except OSError:
                continue


def test_the_demonstration_runs_on_vers_and_no_secret_gets_anywhere(
    cli: Cli, facts: dict[str, Any]
) -> None:
    stop, seen = threading.Event(), set[bytes]()
    watcher = threading.Thread(target=watch_command_lines, args=(stop, seen))
    watcher.start()
    try:
        variables = {**facts["environment"], "VERS_RLM_LOG_LEVEL": "debug"}
        done = cli("demo", "--backend", "vers", **variables)
    finally:
        stop.set()
        watcher.join()
    assert done.returncode == 0, done
    assert "on vers (isolation: vm, fidelity: disk)" in done.stdout
    assert "Machines left behind: none." in done.stdout
    assert "Machines come from vers, since it was asked for" in done.stderr
    ledger = Ledger(cli.state)
    assert ledger.machines("vers")
    assert ledger.live("vers") == []
    ledger.close()
    files = [path.read_bytes() for path in cli.home.rglob("*") if path.is_file()]
    assert len(files) >= 2, "the ledger and the journal"
    for text in (done.stdout.encode(), done.stderr.encode(), *files, *seen):
        assert facts["api_key"].encode() not in text
        assert b"PRIVATE KEY" not in text


def test_the_doctor_says_what_costs_nothing_and_makes_nothing(
    cli: Cli, facts: dict[str, Any]
) -> None:
    variables = {**facts["environment"], "VERS_RLM_BACKEND": "auto"}
    text = cli.ok("doctor", **variables)
    assert "Machines come from vers, since there is a key of Vers in VERS_API_KEY." in text
    assert text.count("✓") == 4, text
    assert "the key is accepted; its organisation has 0 machines" in text
    assert "processors" in text
    assert "costs money" in text
    assert facts["api_key"] not in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"VERS_API_KEY": "wrong-key-marker"}, "does not accept the key in VERS_API_KEY"),
        ({"VERS_BASE_URL": CLOSED}, f"cannot be reached at {CLOSED}"),
        ({"VERS_BASE_URL": "nonsense"}, "VERS_BASE_URL or VERS_URL is not the address"),
        ({"VERS_API_KEY": ""}, "There is no key of Vers: put one into VERS_API_KEY"),
        pytest.param(
            {"VERS_RLM_BACKEND": "microsandbox"},
            "pip install 'vers-rlm-mcp[microvm]'",
            marks=pytest.mark.skipif(
                "microsandbox" in packages_distributions(), reason="the extra microvm is installed"
            ),
        ),
    ],
)
def test_what_stands_in_the_way_of_vers_is_said_in_one_clear_line(
    cli: Cli, facts: dict[str, Any], change: dict[str, str], said: str
) -> None:
    done = cli("doctor", **{**facts["environment"], **change})
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("✗")]
    assert said in line
    assert "wrong-key-marker" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_with_our_labels_that_no_ledger_knows_is_named_until_it_is_deleted(
    cli: Cli, facts: dict[str, Any]
) -> None:
    vm_config = {"labels": {"intent": "0" * 32, "vers-rlm-mcp.request": "0" * 32}}
    made = httpx2.post(
        f"{facts['base_url']}/vm/new_root",
        headers={"Authorization": f"Bearer {facts['api_key']}"},
        json={"vm_config": vm_config},
    )
    machine_id = made.json()["vm_id"]
    for command in (("doctor",), ("machines", "list"), ("machines", "sweep")):
        done = cli(*command, **facts["environment"])
        assert done.returncode == 0
        told = done.stdout + done.stderr
        assert f"Not in the ledger, but with a label of vers-rlm-mcp: {machine_id}." in told
    cli.ok("machines", "delete", machine_id, **facts["environment"])
    assert machine_id not in cli.ok("machines", "list", **facts["environment"])


def test_without_a_key_nothing_of_vers_is_loaded(cli: Cli) -> None:
    code = (
        "import sys; from vers_rlm_mcp.machines import choose_backend;"
        "from vers_rlm_mcp.settings import Settings;"
        "print(choose_backend(Settings()).name, 'asyncssh' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=cli.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["bubblewrap", "False"]
