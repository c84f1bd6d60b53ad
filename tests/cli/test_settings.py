"""The settings, wherever they come from, and their tables in the README."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vers_rlm_mcp.cli.arguments import create_parser, read_settings
from vers_rlm_mcp.settings import MARKS, PROVIDER_VARIABLES, Settings, markdown, write_tables

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


def test_a_setting_with_several_values_is_given_by_repeated_flags_before_and_after_the_command():
    options = create_parser().parse_args(
        ["--allow-dir", "/a:b", "--toolsets", "rlm", "machines", "--allow-dir", "/c", "list"]
    )
    settings = read_settings(options)
    assert settings.allow_dir == (Path("/a:b"), Path("/c"))
    assert settings.toolsets == ("rlm",)
    assert not settings.read_only


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
