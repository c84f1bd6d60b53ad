"""What a program in a machine sees of the host, and what it can do to it: nothing."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.machines import ExitStatus, run_command

if TYPE_CHECKING:
    from conftest import Shell

    from vers_rlm_mcp.machines import Machine
    from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend


async def test_only_what_is_chosen_of_the_host_is_shown(machine: Machine, sh: Shell) -> None:
    shown = set((await sh(machine, "ls -A /")).split())
    assert shown <= {
        *("app", "bin", "data", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media"),
        *("mnt", "opt", "proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var"),
        *("workspace", ".vers"),
    }
    assert await sh(machine, "ls -A /home /root /srv /opt /tmp | grep -v :; ls -A /.vers") == (
        "\n\n\n\n"
    )
    hidden = (
        "shadow gshadow ssh ssl/private machine-id sudoers apt/auth.conf krb5.keytab hostname.bak"
    )
    assert await sh(machine, f"cd /etc; for f in {hidden}; do test ! -e $f || echo $f; done") == ""


async def test_people_of_the_host_are_not_named(machine: Machine, sh: Shell) -> None:
    lines = (await sh(machine, "cat /etc/passwd")).splitlines()
    assert lines[0].startswith("root:x:0:0:")
    numbers = {int(line.split(":")[2]) for line in lines}
    assert all(number < 1000 or number == 65534 for number in numbers)


async def test_layers_and_base_are_out_of_reach(machine: Machine, sh: Shell) -> None:
    await machine.write("/workspace/file", b"frozen")
    await machine.snapshot()
    ways = "/.vers /.vers/.. /.vers/layers /proc/1/root/.vers /proc/1/cwd/layers"
    seen = await sh(machine, f"for way in {ways}; do ls $way/layers $way/machine; done")
    assert "u" not in [line.strip() for line in seen.splitlines()]
    assert "umount" in await sh(machine, "umount /.vers || echo umount failed")


async def test_programs_hold_few_capabilities_and_can_get_no_more(
    machine: Machine, sh: Shell
) -> None:
    status = await sh(machine, "cat /proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    kept = {bit for bit in range(64) if int(fields["CapBnd"], 16) >> bit & 1}
    assert kept == {0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31}
    assert fields["CapPrm"] == fields["CapEff"] == fields["CapBnd"]
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


async def test_a_rewritten_standard_library_does_not_reach_pid_1(
    machine: Machine, backend: BubblewrapBackend, sh: Shell
) -> None:
    if not backend.capabilities.root:
        pytest.skip("system directories cannot be written here")
    await sh(
        machine, "cd /usr/lib/python3*/ && for f in *.py; do echo 'raise SystemExit' > $f; done"
    )
    commit = await machine.snapshot()
    await machine.write("/workspace/file", b"works")
    assert await sh(machine, "cat file") == "works"
    restored = await backend.restore(commit.id)
    assert await sh(restored, "echo starts") == "starts\n"
    await restored.delete()


async def test_machines_do_not_see_each_other(
    backend: BubblewrapBackend, machine: Machine, sh: Shell
) -> None:
    other = await backend.create()
    async with await other.spawn(["sleep", "4321"]):
        await other.write("/workspace/private", b"x")
        await other.write("/run/private", b"x")
        seen = await sh(machine, "ls /workspace /run /dev/shm /tmp; cat /proc/[0-9]*/cmdline")
    await other.delete()
    assert "private" not in seen
    assert "4321" not in seen


async def test_the_network_is_off(machine: Machine, sh: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert "ConnectionRefusedError" in await sh(machine, f'python3 -c "{reach}"')
    devices = await sh(machine, "tail -n +3 /proc/net/dev")
    assert [line.split(":")[0].strip() for line in devices.splitlines()] == ["lo"]


async def test_a_machine_of_roots_is_not_root_on_the_host(
    machine: Machine, backend: BubblewrapBackend, sh: Shell
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give machines other ids")
    inside, outside, count = (await sh(machine, "cat /proc/self/uid_map")).split()
    assert (inside, count) == ("0", "65536")
    assert int(outside) > 1_000_000
    owners = await sh(machine, "stat -c %u:%g /usr/bin /etc/passwd /workspace /root")
    assert owners.split() == ["0:0"] * 4
    assert await sh(machine, "touch /usr/x && chown 33:33 /usr/x && stat -c %u /usr/x") == "33\n"


async def test_programs_heed_signals_that_the_server_ignores(backend: BubblewrapBackend) -> None:
    ignored = {number: signal.signal(number, signal.SIG_IGN) for number in (1, 2, 3)}
    try:
        machine = await backend.create()
    finally:
        for number, handler in ignored.items():
            signal.signal(number, handler)
    for number in ignored:
        result = await run_command(machine, ["sh", "-c", f"kill -{number} $$"], timeout=20)
        assert result.status == ExitStatus(None, number)
    await machine.delete()


async def test_no_signal_of_a_program_ends_pid_1(machine: Machine, sh: Shell) -> None:
    script = "for number in $(seq 64); do kill -$number 1; done; echo sent"
    assert (await sh(machine, script)).endswith("sent\n")
    assert await sh(machine, "echo alive") == "alive\n"
