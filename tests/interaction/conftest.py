from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import users

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from users import User


@pytest.fixture(scope="module")
async def user(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[User]:
    """One for the module: a server takes a second to start, and has to survive all its tests."""
    async with users.user(tmp_path_factory.mktemp("user"), VERS_RLM_CELL_TIMEOUT="2") as user:
        yield user
