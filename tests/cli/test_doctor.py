"""`doctor`, on a computer where machines can be made and on ones where they cannot."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.store import Ledger

if TYPE_CHECKING:
    from conftest import Cli


def test_a_healthy_computer_is_said_to_be_one_and_nothing_is_left_behind(cli: Cli):
    text = cli.ok("doctor")
    assert text.count("✓") == 4, text
    assert "✗" not in text
    assert "isolation: namespace, fidelity: disk" in text
    assert "Limit on memory" in text
    ledger = Ledger(cli.state)
    assert ledger.live("bubblewrap") == []
    ledger.close()
    assert "no machines" in cli.ok("machines", "list")


def test_it_says_which_model_would_be_taken_and_never_its_key(cli: Cli):
    text = cli.ok("doctor", ANTHROPIC_API_KEY="sk-ant-marker")
    assert "The model is anthropic:" in text
    assert "sk-ant-marker" not in text
    assert "ANTHROPIC_API_KEY" in cli.ok("doctor")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"VERS_RLM_BASE": "/nowhere"}, "It must be a root directory, or an archive"),
        ({"VERS_RLM_STATE_DIR": "/proc/nowhere"}, "Set VERS_RLM_STATE_DIR"),
    ],
)
def test_what_stands_in_the_way_is_said_with_what_to_do(
    cli: Cli, setting: dict[str, str], said: str
):
    process = cli("doctor", **setting)
    assert process.returncode == 1
    assert "✗" in process.stdout
    assert said in process.stdout
    assert "Traceback" not in process.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount the overlay it is shown on")
def test_a_state_directory_on_an_overlay_is_refused_with_the_remedy(cli: Cli):
    script = (
        "mkdir l u w m && mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m && "
        'VERS_RLM_STATE_DIR=$PWD/m exec "$0" doctor'
    )
    process = cli.shell_in_mount_namespace(script)
    assert process.returncode == 1
    assert "which must lie on ext4, xfs, btrfs or tmpfs" in process.stdout
