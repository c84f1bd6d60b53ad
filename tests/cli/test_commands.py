"""The command line as a user meets it: a process with arguments, output and an exit code."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from vers_rlm_mcp import __version__
from vers_rlm_mcp.cli.commands import program
from vers_rlm_mcp.settings import Settings, variable

if TYPE_CHECKING:
    import subprocess

    from conftest import Cli

FAILED, USAGE, INCOMPLETE = 1, 2, 3


COMMANDS = (
    "serve", "run", "demo", "doctor", "runs", "machines", "settings show", "help", "completion",
    *(f"runs {name}" for name in ("list", "show", "outputs", "tree", "diff", "resume", "replay")),
    *(f"runs {name}" for name in ("delete", "prune")),
    *(f"machines {name}" for name in ("list", "exec", "cp", "delete", "diff", "sweep")),
)  # fmt: skip

MOST_LINES = 40
MOST_ERROR_LINES = 4
"""An error is one line, but for a signature's, which points into it."""


def test_help_names_every_command_and_each_explains_itself_briefly():
    text = help_of()
    for command in COMMANDS:
        assert command.split()[0] in text
        explained = help_of(*command.split())
        assert f"Usage: vers-rlm-mcp {command}" in explained
        assert len(explained.splitlines()) <= MOST_LINES, command
    assert "--transport" in help_of("serve")
    assert "NAME=@PATH" in help_of("run")


def help_of(*command: str) -> str:
    return CliRunner().invoke(program, [*command, "--help"], prog_name="vers-rlm-mcp").output


def test_help_explains_settings_and_exit_codes(cli: Cli):
    text = cli.ok("help", "settings")
    for name in Settings.model_fields:
        assert variable(name) in text
    assert "130 by Ctrl-C" in cli.ok("help", "exit-codes")
    assert cli.ok("help", "runs", "show") == cli.ok("runs", "show", "--help")
    assert "no help on 'nonsense'" in cli("help", "nonsense").stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_commands(cli: Cli, shell: str):
    assert "_VERS_RLM_MCP_COMPLETE" in cli.ok("completion", shell)
    words = {"COMP_WORDS": "vers-rlm-mcp runs sh", "COMP_CWORD": "2"}
    assert "show" in cli.ok(_VERS_RLM_MCP_COMPLETE="bash_complete", **words)


def test_version(cli: Cli):
    assert cli.ok("--version") == f"vers-rlm-mcp {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-second", "5"], "--max-second"),
        (["run", "-> x", "--sttate-dir", "x"], "--sttate-dir"),
        (["fly"], "fly"),
        (["run", "-> x", "--modle", "x"], "'--model'"),
        (["machines", "lst"], "Did you mean 'list'?"),
        (["serve", "--port", "65536"], "65536 is not in the range 0<=x<=65535"),
        (["serve", "--port", "http"], "not a valid integer"),
        (["machines", "explode"], "explode"),
        (["--max-usd", "much", "machines", "list"], "--max-usd: Input should be a valid number"),
        (["machines", "list", "--backend", "docker"], "--backend: Input should be"),
        (["machines", "delete"], "Missing argument 'ID...'"),
        (["machines", "list", "bw-1"], "unexpected extra argument (bw-1)"),
        (["machines", "delete", "bw-1"], "bw-1"),
        (["machines", "diff", "bw-1"], "Missing argument 'B'"),
        (["machines", "diff", "bw-1", "bw-2"], "bw-1"),
        (["run", "no arrow"], "->"),
        (["run", "a -> x"], "missing inputs: a"),
        (["run", "a -> x", "--input", "a"], "NAME=VALUE"),
        (["run", "a -> x", "--input", "b=1"], "no such input, only: a"),
        (["run", "a -> x", "--input", "a=1", "--input", "a=2"], "given twice"),
        (["run", "a: int -> x", "--input", "a=one"], "is not JSON"),
        (["run", "a -> x", "--input", "a=@missing"], "missing cannot be read"),
        (["run", "a: int -> x", "--input", "a=@missing"], "missing cannot be read"),
        (["run", "-> x", "--file", "missing"], "missing cannot be read"),
        (["run", "-> x", "--file", "f=a/f", "--file", "f=b/f"], "Two files are called 'f'"),
        (["run", "-> x", "--max-iterations", "0"], "at least 1 iteration"),
        (["run", "-> x", "--max-llm-calls", "-1"], "-1 sub-calls"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_no_machine_is_made(
    cli: Cli, arguments: list[str], said: str
):
    done = cli(*arguments, VERS_RLM_MODEL=cli.script("FINAL(1)"))
    assert done.returncode == USAGE
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= MOST_ERROR_LINES
    assert done.stdout == ""
    assert cli.live() == []


def test_a_wrong_variable_is_named_as_such(cli: Cli):
    done = cli("machines", "list", VERS_RLM_MAX_MACHINES="0")
    assert done.returncode == USAGE
    assert "VERS_RLM_MAX_MACHINES: Input should be" in done.stderr


def test_an_empty_variable_is_as_good_as_none(cli: Cli):
    assert cli.ok("machines", "list", VERS_RLM_MAX_MACHINES="", VERS_RLM_MAX_USD="")


def test_without_a_key_the_error_names_the_variables(cli: Cli):
    done = cli("run", "-> x")
    assert done.returncode == FAILED
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL", "VERS_RLM_MODEL"):
        assert name in done.stderr


def test_a_run_prints_its_outputs_and_tells_its_progress_apart(cli: Cli):
    (cli.home / "log").write_text("one\ntwo\n")
    (cli.home / "data").write_text("data")
    model = cli.script("print('looking')", "FINAL(log.count('\\n') + n, exec('cat files/data'))")
    done = cli(
        "run", "log, n: int -> lines: int, data", "--model", model, "--file", "data",
        "--input", "log=@log", "--input", "n=40",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "lines: 42\ndata: data\n")
    assert "looking" in done.stderr
    assert "was deleted (bubblewrap, isolation namespace, fidelity disk)" in done.stderr
    assert cli.live() == []


def test_a_run_as_json_is_the_whole_result(cli: Cli):
    model = cli.script("FINAL({'a': 'é'})")
    result = json.loads(cli.ok("run", "-> x: dict", "--json", "--model", model))
    assert result["outputs"] == {"x": {"a": "é"}}
    assert result["status"] == "finished"
    assert len(result["steps"]) == 1
    assert (cli.state / "runs" / result["run_id"] / "events.jsonl").exists()


def test_a_run_without_all_of_its_outputs_has_an_exit_code_of_its_own(cli: Cli):
    model = cli.script("FINAL(good=1, bad='no')")
    done = cli("run", "-> good: int, bad: int", "--model", model)
    assert (done.returncode, done.stdout) == (INCOMPLETE, "good: 1\n")


def test_a_machine_cannot_give_orders_to_the_terminal(cli: Cli):
    model = cli.script(r"print('\x1b]0;owned\x07 \x9b2J\r'); FINAL(1)")
    done = cli("run", "-> x: int", "--model", model)
    assert "owned" in done.stderr
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(done.stderr)


def test_results_are_printed_in_a_locale_that_lacks_their_letters(cli: Cli):
    model = cli.script("FINAL('\\u20ac')")
    done = cli("run", "-> x", "--model", model, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, done.stdout) == (0, "x: \\u20ac\n")


@pytest.mark.parametrize("before", [True, False])
def test_flags_count_before_and_after_the_command(cli: Cli, before: bool):
    flags, command = ["--state-dir", str(cli.home / "mine")], ["machines", "list"]
    cli.ok(*(flags + command if before else command + flags))
    assert (cli.home / "mine" / "ledger.sqlite3").exists()
    assert not cli.state.exists()


def test_the_flag_after_the_command_wins_and_both_beat_the_environment(cli: Cli):
    cli.ok("--state-dir", cli.home / "a", "machines", "--state-dir", cli.home / "b", "list")
    assert (cli.home / "b").exists()
    assert not (cli.home / "a").exists()
    assert not cli.state.exists()


def test_machines_and_commits_are_listed_and_deleted(cli: Cli):
    assert cli.ok("machines", "list") == "no machines and no commits\n"
    code = "commit = vmSnapshot(); FINAL(commit)"
    model = cli.script(code)
    result = json.loads(cli.ok("run", "-> commit", "--keep-vm", "--json", "--model", model))
    machine, commit = result["machine_id"], result["outputs"]["commit"]
    head, first, second = cli.ok("machines", "list").splitlines()
    assert head.split() == ["ID", "AGE", "STATE", "FROM", "RUN"]
    assert first.split()[0] == machine
    assert "kept" in first
    assert result["run_id"] in first
    assert second.split()[0] == commit
    assert machine in second
    assert cli.ok("machines", "sweep") == "nothing to sweep\n"
    difference = cli.ok("machines", "diff", commit, machine)
    assert difference.startswith("Files: no difference\n")
    deleted = cli.ok("machines", "delete", machine, commit)
    assert deleted == f"deleted {machine}\ndeleted {commit}\n"
    assert cli.ok("machines", "list") == "no machines and no commits\n"


def test_what_has_a_damaged_record_can_be_deleted_as_the_warning_says(cli: Cli):
    model = cli.script("FINAL(vmSnapshot())")
    flags = ("--keep-vm", "--json", "--checkpoints", "off", "--model", model)
    result = json.loads(cli.ok("run", "-> commit", *flags))
    machine, commit = result["machine_id"], result["outputs"]["commit"]
    store = cli.state / "bubblewrap"
    for record in (store / "machines" / machine / "machine.json", store / f"commits/{commit}.json"):
        record.write_bytes(b"")
    done = cli("machines", "list")
    assert done.stdout == "no machines and no commits\n"
    assert f"machines delete {machine}" in done.stderr
    assert f"machines delete {commit}" in done.stderr
    assert cli("machines", "list").stderr.count("damaged") == 0
    cli.ok("machines", "delete", machine, commit)
    assert not [*store.glob("*/bw*"), *store.glob("layers/*")]


def test_a_kept_machine_is_used_by_a_later_run(cli: Cli):
    model = cli.script("n = 41; FINAL(n)")
    kept = json.loads(cli.ok("run", "-> x: int", "--keep-vm", "--json", "--model", model))
    model = cli.script("FINAL(n + 1)")
    machine = kept["machine_id"]
    assert cli.ok("run", "-> x: int", "--vm-id", machine, "--model", model) == "x: 42\n"
    cli.ok("machines", "delete", machine)


def begun(process: subprocess.Popen[str]) -> None:
    """Wait until the first step is over; the next cell never ends."""
    assert process.stderr
    for line in process.stderr:
        if "Step 1/" in line:
            return


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGTERM] * 2])
def test_a_signal_during_a_run_ends_it_and_leaves_no_machine(
    cli: Cli, signals: list[signal.Signals]
):
    model = cli.script("print('begun')", "while True: pass")
    with cli.start("run", "-> x", "--model", model) as process:
        begun(process)
        assert len(cli.live()) == 1
        for number in signals:
            process.send_signal(number)
        assert process.wait(timeout=10) == 128 + signals[0]
        assert process.stderr
        assert "vers-rlm-mcp runs resume run-" in process.stderr.read()
    assert cli.live() == []
    assert cli.ok("machines", "list") == "no machines and no commits\n"


def test_what_a_killed_run_left_is_swept(cli: Cli):
    model = cli.script("print('begun')", "while True: pass")
    with cli.start("run", "-> x", "--model", model) as process:
        begun(process)
        (machine,) = cli.live()
        process.kill()
    # The checkpoint of its first step may have been under way.
    assert cli.ok("machines", "sweep").startswith(f"deleted {machine}")
    assert cli.live() == []
    assert cli.ok("machines", "list") == "no machines and no commits\n"


def test_the_demo_says_first_that_it_is_scripted_and_ends_well(cli: Cli):
    text = cli.ok("demo")
    assert "SCRIPTED" in text.splitlines()[0]
    assert "Machines left behind: none." in text
    assert cli.live() == []


def test_the_demo_keeps_to_the_flags(cli: Cli):
    done = cli("demo", "--max-iterations", "1")
    assert done.returncode == USAGE
    done = cli("demo", "--max-seconds", "0.001")
    assert done.returncode == FAILED
    assert "limit of 0.001 s" in done.stdout
