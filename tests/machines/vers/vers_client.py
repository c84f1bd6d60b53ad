"""What tests of the client have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vers_rlm_mcp import retries
from vers_rlm_mcp.machines.vers import api, making, reach

if TYPE_CHECKING:
    import pytest

UNKNOWN = "00000000-0000-4000-8000-000000000000"
"""An id of the right shape that nobody made."""


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between attempts: how long they are is tested elsewhere."""
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(reach, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(reach, "LAST_PAUSE", 0.1)
    monkeypatch.setattr(making, "VISIBLE_PAUSE", 0.05)
    monkeypatch.setattr(making, "VISIBLE_SECONDS", 0.2)
    monkeypatch.setattr(api, "GONE_PAUSE", 0.05)
    monkeypatch.setattr(api, "GONE_SECONDS", 0.2)
