"""`runs` and `machines`, as someone uses them day by day."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Cli

USAGE = 2


@pytest.fixture
def runs(cli: Cli) -> list[str]:
    """The ids of two recorded runs, the older one first."""
    made: list[str] = []
    for code in ("print('first')\nFINAL(1, 'one')", "1/0"):
        model = cli.script(code, "FINAL(2, 'two')")
        done = cli("run", "-> n: int, word", "--json", "--quiet", "--model", model)
        assert (done.returncode, done.stderr) == (0, "")
        made.append(json.loads(done.stdout)["run_id"])
    return made


def test_recorded_runs_are_listed_shown_and_deleted(cli: Cli, runs: list[str]):
    older, latest = runs
    head, first, second = cli.ok("runs", "list").splitlines()
    assert head.split() == ["ID", "AGE", "STATE", "STEPS", "USD", "CHECKPOINTS", "MODEL", "TASK"]
    assert (first.split()[0], second.split()[0]) == (latest, older)
    listed = json.loads(cli.ok("runs", "list", "--json", "--limit", "1", "--state", "finished"))
    assert [each["id"] for each in listed] == [latest]
    assert cli.ok("runs", "list", "--state", "failed") == "no runs\n"

    shown = cli.ok("runs", "show", "last")
    assert "❌ Step 1" in shown
    assert shown.endswith("n: 2\nword: two\n")
    assert "ZeroDivisionError" in cli.ok("runs", "show", latest, "--step", "1")
    assert json.loads(cli.ok("runs", "show", older, "--step", "1", "--json"))["output"] == "first\n"
    assert json.loads(cli.ok("runs", "show", older[:-3], "--json"))["outputs"]["word"] == "one"
    assert "no step 9, only: 1" in cli("runs", "show", older, "--step", "9").stderr

    assert cli.ok("runs", "outputs", latest) == "n: 2\nword: two\n"
    assert cli.ok("runs", "outputs", latest, "word") == "two\n"
    assert json.loads(cli.ok("runs", "outputs", latest, "n", "--json")) == 2
    assert "no output 'w', only: n, word" in cli("runs", "outputs", latest, "w").stderr
    assert "2 runs begin with run-" in cli("runs", "show", "run-").stderr

    assert cli.ok("runs", "delete", "last", older) == f"deleted {latest}, {older}\n"
    assert cli.ok("runs", "list") == "no runs\n"
    assert cli("runs", "show", "last").returncode == USAGE


FILES = ["files/a/.gitignore", "files/a/data", "files/data", "files/other"]


def test_a_run_takes_inputs_from_pipes_and_files_under_names(cli: Cli):
    (cli.home / "a").mkdir()
    for path in ("a/data", "data"):
        (cli.home / path).write_text(path)
    (cli.home / "a/.gitignore").write_text("*.pyc")
    (cli.home / "a/b.pyc").write_text("")
    model = cli.script("FINAL(x, y, z, sorted(exec('find files -type f').stdout.split()))")
    command = (
        f"printf piped | '{cli.command}' run 'x, y, z -> a, b, c, d: list' --model {model} --json "
        "-q -i x=@- -i y=@<(printf from-a-pipe) -i z=@@home -f data -f other=a/data -f a/"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        env=cli.environment, cwd=cli.home, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs = json.loads(done.stdout)["outputs"]
    assert outputs == {"a": "piped", "b": "from-a-pipe", "c": "@home", "d": FILES}


def test_a_kept_machine_is_worked_in_from_the_terminal(cli: Cli):
    model = cli.script("FINAL(1)")
    kept = json.loads(cli.ok("run", "-> x: int", "--keep-vm", "--json", "--model", model))
    machine = kept["machine_id"]
    (cli.home / "in").write_bytes(b"\x00\xff")
    assert cli.ok("machines", "cp", "in", f"{machine}:data/") == "copied 2 bytes\n"
    assert cli.ok("machines", "exec", machine, "wc -c < data/in") == "2\n"
    done = subprocess.run(
        [cli.command, "machines", "exec", machine, "sh", "-c", "cat; echo oops >&2; exit 7"],
        env=cli.environment,
        input="through\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "through\n", "oops\n")
    assert cli.ok("machines", "cp", f"{machine}:data/in", "out") == "copied 2 bytes\n"
    assert (cli.home / "out").read_bytes() == b"\x00\xff"
    assert "--force" in cli("machines", "cp", f"{machine}:data/in", "out").stderr
    assert "ID:PATH" in cli("machines", "cp", "in", "out").stderr
    assert "missing" in cli("machines", "cp", f"{machine}:missing", "new").stderr
    assert not (cli.home / "new").exists()
    (listed,) = json.loads(cli.ok("machines", "list", "--json"))
    assert listed["id"] == machine
    cli.ok("machines", "delete", machine)
    assert "bw-" in cli("machines", "exec", machine, "true").stderr


def test_files_of_a_run_are_saved_where_the_user_wants_them(cli: Cli):
    code = "writeFile('r.csv', '1,2'); writeFile('out/b.txt', 'b'); FINAL('r.csv')"
    arguments = ["run", "-> report: file", "--model", cli.script(code)]
    done = cli(*arguments, "--out", "results", "--output-file", "*.csv")
    assert (done.returncode, done.stdout) == (0, "report: r.csv\n")
    assert "saved results/r.csv (3 bytes)" in done.stderr
    assert (cli.home / "results/r.csv").read_text() == "1,2"
    assert (cli.home / "results/b.txt").read_text() == "b"

    done = cli(*arguments, "--out", "results")
    assert done.returncode == 1
    assert "results/r.csv exists; --force replaces it. It stays on record" in done.stderr
    assert cli(*arguments, "--out", "results", "--force").returncode == 0

    assert "r.csv  3      /workspace/r.csv" in cli.ok("runs", "files", "last")
    (listed, _) = json.loads(cli.ok("runs", "files", "last", "--json"))
    assert Path(listed["kept"]).read_text() == "1,2"
    cli.ok("runs", "files", "last", "--out", "again")
    assert sorted(path.name for path in (cli.home / "again").iterdir()) == ["b.txt", "r.csv"]
