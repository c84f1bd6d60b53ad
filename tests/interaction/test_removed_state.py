"""A state directory that is removed while a server uses it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import users

if TYPE_CHECKING:
    from pathlib import Path


async def test_every_call_says_what_has_happened(tmp_path: Path):
    async with users.user(tmp_path) as user:
        await user.exec("true")
        (vm_id,) = await user.vm_ids()
        shutil.rmtree(user.state)
        user.write_script("FINAL(1)")
        for name, arguments in (
            ("vmCreate", {}),
            ("vmList", {}),
            ("vmSnapshot", {}),
            ("vmDelete", {"vmId": vm_id}),
            ("vers_rlm", {"signature": "-> answer: int"}),
        ):
            said = await user.error(name, **arguments)
            assert "fault of this server" not in said, name
            assert "Start this server again" in said, (name, said)
        assert (await user.call("rlmRuns"))["runs"] is not None
