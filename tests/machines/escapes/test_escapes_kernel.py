"""A program that takes the place of the REPL's kernel in its machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.errors import KernelError
from vers_rlm_mcp.kernel import Kernel
from vers_rlm_mcp.kernel.archive import guest_archive
from vers_rlm_mcp.machines import run_command

if TYPE_CHECKING:
    from vers_rlm_mcp.machines import Machine

guest_archive()  # Kept from here on: an ordinary user may not read what makes it.

SECONDS = 60.0

IMPOSTOR = """
import array, os, socket
place = "/run/vers-rlm/kernel.sock"
os.unlink(place)
listener = socket.socket(socket.AF_UNIX)
listener.bind(place)
listener.listen()
print("listening", flush=True)
connection, _ = listener.accept()
_, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
for number in descriptors:
    print(os.readlink(f"/proc/self/fd/{number}").partition(":")[0], flush=True)
os.write(descriptors[1], bytes(range(256)) * 100)
"""


async def test_gets_the_streams_of_one_connection_and_breaks_no_more_than_that(
    machine: Machine,
) -> None:
    first = await Kernel.connect(machine, home_id=machine.id)
    await first.aclose()
    async with await machine.spawn(["python3", "-c", IMPOSTOR]) as impostor:
        assert await impostor.stdout.receive() == b"listening\n"
        with anyio.fail_after(SECONDS), pytest.raises(KernelError):
            await Kernel.connect(machine, home_id=machine.id)
        told = b"".join([chunk async for chunk in impostor.stdout])
    assert told.split() == [b"pipe", b"pipe"]
    result = await run_command(machine, ["echo", "goes on"], timeout=SECONDS)
    assert result.stdout.text == "goes on\n"
