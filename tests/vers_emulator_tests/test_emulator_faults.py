from __future__ import annotations

import json
import ssl
import time
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Literal

import anyio
import asyncssh
import httpx2
import pytest
from anyio.lowlevel import checkpoint

from vers_emulator import (
    Answer,
    Cut,
    Delay,
    Endless,
    FailTls,
    Fault,
    Faults,
    Garbage,
    Hang,
    LoseReply,
    Mute,
    NotReady,
    Refuse,
    RefuseLogin,
    Reset,
    Truncate,
    quota,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Open
    from raw import RawVers


UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def faults(vers: RawVers) -> Iterator[Faults]:
    yield vers.emulator.faults
    vers.emulator.faults.clear()


async def test_a_burst_of_refusals_ends(vers: RawVers, faults: Faults) -> None:
    faults.set(Refuse(times=3, retry_after="1"), Refuse(status=429, times=1))
    replies = [await vers.http.get("/vms") for _ in range(5)]
    assert [reply.status_code for reply in replies] == [503, 503, 503, 429, 200]
    assert [reply.headers.get("retry-after") for reply in replies] == ["1", "1", "1", None, None]


async def test_a_fault_happens_only_at_its_place_and_to_its_machine(
    vers: RawVers, vm: str, faults: Faults
) -> None:
    other = await vers.create()
    faults.set(Refuse(at="GET /vm/*/status", vm=vm, status=502))
    assert (await vers.http.get(f"/vm/{other}/status")).is_success
    assert (await vers.http.get(f"/vm/{vm}/metadata")).is_success
    assert (await vers.http.get(f"/vm/{vm}/status")).status_code == 502
    assert (await vers.http.get(f"/vm/{vm}/status")).is_success


async def test_the_same_seed_gives_the_same_faults() -> None:
    def course(seed: int) -> list[bool]:
        faults = Faults(seed)
        faults.set(Refuse(times=None, probability=0.5))
        return [faults.take(Fault, "GET /vms") is not None for _ in range(40)]

    assert course(1) == course(1) != course(2)
    assert 5 < sum(course(1)) < 35


async def test_a_lost_reply_leaves_a_machine_behind(vers: RawVers, faults: Faults) -> None:
    made = vers.emulator.counts.vms_made
    faults.set(LoseReply(at="POST /vm/new_root"))
    with pytest.raises(httpx2.RemoteProtocolError):
        await vers.create(labels={"mark": "lost"})
    assert vers.emulator.counts.vms_made == made + 1
    listed = (await vers.http.get("/vms")).json()
    assert [vm["labels"] for vm in listed].count({"mark": "lost"}) == 1


async def test_a_reset_connection_does_nothing(vers: RawVers, faults: Faults) -> None:
    made = vers.emulator.counts.vms_made
    faults.set(Reset(at="POST /vm/new_root"))
    with pytest.raises(httpx2.ReadError):
        await vers.create()
    assert vers.emulator.counts.vms_made == made


async def test_a_truncated_body_is_shorter_than_announced(vers: RawVers, faults: Faults) -> None:
    faults.set(Truncate())
    with pytest.raises(httpx2.RemoteProtocolError, match="without sending complete"):
        await vers.http.get("/whoami")
    assert (await vers.http.get("/whoami")).is_success


async def test_garbage_has_the_right_status_and_no_json(vers: RawVers, faults: Faults) -> None:
    faults.set(Garbage())
    reply = await vers.http.get("/whoami")
    assert reply.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        reply.json()


async def test_a_hanging_request_hangs_for_its_time(vers: RawVers, faults: Faults) -> None:
    faults.set(Hang(seconds=0.2), Hang())
    started = time.monotonic()
    with pytest.raises(httpx2.RemoteProtocolError):
        await vers.http.get("/vms")
    assert time.monotonic() - started >= 0.2
    with pytest.raises(httpx2.ReadTimeout):
        await vers.http.get("/vms", timeout=0.2)


async def test_an_emulator_ends_while_requests_hang(open_vers: Open) -> None:
    lost: list[httpx2.HTTPError] = []

    async def ask() -> None:
        try:
            await vers.http.get("/vms", timeout=None)
        except httpx2.HTTPError as error:
            lost.append(error)

    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(10):
            async with open_vers() as vers:
                vers.emulator.faults.set(Hang())
                tasks.start_soon(ask)
                while not vers.emulator.faults.taken:
                    await checkpoint()
    assert lost


async def test_a_slow_branch_is_slow_and_works(vers: RawVers, vm: str, faults: Faults) -> None:
    faults.set(Delay(at="POST /vm/*/branch", seconds=0.3))
    started = time.monotonic()
    await vers.branch(vm)
    assert time.monotonic() - started >= 0.3


async def test_a_quota_refusal_makes_nothing(vers: RawVers, vm: str, faults: Faults) -> None:
    made = vers.emulator.counts.vms_made
    faults.set(quota())
    reply = await vers.http.post(f"/vm/{vm}/branch")
    assert reply.status_code == 403
    assert "quota" in reply.json()["error"]
    assert vers.emulator.counts.vms_made == made


@pytest.mark.parametrize("hang", [False, True])
async def test_ssh_of_a_copy_is_not_ready_for_a_while(
    vers: RawVers, vm: str, faults: Faults, hang: bool
) -> None:
    faults.set(NotReady(at="POST /vm/*/branch", seconds=0.5, hang=hang))
    started = time.monotonic()
    copy = await vers.branch(vm)
    async with await vers.dial(copy) as stream:
        if hang:
            assert (await stream.receive()).startswith(b"SSH-2.0")
            assert time.monotonic() - started >= 0.5
        else:
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
    async with await vers.dial(vm) as stream:
        assert (await stream.receive()).startswith(b"SSH-2.0")


async def test_a_failed_handshake_comes_with_an_alert(
    vers: RawVers, vm: str, faults: Faults
) -> None:
    faults.set(FailTls(vm=vm))
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
        await vers.dial(vm)
    async with vers.ssh(vm) as ssh:
        assert (await ssh.run("true")).exit_status == 0


async def test_a_login_is_refused_once(vers: RawVers, vm: str, faults: Faults) -> None:
    faults.set(RefuseLogin(vm=vm))
    with pytest.raises(asyncssh.PermissionDenied):
        async with vers.ssh(vm):
            pass
    async with vers.ssh(vm) as ssh:
        assert (await ssh.run("true")).exit_status == 0


async def test_a_connection_breaks_in_mid_command(vers: RawVers, vm: str, faults: Faults) -> None:
    async with vers.ssh(vm) as ssh:
        faults.set(Cut(at="exec", after_seconds=0.1))
        started = time.monotonic()
        result = await ssh.run("touch /root/started; sleep 60")
        assert result.exit_status is None
        assert time.monotonic() - started < 30
        await ssh.wait_closed()
    assert (await vers.sh(vm, "test -e /root/started"))["exit_code"] == 0


async def test_a_connection_breaks_after_so_many_bytes_of_sftp(
    vers: RawVers, vm: str, faults: Faults
) -> None:
    size = 1024 * 1024

    async def write(file: asyncssh.SFTPClientFile) -> None:
        for _ in range(size // 16384):  # At once, asyncssh leaves errors of the rest unseen.
            await file.write(b"x" * 16384)

    async with vers.ssh(vm) as ssh, ssh.start_sftp_client() as sftp:
        faults.set(Cut(at="sftp", after_bytes=size // 2))
        async with ssh.start_sftp_client() as doomed:
            file = await doomed.open("/root/half", "wb")
            with pytest.raises(asyncssh.Error):
                await write(file)
        with pytest.raises((asyncssh.Error, OSError)):
            await sftp.stat("/root")
    written = int((await vers.sh(vm, "stat -c %s /root/half"))["stdout"])
    assert 0 < written < size


async def test_faults_and_counts_can_be_reached_by_hand(vers: RawVers, faults: Faults) -> None:
    base = vers.emulator.base_url.replace("/api/v1", "/emulator")
    async with httpx2.AsyncClient() as anybody:
        fault = {"kind": "refuse", "at": "GET /whoami", "times": 2, "status": 504}
        (left,) = (await anybody.post(f"{base}/faults", json=fault)).json()
        assert left | fault == left
        assert (await vers.http.get("/whoami")).status_code == 504
        assert (await anybody.get(f"{base}/faults")).json() == [{**left, "times": 1}]
        assert (await anybody.delete(f"{base}/faults")).json() == []
        assert (await vers.http.get("/whoami")).is_success
        wrong = await anybody.post(f"{base}/faults", json={"kind": "refuse", "nonsense": 1})
        assert wrong.status_code == 422
        counted = (await anybody.get(f"{base}/counts")).json()
    assert counted["requests"]["GET /whoami"] >= 1
    assert counted["vms_alive"] == len(vers.emulator.vms)


async def test_an_answer_can_be_another_than_the_truth(
    vers: RawVers, vm: str, faults: Faults
) -> None:
    faults.set(
        Answer(at="DELETE *", does=False, body=f'{{"vm_id": "{vm}"}}'),
        Answer(at="GET /vm/*/status", status=201, headers={"Retry-After": "never"}),
    )
    reply = await vers.http.delete(f"/vm/{vm}")
    assert (reply.status_code, reply.json()) == (200, {"vm_id": vm})
    reply = await vers.http.get(f"/vm/{vm}/status")
    assert (reply.status_code, reply.json()["vm_id"]) == (201, vm)
    assert reply.headers["retry-after"] == "never"


@pytest.mark.parametrize("codec", [None, "gzip", "deflate"])
async def test_an_answer_can_be_long_and_compressed(
    vers: RawVers, faults: Faults, codec: Literal["gzip", "deflate"] | None
) -> None:
    faults.set(Endless(status=500, piece="0" * 1000, codec=codec, pieces=1000))
    reply = await vers.http.get("/vms")
    assert (reply.status_code, reply.content) == (500, b"0" * 1_000_000)


async def test_a_door_can_be_mute(vers: RawVers, vm: str, faults: Faults) -> None:
    faults.set(Mute())
    with anyio.move_on_after(0.2) as scope:
        await vers.dial(vm)
    assert scope.cancelled_caught
    await anyio.aclose_forcefully(await vers.dial(vm))


async def test_a_connection_can_fall_silent(vers: RawVers, vm: str) -> None:
    async with vers.ssh(vm) as connection:
        vers.emulator.cloud.vm(vm).audible = anyio.Event()
        with anyio.move_on_after(0.2) as scope:
            await connection.run("true")
        assert scope.cancelled_caught


async def test_the_clock_of_the_service_can_be_another(vers: RawVers) -> None:
    cloud = vers.emulator.cloud
    cloud.clock = 7200
    made = cloud.vm(await vers.create())
    ahead = datetime.fromisoformat(made.created_at).timestamp() - time.time()
    assert 7100 < ahead < 7300
    date = (await vers.http.get("/vms")).headers["date"]
    assert 7100 < parsedate_to_datetime(date).timestamp() - time.time() < 7300
    cloud.clock, cloud.tells_date = 0.0, False
    assert "date" not in (await vers.http.get("/vms")).headers
    cloud.tells_date = True


async def test_machines_of_others_are_listed_as_they_are_and_can_be_deleted(vers: RawVers) -> None:
    cloud = vers.emulator.cloud
    odd = {"vm_id": UNKNOWN, "labels": None, "load": [None]}
    cloud.foreign = [odd, "none"]
    assert (await vers.http.get("/vms")).json()[-2:] == [odd, "none"]
    assert (await vers.http.get(f"/vm/{UNKNOWN}/metadata")).json() == odd
    assert vers.emulator.counts.asked_about[UNKNOWN] == 1
    assert (await vers.http.delete(f"/vm/{UNKNOWN}")).is_success
    assert cloud.foreign == ["none"]
    cloud.foreign.clear()
