from __future__ import annotations

import pytest
from subjects import SUBJECTS, Subject

pytest.register_assert_rewrite("lab", "tree_model")


@pytest.fixture(params=SUBJECTS, ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each backend in turn."""
    return request.param
