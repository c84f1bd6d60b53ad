"""For authors of a backend: the contract of machines as checks, and a machine without isolation.

`CHECKS` holds a backend to every promise of `vers_rlm_mcp.machines`. With pytest and anyio's
plugin (``anyio_mode = "auto"``)::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
    async def test_my_backend_keeps_every_promise(check: Check, tmp_path: Path) -> None:
        await check(lambda: MyBackend(tmp_path))

In a script a check is run by ``anyio.run(check, open_backend)``; `open_backend` returns a new
object over the same machines each time it is called. From a terminal::

    python -m vers_rlm_mcp.testing my_package.my_module:open_backend [CHECK ...]

`FakeBackend` passes every check that applies to a machine without isolation. Use it to test what
needs machines but not their isolation. `docs/adding-a-backend.md` is the guide.
"""

from __future__ import annotations

from .checks import CHECKS, Check, CheckFailed, OpenBackend
from .fake import FakeBackend, FakeMachine, FakeProcess

__all__ = [
    "CHECKS",
    "Check",
    "CheckFailed",
    "FakeBackend",
    "FakeMachine",
    "FakeProcess",
    "OpenBackend",
]
