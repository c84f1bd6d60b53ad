from __future__ import annotations

import hashlib
import os
import re
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import anyio
import asyncssh
import pytest
from anyio import to_thread

from vers_emulator import Options

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Open
    from raw import RawVers

ALL_BYTES = bytes(range(256))

ODD_NAME = b"$(touch x)`id`;'\" \n\xff\x80"


async def test_streams_carry_every_byte_both_ways(vers: RawVers, vm: str) -> None:
    data = ALL_BYTES * 4096
    async with vers.ssh(vm) as ssh:
        result = await ssh.run("tee f; cat f >&2; pwd >&2; id -un >&2", input=data, encoding=None)
        assert result.stdout == data
        assert result.stderr == data + b"/root\nroot\n"
        assert result.exit_status == 0


@pytest.mark.parametrize("code", [0, 1, 7, 137])
async def test_exit_codes_are_told_as_they_are(vers: RawVers, vm: str, code: int) -> None:
    async with vers.ssh(vm) as ssh:
        result = await ssh.run(f"exit {code}")
        assert (result.exit_status, result.exit_signal) == (code, None)


async def test_a_signal_is_not_an_exit_code(vers: RawVers, vm: str) -> None:
    async with vers.ssh(vm) as ssh:
        result = await ssh.run("kill -9 $$")
        assert result.exit_signal is not None
        assert result.exit_signal[0] == "KILL"
        assert result.returncode == -9


async def test_a_command_may_hold_any_bytes(vers: RawVers, vm: str) -> None:
    async with vers.ssh(vm) as ssh:
        result = await ssh.run(b"printf '\xff\x80' > /root/f; cat /root/f", encoding=None)  # pyright: ignore[reportArgumentType] - what it is declared to take is less than what it sends
        assert result.stdout == b"\xff\x80"


async def test_a_signal_reaches_the_whole_command(vers: RawVers, vm: str) -> None:
    async with vers.ssh(vm) as ssh:
        process = await ssh.create_process("sleep 60 & sleep 60 & echo up; wait")
        assert await process.stdout.readline() == "up\n"
        process.send_signal("TERM")
        result = await process.wait()
        assert result.exit_signal is not None
        assert result.exit_signal[0] == "TERM"
        assert (await ssh.run("pgrep -c sleep")).stdout == "0\n"


@pytest.mark.parametrize("kills", [False, True])
async def test_closing_a_channel_leaves_its_command_as_openssh_does_unless_told_otherwise(
    open_vers: Open, kills: bool
) -> None:
    async with open_vers(Options(close_kills=kills)) as vers:
        vm = await vers.create()
        async with vers.ssh(vm) as ssh:
            process = await ssh.create_process("echo $$; exec sleep 60")
            pid = (await process.stdout.readline()).strip()
            process.close()
            await process.wait_closed()
            if kills:
                await ssh.run(f"while kill -0 {pid}; do :; done")
            else:
                assert (await ssh.run(f"kill -0 {pid}")).exit_status == 0


async def test_a_background_process_holds_the_channel_but_not_the_exit_status(
    vers: RawVers, vm: str
) -> None:
    async with vers.ssh(vm) as ssh:
        process = await ssh.create_process("mkfifo go; (read x < go; echo late) & exit 5")
        while process.exit_status is None:  # noqa: ASYNC110 - asyncssh tells of it in no other way
            await anyio.sleep(0.01)
        assert process.exit_status == 5
        assert not process.is_closing()
        await ssh.run("echo > go")
        assert (await process.wait()).stdout == "late\n"


async def test_only_root_with_the_machines_key_may_enter(vers: RawVers, vm: str) -> None:
    stranger = await vers.key(await vers.create())
    logins = vers.emulator.counts.ssh_logins
    for options in ({"client_keys": [stranger]}, {"username": "ubuntu"}):
        with pytest.raises(asyncssh.PermissionDenied):
            async with vers.ssh(vm, **options):
                pass
    assert vers.emulator.counts.ssh_logins == logins


async def test_copies_share_keys_and_fresh_machines_do_not(vers: RawVers, vm: str) -> None:
    copy, other = await vers.branch(vm), await vers.create()
    hosts: list[asyncssh.SSHKey | None] = []
    for machine in (vm, copy, other):
        async with vers.ssh(machine) as ssh:
            hosts.append(ssh.get_server_host_key())
    assert await vers.key(copy) == await vers.key(vm) != await vers.key(other)
    assert hosts[0] == hosts[1] != hosts[2]


async def test_one_connection_carries_ten_sessions_and_no_more(vers: RawVers, vm: str) -> None:
    async with vers.ssh(vm) as ssh:
        busy = [await ssh.create_process("cat") for _ in range(10)]
        with pytest.raises(asyncssh.ChannelOpenError):
            await ssh.run("true")
        busy[0].stdin.write_eof()
        await busy[0].wait()
        assert (await ssh.run("true")).exit_status == 0


async def test_the_door_wants_the_name_of_a_machine(vers: RawVers, vm: str) -> None:
    for name, domain in (("x", ""), (vm, "vm.elsewhere.test")):
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            await vers.dial(name, domain)
    await vers.http.delete(f"/vm/{vm}")
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        await vers.dial(vm)


async def test_the_doors_certificate_is_for_its_machines(vers: RawVers, vm: str) -> None:
    handshakes = vers.emulator.counts.tls_handshakes
    async with await vers.dial(vm) as stream:
        assert (await stream.receive()).startswith(b"SSH-2.0-OpenSSH")
    assert vers.emulator.counts.tls_handshakes == handshakes + 1


async def test_deleting_a_machine_ends_its_connections(vers: RawVers, vm: str) -> None:
    async with vers.ssh(vm) as ssh:
        process = await ssh.create_process("echo up; sleep 60")
        await process.stdout.readline()
        await vers.http.delete(f"/vm/{vm}")
        await ssh.wait_closed()


async def test_a_paused_machine_answers_when_it_runs_again(vers: RawVers, vm: str) -> None:
    async with vers.ssh(vm) as ssh:
        await vers.http.patch(f"/vm/{vm}/state", json={"state": "Sleeping"})
        process = await ssh.create_process("echo awake")
        with anyio.move_on_after(0.2) as silence:
            await process.stdout.readline()
        assert silence.cancelled_caught
        await vers.http.patch(f"/vm/{vm}/state", json={"state": "Running"})
        assert await process.stdout.readline() == "awake\n"


@pytest.mark.parametrize("content", [b"", b"x", ALL_BYTES * 16], ids=["empty", "one", "all"])
async def test_sftp_keeps_content_names_and_modes(vers: RawVers, vm: str, content: bytes) -> None:
    path = b"/tmp/" + ODD_NAME
    async with vers.ssh(vm) as ssh, ssh.start_sftp_client(path_encoding=None) as sftp:
        async with sftp.open(path, "wb", asyncssh.SFTPAttrs(permissions=0o640)) as file:
            await file.write(content)
        async with sftp.open(path, "rb") as file:
            assert await file.read() == content
        assert set(await sftp.listdir(b"/tmp")) == {b".", b"..", ODD_NAME}
        info = await sftp.stat(path)
        assert (info.size, (info.permissions or 0) & 0o7777) == (len(content), 0o640)


async def test_sftp_does_to_names_what_openssh_does(vers: RawVers, vm: str) -> None:
    async with vers.ssh(vm) as ssh, ssh.start_sftp_client() as sftp:
        assert await sftp.realpath(".") == "/root"
        await sftp.mkdir("/root/d")
        for name in ("/root/d/a", "/root/d/b"):
            async with sftp.open(name, "w") as file:
                await file.write(name)
        with pytest.raises(asyncssh.SFTPFailure):
            await sftp.rename("/root/d/a", "/root/d/b")
        await sftp.posix_rename("/root/d/a", "/root/d/b")
        await sftp.symlink("b", "/root/d/link")
        assert await sftp.readlink("/root/d/link") == "b"
        assert await sftp.islink("/root/d/link")
        await sftp.chmod("/root/d/b", 0o600)
        await sftp.truncate("/root/d/b", 4)
        await sftp.utime("/root/d/b", (1, 2))
        info = await sftp.stat("/root/d/link")
        assert (info.size, info.permissions, info.atime, info.mtime) == (4, 0o100600, 1, 2)
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await sftp.stat("/root/d/a")
        await sftp.remove("/root/d/link")
        await sftp.remove("/root/d/b")
        await sftp.rmdir("/root/d")
        assert not await sftp.exists("/root/d")


async def test_sftp_streams_a_large_file(vers: RawVers, vm: str, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    content = os.urandom(12 * 1024 * 1024)
    source.write_bytes(content)
    async with vers.ssh(vm) as ssh, ssh.start_sftp_client() as sftp:
        await sftp.put(source, "/root/large")
        digest = (await ssh.run("sha256sum < /root/large")).stdout
        assert str(digest).split()[0] == hashlib.sha256(content).hexdigest()
        await sftp.get("/root/large", back)
    assert back.read_bytes() == content


@pytest.mark.skipif(not shutil.which("ssh"), reason="Debian's openssh-client is not installed")
@pytest.mark.skipif(not shutil.which("openssl"), reason="Debian's openssl is not installed")
async def test_the_usual_programs_can_be_used(vers: RawVers, vm: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_bytes((await vers.key(vm)).export_private_key("openssh"))
    host, port = vers.emulator.ssh_address
    name = f"{vm}.{vers.emulator.options.domain}"
    proxy = f"openssl s_client -connect {host}:{port} -servername {name} -quiet -verify_quiet"
    proxy += f" -verify_return_error -verify_hostname {name} -CAfile {vers.emulator.ca_file}"
    argv = ["ssh", "-F", "none", "-i", key, "-o", f"ProxyCommand={proxy}", "-o", "BatchMode=yes"]
    argv += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    argv += ["-o", "LogLevel=ERROR", f"root@{name}", "tee f; cat f >&2; exit 9"]

    def ssh() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(argv, input=ALL_BYTES, capture_output=True, timeout=30, check=False)

    result = await to_thread.run_sync(ssh)
    assert (result.stdout, result.returncode) == (ALL_BYTES, 9)
    # openssl may complain of how the connection ended.
    assert re.fullmatch(re.escape(ALL_BYTES) + rb"([0-9A-F]+:error:0A000126:.*\n)?", result.stderr)
