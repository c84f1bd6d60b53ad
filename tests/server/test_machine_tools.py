"""The low-level tools, used by a client of a server."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import anyio
import pytest
from clients import call, environment_in, error, in_memory, text_of, vm_ids
from mcp_types import PromptReference

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mcp import Client


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Client]:
    """One for the module."""
    async with in_memory(environment_in(tmp_path_factory.mktemp("server"))) as client:
        yield client


@pytest.fixture
async def client(server: Client) -> AsyncGenerator[Client]:
    """With a current machine, fresh for each test; all machines are gone afterwards."""
    await call(server, "vmCreate")
    yield server
    for vm_id in await vm_ids(server):
        await call(server, "vmDelete", vmId=vm_id)


async def test_the_first_call_makes_the_current_machine_and_later_ones_find_it(server: Client):
    assert "vm_id" not in await call(server, "currentVmId")
    first = await call(server, "exec", command="echo hello > note; pwd")
    again = await call(server, "exec", command="cat note")
    assert (first["stdout"], again["stdout"]) == ("/workspace\n", "hello\n")
    assert first["vm_id"] == again["vm_id"]
    assert await call(server, "currentVmId") == {"vm_id": first["vm_id"]}
    assert await vm_ids(server) == [first["vm_id"]]
    await call(server, "vmDelete", vmId=first["vm_id"])


async def test_exec_tells_how_a_command_ended_in_fields_and_in_text(client: Client):
    result = await client.call_tool("exec", {"command": "echo out; echo err >&2; exit 3"})
    assert result.structured_content
    assert result.structured_content["exit_code"] == 3
    text = text_of(result)
    assert text.startswith("out\n[stderr]\nerr\n[exit code: 3]\n[VM ")
    assert result.structured_content["vm_id"] in text
    result = await client.call_tool("exec", {"command": "sleep 60", "timeout": 0.1})
    assert result.structured_content
    assert result.structured_content["timed_out"]
    assert "time-out" in text_of(result)
    assert "background" in text_of(result)


async def test_progress_bars_and_colours_are_shown_as_a_terminal_would_and_kept_in_fields(
    client: Client,
):
    command = (
        "for n in 10 50 100; do printf '\\r%3d%%' $n; done; printf ' \\033[32mdone\\033[0m\\n'"
    )
    result = await client.call_tool("exec", {"command": command})
    assert text_of(result).startswith("100% done\n")
    assert result.structured_content
    assert result.structured_content["stdout"].startswith("\r 10%\r 50%")
    code = f"import os\nos.system({command!r})"
    assert text_of(await client.call_tool("python", {"code": code})).startswith("100% done\n")


async def test_a_command_gets_variables_input_and_a_directory_of_the_workspace(client: Client):
    await call(client, "exec", command="mkdir -p sub/dir; cd sub; x=1")
    command = {"command": "cat; echo $A $B; pwd", "stdin": "in\n", "env": {"A": "1 2", "B": 3}}
    for cwd, where in [("~", ""), ("sub", "/sub"), ("~/sub/dir", "/sub/dir"), (None, "")]:
        result = await call(client, "exec", **command, cwd=cwd)
        assert result["stdout"] == f"in\n1 2 3\n/workspace{where}\n"
    assert "A=B" in await error(client, "exec", command="true", env={"A=B": "1"})


async def test_one_call_acts_in_several_machines_at_once(client: Client):
    ids = (await call(client, "vmBranch", count=3))["vm_ids"]
    with anyio.fail_after(10):
        # Each waits for a file that the others' calls do not make.
        result = await client.call_tool(
            "exec", {"command": "hostname; sleep 1; cat missing; pwd", "vmIds": ids}
        )
    assert result.structured_content
    results = result.structured_content["results"]
    assert [each["vm_id"] for each in results] == ids
    assert all(each["stdout"].endswith("/workspace\n") for each in results)
    assert all(f"=== VM {vm_id}" in text_of(result) for vm_id in ids)
    cells = await call(client, "python", code="6 * 7", vmId=ids[0], vmIds=ids)
    assert [cell["output"] for cell in cells["results"]] == ["42\n"] * 3
    assert "bw-0" in await error(client, "exec", command="touch ran", vmIds=[ids[0], "bw-0"])
    assert (await call(client, "exec", command="ls", vmId=ids[0]))["stdout"] == ""


async def test_cells_of_one_machine_wait_for_each_other(client: Client):
    outputs: list[str] = []

    async def run(number: int) -> None:
        cell = f"import time; time.sleep(0.1); n = globals().get('n', 0) + 1; {number}"
        outputs.append((await call(client, "python", code=cell))["output"])

    async with anyio.create_task_group() as calls:
        for number in range(4):
            calls.start_soon(run, number)
    assert sorted(outputs) == [f"{number}\n" for number in range(4)]
    assert (await call(client, "python", code="n"))["output"] == "4\n"


async def test_output_without_end_is_cut_to_its_head_and_tail(client: Client):
    result = await client.call_tool(
        "exec", {"command": "echo first; yes | head -c 9000000; echo last"}
    )
    text = text_of(result)
    assert text.startswith("first\n")
    assert "\nlast\n" in text
    assert "readFile" in text
    assert len(text) < 30_000
    assert result.structured_content
    assert result.structured_content["omitted_bytes"] > 8_000_000


async def test_files_are_written_and_read_byte_for_byte_under_any_name(client: Client):
    path, data = "/workspace/a b/$(x)'\"\n", bytes(range(256))
    written = await call(
        client, "writeFile", path=path, content=base64.b64encode(data).decode(), encoding="base64"
    )
    page = await call(client, "readFile", path=path)
    assert (written["size"], page["encoding"]) == (256, "base64")
    assert base64.b64decode(page["content"]) == data
    tail = await call(client, "readFile", path=path, offset=-156, length=50)
    assert (base64.b64decode(tail["content"]), tail["next_offset"]) == (data[100:150], 150)


async def test_base64_is_taken_in_lines_for_urls_and_without_padding(client: Client):
    for given, size in [("aGVs\nbG8=\r\n", 5), ("aGVsbG8", 5), ("_-8", 2), ("", 0)]:
        arguments = {"path": "/workspace/a", "content": given, "encoding": "base64"}
        assert (await call(client, "writeFile", **arguments))["size"] == size
    for broken in ("a", "aGVsbG8!", "é"):
        arguments = {"path": "/workspace/a", "content": broken, "encoding": "base64"}
        assert "not base64" in await error(client, "writeFile", **arguments)


async def test_every_answer_about_a_file_tells_its_size_and_a_directory_is_listed(client: Client):
    await call(client, "writeFile", path="notes/a.txt", content="0123456789")
    await call(client, "writeFile", path="~/notes/empty", content="")
    for path, arguments, content, rest in [
        ("notes/a.txt", {}, "0123456789", (0, 10, 10)),
        ("/workspace/notes/a.txt", {"offset": -4}, "6789", (6, 4, 10)),
        ("~/notes/a.txt", {"offset": 2, "length": 3}, "234", (2, 3, 10)),
        ("notes/a.txt", {"offset": 10}, "", (10, 0, 10)),
        ("notes/a.txt", {"offset": 2**40}, "", (2**40, 0, 10)),
        ("notes/empty", {}, "", (0, 0, 0)),
    ]:
        page = await call(client, "readFile", path=path, **arguments)
        assert (page["content"], page["encoding"]) == (content, "utf-8")
        assert (page["offset"], page["length"], page["size"]) == rest
    for path in ("notes", "/workspace/notes/"):
        listing = await client.call_tool("readFile", {"path": path})
        assert not listing.is_error
        assert "a.txt" in text_of(listing)
        assert "empty" in text_of(listing)


async def test_a_file_is_edited_in_place_where_its_text_is_exact(client: Client):
    await call(client, "writeFile", path="a.py", content="x = 1\ny = 1\n")
    await call(client, "exec", command="chmod 755 a.py")
    edited = await call(client, "editFile", path="a.py", old="x = 1", new="x = 2")
    assert (edited["replaced"], edited["size"]) == (1, 12)
    assert "2 times" in await error(client, "editFile", path="a.py", old=" = ", new="=")
    assert "line '1: x = 2'" in await error(client, "editFile", path="a.py", old=" x = 2", new="")
    assert (await call(client, "editFile", path="a.py", old=" = ", new="=", all=True))[
        "replaced"
    ] == 2
    shown = await call(client, "exec", command="cat a.py; stat -c %a a.py")
    assert shown["stdout"] == "x=2\ny=1\n755\n"
    await call(client, "writeFile", path="dos", content="a\r\nb\r\n")
    await call(client, "editFile", path="dos", old="a\nb", new="c\nd")
    assert (await call(client, "readFile", path="dos"))["content"] == "c\r\nd\r\n"
    async with anyio.create_task_group() as edits:
        for number in range(3):
            arguments = {"path": "a.py", "old": f"{'xy'[number % 2]}=", "new": "z="}
            edits.start_soon(client.call_tool, "editFile", arguments)
    assert (await call(client, "readFile", path="a.py"))["content"] == "z=2\nz=1\n"


async def test_a_long_file_is_read_page_by_page(client: Client):
    content = "".join(f"line {number}\n" for number in range(5000))
    await call(client, "writeFile", path="/workspace/long", content=content)
    read, offset = "", 0
    while offset is not None:
        page = await call(client, "readFile", path="/workspace/long", offset=offset, length=20_000)
        read, offset = read + page["content"], page.get("next_offset")
    assert read == content


async def test_python_keeps_its_variables_and_echoes_the_last_expression(client: Client):
    await call(client, "python", code="x = 20")
    assert (await call(client, "python", code="x + 1"))["output"] == "21\n"
    broken = await client.call_tool("python", {"code": "y = 1\nx / 0"})
    assert broken.structured_content
    assert broken.structured_content["status"] == "error"
    assert "ZeroDivisionError" in text_of(broken)
    assert "line 2" in text_of(broken)


async def test_a_snapshot_can_be_restored_and_a_branch_goes_its_own_way(client: Client):
    await call(client, "exec", command="echo 1 > state")
    origin = (await call(client, "currentVmId"))["vm_id"]
    commit = (await call(client, "vmSnapshot"))["commit_id"]
    (copy,) = (await call(client, "vmBranch"))["vm_ids"]
    await call(client, "exec", command="echo 2 > state", vmId=copy)
    assert (await call(client, "exec", command="cat state"))["stdout"] == "1\n"
    assert await call(client, "vmSwitch", vmId=copy) == {"vm_id": copy, "previous": origin}
    assert (await call(client, "exec", command="cat state"))["stdout"] == "2\n"
    restored = await call(client, "vmRestore", commitId=commit)
    assert (await call(client, "exec", command="cat state"))["vm_id"] == restored["vm_id"]
    assert (await call(client, "exec", command="cat state"))["stdout"] == "1\n"


async def test_several_branches_are_made_at_once_and_deleted_one_by_one(client: Client):
    ids = (await call(client, "vmBranch", count=3))["vm_ids"]
    assert len(set(ids)) == 3
    assert set(ids) < set(await vm_ids(client))
    for vm_id in ids:
        await call(client, "vmDelete", vmId=vm_id)
    assert not set(ids) & set(await vm_ids(client))


async def test_an_unknown_id_is_answered_with_the_valid_ones(client: Client):
    vm_id = (await call(client, "currentVmId"))["vm_id"]
    for tool, arguments in (
        ("exec", {"command": "true", "vmId": "invented"}),
        ("vmSwitch", {"vmId": "invented"}),
        ("vmDelete", {"vmId": "invented"}),
    ):
        text = await error(client, tool, **arguments)
        assert "invented" in text
        assert vm_id in text
    commit = (await call(client, "vmSnapshot"))["commit_id"]
    assert commit in await error(client, "vmRestore", commitId="invented")


async def test_ids_are_completed_while_a_user_types_them(client: Client):
    (copy,) = (await call(client, "vmBranch"))["vm_ids"]
    ids = await vm_ids(client)
    assert len(ids) == 2
    assert await completed(client, "vmId", "") == ids
    assert await completed(client, "vmId", copy[:-1]) == [copy]
    assert await completed(client, "vmId", "invented") == []
    assert await completed(client, "question", "") == []


async def completed(client: Client, argument: str, typed: str) -> list[str]:
    reference = PromptReference(name="investigate")
    result = await client.complete(reference, {"name": argument, "value": typed})
    assert result.completion.total == len(result.completion.values)
    return result.completion.values


async def test_ids_of_another_kind_and_of_what_is_gone_are_told_apart(client: Client):
    vm_id = (await call(client, "currentVmId"))["vm_id"]
    commit = (await call(client, "vmSnapshot"))["commit_id"]
    (copy,) = (await call(client, "vmBranch"))["vm_ids"]
    kept = (await call(client, "vmSnapshot", vmId=copy))["commit_id"]
    await call(client, "vmDelete", vmId=copy)
    for tool, arguments, says in [
        ("exec", {"command": "true", "vmId": commit}, f"{commit} is a commit: vmRestore"),
        ("exec", {"command": "true", "vmIds": [vm_id, commit]}, f"{commit} is a commit"),
        ("vmRestore", {"commitId": vm_id}, f"{vm_id} is a VM"),
        ("rlmResult", {"runId": vm_id}, f"{vm_id} is a VM"),
        ("exec", {"command": "true", "vmId": copy}, f"The VM {copy} was deleted at 20"),
        ("readFile", {"path": "x", "vmId": copy}, f"Its commits are left: {kept}"),
        ("exec", {"command": "true", "vmId": "bw-0"}, "No machine 'bw-0'. Known"),
    ]:
        assert says in await error(client, tool, **arguments)


async def test_a_file_that_cannot_be_read_is_an_error_that_names_it(client: Client):
    assert "/workspace/none" in await error(client, "readFile", path="/workspace/none")
    assert "/dev/null" in await error(client, "readFile", path="/dev/null")


async def test_calls_on_one_machine_run_side_by_side(client: Client):
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                lambda: call(client, "exec", command="until [ -e go ]; do sleep 0.05; done")
            )
            await call(client, "exec", command="touch go")


async def test_what_has_changed_since_a_commit_is_told_in_fields_and_in_text(client: Client):
    await call(client, "writeFile", path="/workspace/plan", content="one\n")
    commit = (await call(client, "vmSnapshot"))["commit_id"]
    await call(client, "exec", command="echo two > plan; mkdir done")
    result = await client.call_tool("vmDiff", {"a": commit})
    assert result.structured_content
    counts = dict(result.structured_content["counts"])
    counts.pop("unread", None)  # what only root may read of the host's system
    assert counts == {"added": 1, "changed": 1}
    assert result.structured_content["files"] == [
        {"path": "/workspace/done", "change": "added", "summary": "+ /workspace/done/"},
        {
            "path": "/workspace/plan",
            "change": "changed",
            "summary": "~ /workspace/plan (content)",
            "diff": "@@ -1,2 +1,2 @@\n-one\n+two\n \n",
        },
    ]
    assert "~ /workspace/plan (content)\n" in text_of(result)
    (machine,) = await vm_ids(client)
    assert machine in await error(client, "vmDiff", a=machine, b="invented")
