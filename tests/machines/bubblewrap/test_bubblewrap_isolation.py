"""What a program in a machine sees of the host, and what it can do to it: nothing."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.machines.bubblewrap import syscalls

if TYPE_CHECKING:
    from conftest import Shell

    from vers_rlm_mcp.machines import Machine
    from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend

EPERM = 1

CALL = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number):
    ctypes.set_errno(0)
    return [libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0), ctypes.get_errno()]
print(json.dumps([call(int(number)) for number in sys.argv[1:]]))
"""


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


async def test_no_file_of_the_host_can_be_reached_through_proc(machine: Machine, sh: Shell) -> None:
    with tempfile.NamedTemporaryFile(prefix="secret") as secret:
        for way in ("1/root", "1/cwd", "self/root", "self/cwd/../../../../../.."):
            assert "secret" not in await sh(machine, f"ls /proc/{way}{Path(secret.name).parent}")
    for name in ("environ", "maps", "mem", "fd/0", "cwd", "exe"):
        assert "Permission denied" in await sh(
            machine, f"stat -L /proc/1/{name} && cat /proc/1/{name}"
        )


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


@pytest.mark.parametrize("command", [
    "unshare -U true",
    "unshare -m true",
    "unshare -r mount -t tmpfs none /mnt",
    "mount -t tmpfs none /mnt",
    "mount --bind /etc /mnt",
    "mount -o remount,rw /",
    "umount /proc",
    "mknod /tmp/disk b 254 0",
    "mknod /tmp/mem c 1 1",
    "nsenter -t 1 -m true",
    "echo core > /proc/sys/kernel/core_pattern",
    "echo 100 > /proc/sys/user/max_user_namespaces",
    "echo b > /proc/sysrq-trigger",
    "hostname other",
    "date -s 2001-01-01",
    "chroot /proc/1/root true",
    "touch /new",
    "ln -s x /dev/new",
])  # fmt: skip
async def test_what_would_open_the_machine_is_refused(
    machine: Machine, sh: Shell, command: str
) -> None:
    assert await sh(machine, f"({command}) >/dev/null 2>&1 && echo worked") == ""


async def test_dangerous_system_calls_are_refused(machine: Machine, sh: Shell) -> None:
    await machine.write("/workspace/call.py", CALL.encode())
    calls = syscalls.refused()
    numbers = " ".join(str(number) for number in calls.values())
    results = json.loads(await sh(machine, f"python3 call.py {numbers}"))
    assert [
        name for name, result in zip(calls, results, strict=True) if result != [-1, EPERM]
    ] == []


async def test_pid_1_cannot_be_harmed(machine: Machine, sh: Shell) -> None:
    await sh(machine, "kill -9 1; kill -STOP 1; kill -TERM 1; kill -9 -1")
    assert await sh(machine, "python3 -c 'import os; os.kill(1, 11)'; echo alive") == "alive\n"


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


async def test_abstract_sockets_of_the_host_are_out_of_reach(machine: Machine, sh: Shell) -> None:
    name = f"vers-rlm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        reach = f"import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}')"
        assert "ConnectionRefusedError" in await sh(machine, f'python3 -c "{reach}"')


async def test_programs_inherit_no_descriptors(machine: Machine, sh: Shell) -> None:
    assert (await sh(machine, "ls /proc/self/fd")).split() == ["0", "1", "2", "3"]


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
