from __future__ import annotations

import pytest
from subjects import SUBJECTS, Subject

from vers_rlm_mcp.machines.bubblewrap import running

pytest.register_assert_rewrite("tree_lab", "tree_model")


@pytest.fixture(params=SUBJECTS, ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """Each backend in turn."""
    chosen: Subject = request.param
    if chosen.merge_layers is not None:
        monkeypatch.setattr(running, "MERGE_LAYERS", chosen.merge_layers)
    return chosen
