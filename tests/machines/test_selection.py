"""Which backend the settings choose."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from vers_rlm_mcp import machines
from vers_rlm_mcp.errors import BackendUnavailable
from vers_rlm_mcp.machines import Usable, choose_backend, open_fleet
from vers_rlm_mcp.machines.selection import load_factory
from vers_rlm_mcp.settings import BACKENDS, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of a user who has no key of Vers."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VERS_API_KEY", raising=False)
    return tmp_path / "state"


def test_every_backend_of_the_settings_has_a_room_that_opens_it() -> None:
    rooms = {path.parent.name for path in Path(machines.__file__).parent.glob("*/factory.py")}
    assert rooms == set(BACKENDS)
    assert all(load_factory(name) for name in BACKENDS)


def test_a_backend_that_is_named_is_taken_untried(state: Path) -> None:
    choice = choose_backend(settings(backend="vers", state_dir=state))
    assert (choice.name, choice.reason) == ("vers", "it was asked for")


def test_a_name_that_is_no_backends_is_refused() -> None:
    with pytest.raises(ValidationError, match="'auto', 'vers', 'microsandbox' or 'bubblewrap'"):
        settings(backend="docker")


@pytest.mark.parametrize(
    ("found", "name", "reason"),
    [
        ((True, True, True), "vers", "of vers"),
        ((False, True, True), "microsandbox", "of vers, and of microsandbox"),
        ((False, False, True), "bubblewrap", "of vers, and of microsandbox, and of bubblewrap"),
    ],
)
def test_auto_takes_the_first_that_is_usable_and_says_why(
    found: Sequence[bool],
    name: str,
    reason: str,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find(monkeypatch, found)
    choice = choose_backend(settings(state_dir=state))
    assert (choice.name, choice.reason) == (name, reason)


def test_where_none_is_usable_every_reason_is_given(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find(monkeypatch, (False, False, False))
    with pytest.raises(BackendUnavailable, match="here: of vers, and of microsandbox, and of bub"):
        choose_backend(settings(state_dir=state))


async def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    chosen = settings(backend="bubblewrap", state_dir=tmp_path / "file" / "state")
    with pytest.raises(BackendUnavailable, match="VERS_RLM_STATE_DIR"):
        async with open_fleet(chosen):
            pass


def settings(**values: object) -> Settings:
    return Settings.model_validate(values)


def find(monkeypatch: pytest.MonkeyPatch, found: Sequence[bool]) -> None:
    """Let each backend in turn be usable or not."""
    for name, yes in zip(BACKENDS, found, strict=True):
        monkeypatch.setattr(load_factory(name), "usable", partial(_usable, yes, f"of {name}"))


def _usable(yes: bool, reason: str, _: Settings) -> Usable:
    return Usable(yes, reason)
