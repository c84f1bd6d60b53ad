from __future__ import annotations

# Imported here since that takes seconds on a busy computer, for which no test's limit allows.
import anthropic  # noqa: F401  # pyright: ignore[reportUnusedImport]
import openai  # noqa: F401  # pyright: ignore[reportUnusedImport]
import pytest

from vers_rlm_mcp import retries


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once. How long the delays are is tested in `test_retries`."""
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.01)
