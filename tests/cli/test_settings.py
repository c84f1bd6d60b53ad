"""The settings, wherever they come from, and their tables in the README."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.settings import MARKS, PROVIDER_VARIABLES, Settings, markdown, write_tables

if TYPE_CHECKING:
    from conftest import Cli

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_has_the_tables_as_they_are():
    _, _, rest = README.read_text().partition(MARKS[0])
    tables, _, _ = rest.partition(MARKS[1])
    assert tables.strip() == markdown().strip(), "run `make readme`"


def test_the_tables_name_every_setting_and_every_variable_of_a_provider():
    for name in Settings.model_fields:
        assert f"| `VERS_RLM_{name.upper()}` | `--{name.replace('_', '-')}` |" in markdown()
    for name in PROVIDER_VARIABLES:
        assert f"| `{name}` |" in markdown()


def test_the_module_prints_the_tables():
    printed = subprocess.check_output([sys.executable, "-m", "vers_rlm_mcp.settings"], text=True)
    assert printed == markdown()


def test_the_tables_are_written_between_the_marks_and_nowhere_else(tmp_path: Path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{MARKS[0]}stale\n{MARKS[1]}after\n")
    write_tables(path)
    write_tables(path)
    assert path.read_text() == f"before\n{MARKS[0]}\n{markdown()}\n{MARKS[1]}after\n"


def test_a_file_without_the_marks_is_left_alone(tmp_path: Path):
    path = tmp_path / "README.md"
    path.write_text("no marks\n")
    with pytest.raises(SystemExit, match="has no lines"):
        write_tables(path)
    assert path.read_text() == "no marks\n"


def test_a_child_process_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VERS_RLM_NETWORK", "host")
    given = Settings.model_validate(
        {
            "allow_dir": ["/a b", "/c"],
            "max_usd": 2.5,
            "model": None,
            "token": ["one", "two"],
            "toolsets": "vm",
            "read_only": True,
        }
    )
    monkeypatch.delenv("VERS_RLM_NETWORK")
    for name, value in given.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.model_validate({}) == given


def test_a_setting_with_several_values_is_given_by_repeated_flags_before_and_after_the_command(
    cli: Cli,
):
    flags = ["--allow-dir", "/a:b", "--toolsets", "rlm", "settings"]
    shown = json.loads(cli.ok(*flags, "show", "--allow-dir", "/c", "--json"))
    assert shown["allow_dir"] == {"value": "/a:b,/c", "source": "--allow-dir"}
    assert shown["toolsets"] == {"value": "rlm", "source": "--toolsets"}
    assert shown["read_only"] == {"value": "False", "source": "default"}


def test_in_the_environment_several_values_are_separated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VERS_RLM_ALLOW_DIR", "/a b:/c")
    monkeypatch.setenv("VERS_RLM_TOOLSETS", "rlm, vm")
    monkeypatch.setenv("VERS_RLM_READ_ONLY", "true")
    settings = Settings.model_validate({})
    assert settings.allow_dir == (Path("/a b"), Path("/c"))
    assert settings.toolsets == ("rlm", "vm")
    assert settings.read_only


def test_a_token_is_not_shown():
    assert "secret" not in repr(Settings.model_validate({"token": "secret"}))


def test_the_state_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert Settings.model_validate({}).state_dir == Path("/xdg/vers-rlm-mcp")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert Settings.model_validate({}).state_dir == Path("/home/someone/.local/state/vers-rlm-mcp")


def write_settings(cli: Cli, text: str, *, project: bool = False) -> Path:
    path = cli.home / ("vers-rlm-mcp.toml" if project else ".config/vers-rlm-mcp/config.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_each_setting_is_shown_with_where_it_comes_from(cli: Cli):
    path = write_settings(cli, 'max_usd = 2.5\nmax-tokens = 1000\nallow_dir = ["~/data"]\n')
    write_settings(cli, 'max_usd = 1.5\nmodel = "anthropic:x"\n', project=True)
    arguments = ["settings", "show", "--json", "--max-machines", "3"]
    shown = json.loads(cli.ok(*arguments, VERS_RLM_MODEL="openai:y", VERS_RLM_TOKEN="secret"))
    assert shown["max_usd"] == {"value": "1.5", "source": "vers-rlm-mcp.toml"}
    assert shown["max_tokens"] == {"value": "1000", "source": str(path)}
    assert shown["allow_dir"] == {"value": str(cli.home / "data"), "source": str(path)}
    assert shown["model"] == {"value": "openai:y", "source": "VERS_RLM_MODEL"}
    assert shown["max_machines"] == {"value": "3", "source": "--max-machines"}
    assert shown["vcpu_count"] == {"value": "2", "source": "default"}
    assert shown["token"] == {"value": "(set)", "source": "VERS_RLM_TOKEN"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('allow_dir = ["/"]', "may not set allow_dir"),
        ('network = "host"', "may not set network"),
        ('backend = "vers"', "may not set backend"),
        ('base = "/tmp"', "may not set base"),
        ('state_dir = "."', "may not set state_dir"),
        ('log_file = "log"', "may not set log_file"),
        ('token = ["x"]', "may not set token"),
        ("vers_insecure = true", "may not set vers_insecure"),
        ('model = "scripted:script"', "may not set model to 'scripted:script'"),
        ("max_seconds = 100000", "may not raise max_seconds from 1800"),
        ("max_usd = 3.0", "may not raise max_usd from 2.5"),
        ("max_usd = inf", "may not raise max_usd from 2.5"),
        ("max_usd = nan", "max_usd: Input should be"),
        ("max_usd = 'x'", "max_usd: Input should be"),
        ("max_us = 1", "max_us is not a setting (did you mean max_usd?)"),
        ("max_usd = ", "is not valid TOML"),
        ("# " + "x" * 70_000, "is larger than 64 KiB"),
    ],
)
def test_a_project_may_only_name_models_and_lower_limits(cli: Cli, text: str, said: str):
    write_settings(cli, "max_usd = 2.5\n")
    write_settings(cli, text, project=True)
    done = cli("machines", "list")
    assert done.returncode == 2
    assert said in done.stderr
    assert not cli.state.exists()


def test_a_project_file_that_is_no_file_does_not_hold_the_server_up(cli: Cli):
    os.mkfifo(cli.home / "vers-rlm-mcp.toml")
    assert "is not a regular file" in cli("machines", "list").stderr


def test_a_variable_that_is_no_setting_is_told(cli: Cli):
    done = cli("machines", "list", VERS_RLM_MAX_TOKEN="3")
    assert done.returncode == 0
    assert "VERS_RLM_MAX_TOKEN is not a setting (did you mean VERS_RLM_MAX_TOKENS?)" in done.stderr


def test_homes_and_variables_are_expanded_in_paths(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "there")
    monkeypatch.setenv("VERS_RLM_ALLOW_DIR", "~/data:/$PLACE")
    settings = Settings.model_validate({"state_dir": "~/state"})
    assert settings.allow_dir == (Path("/home/me/data"), Path("/there"))
    assert settings.state_dir == Path("/home/me/state")
