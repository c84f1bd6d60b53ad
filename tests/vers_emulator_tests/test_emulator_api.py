from __future__ import annotations

import base64
import json
import time
import uuid
from typing import TYPE_CHECKING

import httpx2
import pytest

from vers_emulator import Options

if TYPE_CHECKING:
    from conftest import Open
    from raw import RawVers

NOWHERE = str(uuid.uuid4())


def fails(reply: httpx2.Response, status: int) -> str:
    """The text of an error of the application; any other shape is a failure of the test."""
    assert reply.status_code == status, reply.text
    assert reply.json()["success"] is False
    return reply.json()["error"]


def refuses(reply: httpx2.Response, status: int) -> str:
    """The text of a request that could not be read."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"].startswith("text/plain")
    return reply.text


async def test_a_wrong_key_is_a_bare_403_without_a_content_type(vers: RawVers) -> None:
    for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}):
        reply = await vers.http.get("/vms", headers=headers)
        assert (reply.status_code, reply.text) == (403, "403 Forbidden")
        assert "content-type" not in reply.headers


async def test_health_lies_outside_of_the_api_and_wants_no_key(vers: RawVers) -> None:
    async with httpx2.AsyncClient() as anybody:
        reply = await anybody.get(vers.emulator.base_url.replace("/api/v1", "/health"))
    assert reply.status_code == 200


async def test_the_key_looks_like_a_real_one(vers: RawVers) -> None:
    key = vers.emulator.api_key
    assert str(uuid.UUID(key[:36])) == key[:36]
    assert len(bytes.fromhex(key[36:])) == 32


async def test_made_and_deleted_machines_are_counted(open_vers: Open) -> None:
    async with open_vers() as vers:
        vm = await vers.create()
        await vers.branch(vm)
        await vers.http.delete(f"/vm/{vm}")
        counts = vers.emulator.counts
        assert (counts.vms_made, counts.vms_deleted, counts.vms_alive) == (2, 1, 1)
        assert counts.requests["POST /vm/{vm_or_commit_id}/branch"] == 1
        (left,) = vers.emulator.vms
        assert left.grandparent_vm == vm


async def test_a_machine_is_listed_until_it_is_deleted(vers: RawVers) -> None:
    vm = await vers.create(labels={"run": "r1"}, vcpu_count=1, mem_size_mib=256)
    shown = (await vers.http.get(f"/vm/{vm}/status")).json()
    assert shown["vm_id"] == vm
    assert shown["labels"] == {"run": "r1"}
    assert shown["state"] == "running"
    for path in ("/vms", "/vm"):
        assert shown in (await vers.http.get(path)).json()
    reply = await vers.http.delete(f"/vm/{vm}")
    assert (reply.status_code, reply.json()) == (200, {"vm_id": vm})
    assert shown not in (await vers.http.get("/vms")).json()
    assert "not found" in fails(await vers.http.get(f"/vm/{vm}/status"), 404)
    gone = (await vers.http.get(f"/vm/{vm}/metadata")).json()
    assert gone["state"] == "dead"
    assert gone["deleted_at"]


async def test_deleting_an_unknown_machine_is_a_403(vers: RawVers) -> None:
    fails(await vers.http.delete(f"/vm/{NOWHERE}"), 403)


@pytest.mark.parametrize(
    "call", ["GET /vm/x/status", "DELETE /vm/x", "POST /vm/x/branch", "GET /vm/x/ssh_key"]
)
async def test_a_malformed_id_is_a_400_in_plain_text(vers: RawVers, call: str) -> None:
    assert "UUID" in refuses(await vers.http.request(*call.split()), 400)


async def test_from_commit_wants_exactly_one_key(vers: RawVers) -> None:
    for body in ({}, {"commit_id": NOWHERE, "ref": "a:b"}):
        refuses(await vers.http.post("/vm/from_commit", json=body), 400)
    fails(await vers.http.post("/vm/from_commit", json={"commit_id": NOWHERE}), 404)
    fails(await vers.http.post("/vm/from_commit", json={"ref": "a:b"}), 404)


async def test_bodies_that_cannot_be_read_are_refused_in_plain_text(vers: RawVers) -> None:
    made = vers.emulator.counts.vms_made
    body = {"vm_config": {"mem_size_mib": "many"}}
    assert "mem_size_mib" in refuses(await vers.http.post("/vm/new_root", json=body), 422)
    as_json = {"Content-Type": "application/json"}
    refuses(await vers.http.post("/vm/new_root", content=b"{", headers=as_json), 400)
    refuses(await vers.http.post("/vm/new_root"), 415)
    assert vers.emulator.counts.vms_made == made


async def test_a_commit_and_what_is_made_from_it_have_the_disk(vers: RawVers, vm: str) -> None:
    await vers.sh(vm, "echo one > /root/file")
    commit = await vers.commit(vm, name="first", description="d")
    await vers.sh(vm, "echo two > /root/file")
    reply = await vers.http.post("/vm/from_commit", json={"commit_id": commit})
    assert reply.status_code == 201
    copy = reply.json()["vm_id"]
    assert (await vers.sh(copy, "cat /root/file"))["stdout"] == "one\n"
    metadata = (await vers.http.get(f"/vm/{copy}/metadata")).json()
    assert metadata["parent_commit_id"] == commit
    assert metadata["grandparent_vm_id"] == vm
    *_, listed = (await vers.http.get("/commits")).json()["commits"]
    assert (listed["commit_id"], listed["name"], listed["parent_vm_id"]) == (commit, "first", vm)


async def test_a_commit_stays_while_machines_descend_from_it(vers: RawVers, vm: str) -> None:
    commit = await vers.commit(vm)
    reply = await vers.http.post("/vm/from_commit", json={"commit_id": commit})
    child = reply.json()["vm_id"]
    grandchild = await vers.branch(child)
    later = await vers.commit(grandchild)
    parents = (await vers.http.get(f"/vm/commits/{later}/parents")).json()
    assert [parent["id"] for parent in parents] == [commit]
    for heir in (child, grandchild):
        fails(await vers.http.delete(f"/commits/{commit}"), 409)
        await vers.http.delete(f"/vm/{heir}")
    reply = await vers.http.delete(f"/commits/{commit}")
    assert (reply.status_code, reply.content) == (204, b"")
    fails(await vers.http.delete(f"/commits/{commit}"), 404)


async def test_commits_come_in_pages_and_can_be_public(vers: RawVers, vm: str) -> None:
    before = (await vers.http.get("/commits")).json()["total"]
    made = [await vers.commit(vm) for _ in range(3)]
    page = (await vers.http.get(f"/commits?limit=2&offset={before}")).json()
    assert [item["commit_id"] for item in page["commits"]] == made[:2]
    assert (page["total"], page["limit"], page["offset"]) == (before + 3, 2, before)
    refuses(await vers.http.get("/commits?limit=101"), 400)
    change = {"is_public": True, "name": "new"}
    assert (await vers.http.patch(f"/commits/{made[2]}", json=change)).status_code == 200
    (public,) = (await vers.http.get("/commits/public")).json()["commits"]
    assert (public["commit_id"], public["name"]) == (made[2], "new")


async def test_every_way_to_branch_makes_machines(vers: RawVers, vm: str) -> None:
    commit = await vers.commit(vm)
    body = {"commit_id": commit, "tag_name": "v1"}
    assert (await vers.http.post("/commit_tags", json=body)).status_code == 201
    assert (await vers.http.post("/repositories/app/tags", json=body)).status_code == 201
    made: set[str] = set()
    for path in (
        f"/vm/{vm}/branch",
        f"/vm/{commit}/branch",
        f"/vm/branch/by_vm/{vm}",
        f"/vm/branch/by_commit/{commit}",
        "/vm/branch/by_tag/v1",
        "/vm/branch/by_ref/app/v1",
    ):
        reply = await vers.http.post(path)
        assert reply.status_code == 201
        made |= {item["vm_id"] for item in reply.json()["vms"]}
    for key, value in (("tag_name", "v1"), ("ref", "app:v1")):
        made.add((await vers.http.post("/vm/from_commit", json={key: value})).json()["vm_id"])
    assert len(made) == 8
    assert made <= {alive.id for alive in vers.emulator.vms}


async def test_a_branch_can_have_several_copies(vers: RawVers, vm: str) -> None:
    await vers.sh(vm, "echo here > /root/file")
    copies = (await vers.http.post(f"/vm/{vm}/branch?count=3")).json()["vms"]
    for copy in copies:
        assert (await vers.sh(copy["vm_id"], "cat /root/file"))["stdout"] == "here\n"
    assert len({copy["vm_id"] for copy in copies} | {vm}) == 4


async def test_branching_what_is_not_there_is_a_404_with_no_machines(vers: RawVers) -> None:
    for path in (f"by_vm/{NOWHERE}", f"by_commit/{NOWHERE}", "by_tag/no", "by_ref/no/no"):
        reply = await vers.http.post(f"/vm/branch/{path}")
        assert reply.status_code == 404
        assert reply.json()["vms"] == []
        assert reply.json()["error"]


@pytest.mark.parametrize("options", [Options(), Options.older()], ids=["newer", "older"])
async def test_a_paused_machine_stands_still_until_it_runs_again(
    open_vers: Open, options: Options
) -> None:
    async with open_vers(options) as vers:
        vm = await vers.create()
        await vers.sh(vm, "(while echo . >> /root/ticks; do sleep 0.01; done) >/dev/null 2>&1 &")
        paused, other = options.paused_state, {"Sleeping": "Paused"}.get(options.paused_state)
        if other:
            refused = await vers.http.patch(f"/vm/{vm}/state", json={"state": other})
            assert f"expected `{paused}` or `Running`" in refuses(refused, 422)
        reply = await vers.http.patch(f"/vm/{vm}/state", json={"state": paused})
        assert (reply.status_code, reply.content) == (200, b"")
        assert (await vers.http.get(f"/vm/{vm}/status")).json()["state"] == paused.lower()
        fails(await vers.http.post(f"/vm/{vm}/exec", json={"command": ["true"]}), 409)
        commit = await vers.http.post(f"/vm/{vm}/commit?keep_paused=true", json={})
        assert commit.status_code == 201
        await vers.http.patch(f"/vm/{vm}/state", json={"state": "Running"})
        script = "a=$(wc -l < ticks); until [ $(wc -l < ticks) -gt $a ]; do :; done"
        assert (await vers.sh(vm, script))["exit_code"] == 0


async def test_a_disk_only_grows(vers: RawVers) -> None:
    vm = await vers.create(fs_size_mib=1024)
    for size in (512, 1024):
        fails(await vers.http.patch(f"/vm/{vm}/disk", json={"fs_size_mib": size}), 400)
    reply = await vers.http.patch(f"/vm/{vm}/disk", json={"fs_size_mib": 2048})
    assert (reply.status_code, reply.content) == (200, b"")


async def test_exec_takes_arguments_environment_input_and_directory(vers: RawVers, vm: str) -> None:
    body = {
        "command": ["sh", "-c", 'echo "$1 $A"; pwd; cat; printf "\\377" >&2; exit 7', "sh", "$(x)"],
        "env": {"A": "b"},
        "stdin": "in",
        "working_dir": "/tmp",
        "exec_id": "e1",
    }
    reply = (await vers.http.post(f"/vm/{vm}/exec", json=body)).json()
    assert reply == {
        "exit_code": 7,
        "stdout": "$(x) b\n/tmp\nin",
        "stderr": "\N{REPLACEMENT CHARACTER}",
        "exec_id": "e1",
    }


async def test_exec_has_a_hard_cap(open_vers: Open) -> None:
    async with open_vers(Options(exec_seconds=0.2)) as vers:
        vm = await vers.create()
        body = {"command": ["sleep", "60"], "timeout_secs": 60}
        assert "timed out" in fails(await vers.http.post(f"/vm/{vm}/exec", json=body), 504)


@pytest.mark.parametrize("options", [Options(), Options.older()], ids=["newer", "older"])
async def test_streamed_output_comes_in_lines_of_json(open_vers: Open, options: Options) -> None:
    async with open_vers(options) as vers:
        vm = await vers.create()
        body = {"command": ["sh", "-c", "printf 'a\\377'; printf b >&2; exit 3"]}
        reply = await vers.http.post(f"/vm/{vm}/exec/stream", json=body)
    *chunks, end = [json.loads(line) for line in reply.text.splitlines()]
    output = {"stdout": b"", "stderr": b""}
    for chunk in chunks:
        assert (chunk.get("type") == "chunk") == options.stream_types
        output[chunk["stream"]] += base64.b64decode(chunk["data_b64"])
    assert output == {"stdout": b"a\xff", "stderr": b"b"}
    assert [chunk["cursor"] for chunk in chunks] == list(range(1, len(chunks) + 1))
    if options.stream_types:
        assert (end["type"], end["exit_code"]) == ("exit", 3)
    else:
        assert "type" not in end
        assert end["data_b64"] == ""


async def test_a_streamed_program_that_is_not_there_is_an_error_line(
    vers: RawVers, vm: str
) -> None:
    reply = await vers.http.post(f"/vm/{vm}/exec/stream", json={"command": ["/no"]})
    assert json.loads(reply.text)["type"] == "error"


async def test_files_come_back_as_they_were_written(vers: RawVers, vm: str) -> None:
    path = "/root/a/$(touch x)`id`;'\""
    content = base64.b64encode(bytes(range(256))).decode()
    body: dict[str, object] = {"path": path, "content_b64": content, "mode": 0o600}
    fails(await vers.http.put(f"/vm/{vm}/files", json=body), 400)
    assert (await vers.http.put(f"/vm/{vm}/files", json={**body, "create_dirs": True})).is_success
    reply = await vers.http.get(f"/vm/{vm}/files", params={"path": path})
    assert reply.json() == {"content_b64": content}
    fails(await vers.http.get(f"/vm/{vm}/files", params={"path": "/no"}), 404)
    assert (await vers.sh(vm, "stat -c %a /root/a/*"))["stdout"] == "600\n"


async def test_labels_are_replaced_or_added_to(vers: RawVers) -> None:
    vm = await vers.create(labels={"a": "1"})
    await vers.http.patch(f"/vm/{vm}/label", json={"labels": {"b": "2"}})
    assert (await vers.http.get(f"/vm/{vm}/status")).json()["labels"] == {"a": "1", "b": "2"}
    await vers.http.put(f"/vm/{vm}/labels", json={"labels": {"c": "3"}})
    assert (await vers.http.get(f"/vm/{vm}/status")).json()["labels"] == {"c": "3"}


async def test_whoami_tells_the_quota(vers: RawVers) -> None:
    limits = (await vers.http.get("/whoami")).json()["api_key"]
    assert limits["max_vcpus"] == vers.emulator.options.max_vcpus
    assert limits["max_memory_mib"] == vers.emulator.options.max_memory_mib


async def test_the_older_service_lacks_what_is_newer(open_vers: Open) -> None:
    async with open_vers(Options.older()) as vers:
        vm = await vers.create()
        for call in ("GET /vm", "GET /whoami", f"PUT /vm/{vm}/labels"):
            assert (await vers.http.request(*call.split())).status_code in (404, 405)
        assert "mem_size_mib" not in (await vers.http.get(f"/vm/{vm}/metadata")).json()
        assert (await vers.http.post(f"/vm/{vm}/commit")).status_code == 201
        assert list((await vers.http.post(f"/vm/{vm}/branch")).json()) == ["vm_id"]


async def test_the_newer_service_wants_a_body_for_a_commit(vers: RawVers, vm: str) -> None:
    assert (await vers.http.post(f"/vm/{vm}/commit")).is_client_error
    assert (await vers.http.post(f"/vm/{vm}/commit", json={})).is_success


async def test_only_a_fresh_machine_boots(open_vers: Open) -> None:
    async with open_vers(Options(boot_seconds=0.3)) as vers:
        started = time.monotonic()
        reply = await vers.http.post("/vm/new_root", json={"vm_config": {}})
        vm = reply.json()["vm_id"]
        assert (await vers.http.get(f"/vm/{vm}/status")).json()["state"] == "booting"
        fails(await vers.http.post(f"/vm/{vm}/branch?skip_wait_boot=true"), 409)
        copy = await vers.branch(vm)
        assert time.monotonic() - started > 0.3
        assert (await vers.http.get(f"/vm/{copy}/status")).json()["state"] == "running"


async def test_more_machines_than_the_quota_allows_are_refused(open_vers: Open) -> None:
    async with open_vers(Options(max_vms=2)) as vers:
        vm = await vers.create()
        assert "quota" in fails(await vers.http.post(f"/vm/{vm}/branch?count=2"), 403)
        await vers.branch(vm)
        fails(await vers.http.post("/vm/new_root", json={"vm_config": {}}), 403)
        await vers.http.delete(f"/vm/{vm}")
        await vers.create()
    assert vers.emulator.counts.vms_made == 3
