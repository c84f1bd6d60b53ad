"""Paths that are not what they seem, given to the tools."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from users import User

SOON = 20
"""Seconds within which a refusal comes; on an idle machine it takes milliseconds."""

ROUNDS = 10

SWAP = """
cd /workspace; mkfifo fifo; echo mine > regular; ln -sf regular path
(while :; do for to in fifo /dev/zero SECRET regular; do
    ln -sfn $to new && mv -T new path; done; done) >/dev/null 2>&1 &
echo $! > /run/racer
"""


@pytest.mark.parametrize("path", [
    "/proc/1/environ", "/proc/kmsg", "/dev/zero", "/dev/stdin",
    "/.vers/.vers/machine", "SECRET", "../../../../../../../..SECRET",
])  # fmt: skip
async def test_a_path_that_leads_nowhere_good_is_refused_at_once(user: User, path: str):
    secret = user.home / "secret"
    secret.write_text("the host's")
    with anyio.fail_after(SOON):
        text = await user.error("readFile", path=path.replace("SECRET", str(secret)))
        assert "the host's" not in text
        link = path.replace("SECRET", str(secret))
        await user.exec(f"rm -f /workspace/link; ln -s '{link}' /workspace/link")
        assert "the host's" not in await user.error("readFile", path="/workspace/link")


async def test_links_that_are_swapped_during_a_call_show_only_the_machine(user: User):
    secret = user.home / "secret"
    secret.write_text("the host's")
    async with user.machine():
        await user.exec(SWAP.replace("SECRET", str(secret)))
        with anyio.fail_after(SOON * 2):
            for _ in range(ROUNDS):
                for name, more in (("readFile", {}), ("writeFile", {"content": "mine"})):
                    result = await user.tool(name, path="/workspace/path", **more)
                    assert "the host's" not in str(result)
        await user.exec("kill $(cat /run/racer)")
    assert secret.read_text() == "the host's"


@pytest.mark.parametrize("kind", ["link", "climbing", "fifo"])
async def test_a_run_takes_nothing_but_files_from_where_it_may(user: User, kind: str):
    secret = user.home / "secret"
    secret.write_text("the host's")
    place = user.allowed / kind
    make: dict[str, Callable[[], object]] = {
        "link": lambda: place.symlink_to(secret),
        "fifo": lambda: os.mkfifo(place),
        "climbing": lambda: place.symlink_to("../secret"),
    }
    make[kind]()
    with anyio.fail_after(SOON):
        text = await user.error("vers_rlm", signature="-> answer", files=[str(place)])
    assert "the host's" not in text
    assert str(place) in text
