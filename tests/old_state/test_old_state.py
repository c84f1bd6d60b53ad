"""What an older version left on the disk is listed, read, resumed, restored and swept.

Where a later version has to change a format, it migrates what it finds here and says so.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
from doors import TOKEN, call
from mcp_types import ResourceLink, TextResourceContents
from plays import HANGS, LONG, asked_by_cell

if TYPE_CHECKING:
    from conftest import OldState
    from mcp import Client

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

OUTPUTS: dict[str, dict[str, Any]] = {
    "killed": {
        "said": ["FIRST WORD", "SECOND WORD", "THIRD WORD", HANGS.upper()],
        "kept": "kept",
        "gone": True,
    },
    "killed_at_once": {"said": "AN WORD" + HANGS.upper()},
    "killed_among_branches": {"n": 8},
}
"""Of the runs that were killed, once they have been resumed to their ends."""

STATES = {
    "finished": "finished",
    "branched": "finished",
    "partial": "partial",
    "replayed": "finished",
    "resumed": "finished",
    "cancelled": "cancelled",
    "of_a_client": "finished",
    "killed": "broken off",
    "killed_at_once": "broken off",
    "killed_among_branches": "broken off",
}

LOOK = """
import os, stat
os.chdir('/workspace')
print(open('text').read(), open('tree/deep/file').read(), os.readlink('tree/link'), sep='')
print(os.path.samefile('tree/one', 'tree/two'), oct(os.stat('tree/one').st_mode)[-3:])
print(int(os.stat('tree/one').st_mtime), stat.S_ISFIFO(os.stat('tree/pipe').st_mode))
print(os.path.exists('deleted'), os.listdir('replaced'))
"""
LOOK_AT_VARIABLES = "print(words['é'], len(words['long']), point.x, double(21))"


LATER = "text\ndeep\nappended\ndeep/file\nTrue 751\n1000000000 True\nFalse ['new']"
FIRST = "text\ndeep\ndeep/file\nTrue 751\n1000000000 True\nTrue ['old']"
VARIABLES = "[1, 2.5, None] 100000 41 42"


async def cell(client: Client, code: str, vm_id: str) -> str:
    """The output of a cell that must succeed."""
    done = await call(client, "python", code=code, vmId=vm_id)
    assert done["status"] == "ok", done
    return done["output"].rstrip("\n")


def test_of_what_was_told_nothing_is_missing():
    """The comparison below notices what is gone and what is different, and not what is new."""
    told = {"a": [{"b": 1}]}
    assert_told_again(told, {"a": [{"b": 1, "c": 2}], "d": 3})
    changes: list[Any] = [{}, {"a": []}, {"a": [{"b": 2}]}, {"a": [{}]}]
    for changed in changes:
        with pytest.raises(AssertionError):
            assert_told_again(told, changed)


def assert_told_again(told: Any, again: Any) -> None:
    """That an answer has all that the old version's had; it may have more fields."""
    if isinstance(told, dict):
        fields = cast("dict[str, Any]", told)
        for key in fields.keys() - {"next"}:  # which is advice, in words of each version's own
            assert key in again, (told, again)
            assert_told_again(fields[key], again[key])
    elif isinstance(told, list):
        items = cast("list[Any]", told)
        assert len(items) == len(again), (told, again)
        for one, other in zip(items, again, strict=True):
            assert_told_again(one, other)
    else:
        assert told == again


async def test_machines_commits_and_runs_are_listed_and_told_as_they_were(old: OldState):
    listed = await old.listed()
    assert all("kept" in listed[id_] for id_ in old.kept)
    assert old.machines["left_over"] in listed
    assert old.machines["deleted"] not in listed
    assert set(old.commits.values()) <= set(listed)
    assert old.machines["fresh"] in listed[old.machines["branched"]]
    lines = (await old.command("runs", "list")).splitlines()[1:]
    states = {line.split()[0]: line for line in lines}
    assert states.keys() == set(old.runs.values())
    for name, state in STATES.items():
        assert f" {state} " in states[old.runs[name]]
    async with old.client() as client:
        for name, told in old.told["runs"].items():
            again = await call(client, "rlmResult", runId=old.runs[name])
            assert_told_again(told, again)
            nodes = (await call(client, "vmTree", runId=old.runs[name]))["nodes"]
            assert_told_again(old.told["trees"][name], nodes)
        runs = (await call(client, "rlmRuns"))["runs"]
        known = {told["run_id"] for told in old.told["list"]}
        assert_told_again(old.told["list"], [run for run in runs if run["run_id"] in known])
        result = await client.call_tool("rlmResult", {"runId": old.runs["finished"]})
        (link, *_) = [each for each in result.content if isinstance(each, ResourceLink)]
        run = await read(client, link.uri)
        step = await read(client, run["steps"][0]["uri"])
        assert "figures " * (LONG // 8) in step["text"], "it is stored beside the journal"
    tree = await old.command("runs", "tree", old.runs["branched"])
    assert all(node["id"] in tree for node in old.told["trees"]["branched"])


async def read(client: Client, uri: str) -> dict[str, Any]:
    (contents,) = (await client.read_resource(uri)).contents
    assert isinstance(contents, TextResourceContents)
    return json.loads(contents.text)


async def test_machines_and_commits_have_their_files_and_variables(old: OldState):
    async with old.client() as client:
        assert await cell(client, LOOK, old.machines["fresh"]) == LATER
        copies = {
            old.machines["branched"]: LATER,
            old.machines["restored"]: FIRST,
            await restored(client, old.commits["first"]): FIRST,
            await restored(client, old.commits["second"]): FIRST,
        }
        for vm_id, files in copies.items():
            assert await cell(client, LOOK + LOOK_AT_VARIABLES, vm_id) == f"{files}\n{VARIABLES}"
        assert await cell(client, "later", old.machines["branched"]) == "42"
        own = await call(client, "readFile", path="/workspace/own", vmId=old.machines["restored"])
        assert own["content"] == "restored\n"
        (deleted,) = (
            await call(
                client,
                "vmDiff",
                a=old.commits["first"],
                b=old.machines["branched"],
                path="/workspace/deleted",
            )
        )["files"]
        assert "deleted" in json.dumps(deleted)


async def restored(client: Client, commit_id: str) -> str:
    return (await call(client, "vmRestore", commitId=commit_id))["vm_id"]


async def test_runs_that_were_killed_resume_and_pay_for_nothing_twice(old: OldState):
    async def resume(name: str) -> None:
        result = json.loads(await old.command("runs", "resume", old.runs[name], "--json"))
        assert result["outputs"] == OUTPUTS[name]

    async with anyio.create_task_group() as tasks:
        for name in OUTPUTS:
            tasks.start_soon(resume, name)
    asked = Counter(asked_by_cell(request) for request in old.model.requests)
    # The run without a checkpoint begins anew. It was root's, and its prompt says what machines of
    # other users cannot do, so there its two steps are asked again.
    anew = 0 if os.geteuid() == 0 else 2
    assert asked == {HANGS: 3, None: 3 + anew}, "what was under way, and the step after it"
    assert {id_ for id_, state in (await old.listed()).items() if "commit" not in state} == old.kept


async def test_a_run_resumes_from_an_earlier_step(old: OldState):
    for step in ("3", "0"):
        resume = ["runs", "resume", old.runs["finished"], "--step", step]
        result = json.loads(await old.command(*resume, "--json"))
        assert result["outputs"] == old.told["runs"]["finished"]["outputs"]
    assert old.model.requests == []


async def test_a_run_is_replayed(old: OldState):
    replayed = json.loads(await old.command("runs", "replay", old.runs["branched"], "--json"))
    assert replayed["same_outputs"]
    assert replayed["differences"] == []
    assert old.model.requests == []


async def test_only_what_no_one_keeps_is_swept_and_pruned(old: OldState):
    swept = await old.command("machines", "sweep")
    assert old.machines["left_over"] in swept
    machines = re.findall(r"bw-[0-9a-f]{12}|[0-9a-f-]{36}", swept)
    assert len(set(machines)) == 6, "the dead server's, and those of runs, two of branches"
    # Bases of its own, which today's state directories share.
    assert ("bases" in swept) == (old.settings["VERS_RLM_BACKEND"] == "bubblewrap")
    pruned = await old.command("runs", "prune", "--keep", "3")
    for name, run_id in old.runs.items():
        assert (run_id in pruned) == (not name.startswith("killed"))
    listed = await old.listed()
    assert {id_ for id_, state in listed.items() if "commit" not in state} == old.kept
    assert set(old.commits.values()) <= listed.keys()
    result = json.loads(await old.command("runs", "resume", old.runs["killed"], "--json"))
    assert result["outputs"] == OUTPUTS["killed"]


async def test_a_client_over_http_finds_what_was_made_for_it_and_nothing_else(old: OldState):
    async with old.http_client(TOKEN) as client:
        listed = await call(client, "vmList")
        assert [vm["id"] for vm in listed["vms"]] == [old.machines["of_a_client"]]
        assert [commit["id"] for commit in listed["commits"]] == [old.commits["of_a_client"]]
        runs = (await call(client, "rlmRuns"))["runs"]
        assert [run["run_id"] for run in runs] == [old.runs["of_a_client"]]
        vm_id = await restored(client, old.commits["of_a_client"])
        own = await call(client, "readFile", path="/workspace/own", vmId=vm_id)
        assert own["content"] == "1"


async def test_a_kernel_of_the_old_version_lives_on(old_vers: OldState):
    async with old_vers.client() as client:
        vm_id = old_vers.machines["fresh"]
        assert "lock" in await cell(client, "in_memory", vm_id)
        assert await cell(client, "later, point.x, double(21)", vm_id) == "(0, 41, 42)"
        await cell(client, "since = exec('echo today').strip()", vm_id)
        (copy,) = (await call(client, "vmBranch", vmId=vm_id))["vm_ids"]
        assert await cell(client, "since, later, double(21)", copy) == "('today', 0, 42)"


async def test_a_machine_that_began_from_an_image_does_so_still(old_bubblewrap: OldState):
    async with old_bubblewrap.client() as client:
        vm_id = old_bubblewrap.machines["of_an_image"]
        for path, content in (
            ("/greeting/hello", "hello from the image\n"),
            ("/workspace/own", "on an image\n"),
        ):
            assert (await call(client, "readFile", path=path, vmId=vm_id))["content"] == content
