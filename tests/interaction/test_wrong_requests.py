"""Requests that make no sense, and what their answers tell the user to do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import users

if TYPE_CHECKING:
    from pathlib import Path

    from users import User

UNKNOWN = "bw-000000000000"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"signature": "question"}, ["`->`", "A right one"]),
        ({"signature": "question ->"}, ["output", "->"]),
        ({"signature": "a -> b: matrix"}, ["matrix", "int", "A right one"]),
        (
            {"signature": "a -> b", "inputs": {"a": "1", "c": 2}},
            ["unknown inputs: c", "(there are: a)"],
        ),
        ({"signature": "a, b -> c", "inputs": {"a": "1"}}, ["missing inputs: b"]),
        ({"signature": "a: int -> c", "inputs": {"a": "many"}}, ["a: expected int, got 'many'"]),
        ({"signature": "-> b", "files": ["/etc/shadow"]}, ["/etc/shadow", "outside", "allowed"]),
        ({"signature": "-> b", "vmConfig": {"fs_size": 100}}, ["fs_size_mib"]),
        ({"signature": "-> b", "model": "anthropic:claude"}, ["ANTHROPIC_API_KEY"]),
        ({"signature": "-> b", "model": "openai:gpt"}, ["OPENAI_API_KEY"]),
        ({"signature": "-> b", "model": "claude"}, ["'claude'", "anthropic:"]),
    ],
)
async def test_a_run_that_cannot_be_is_refused_with_the_way_to_put_it_right(
    user: User, arguments: dict[str, Any], parts: list[str]
):
    user.write_script("FINAL(1)")
    text = await user.error("vers_rlm", **arguments)
    assert [part for part in parts if part not in text] == [], text
    assert await user.vm_ids() == []


@pytest.mark.parametrize("tool", ["exec", "python", "readFile", "vmSnapshot", "vmSwitch"])
async def test_an_unknown_machine_is_answered_with_the_machines_there_are(user: User, tool: str):
    vm_id = (await user.call("vmCreate"))["vm_id"]
    arguments = {"exec": {"command": "true"}, "python": {"code": "1"}, "readFile": {"path": "/a"}}
    text = await user.error(tool, vmId=UNKNOWN, **arguments.get(tool, {}))
    assert UNKNOWN in text
    assert vm_id in text
    await user.call("vmDelete", vmId=vm_id)


async def test_an_unknown_commit_is_answered_with_the_commits_there_are(user: User):
    vm_id = (await user.call("vmCreate"))["vm_id"]
    commit = (await user.call("vmSnapshot"))["commit_id"]
    assert commit in await user.error("vmRestore", commitId="bwc-000000000000")
    result = await user.run("vmRestore('nonsense')", "FINAL('went on')")
    assert commit in result["trajectory"][0]["output"]
    assert result["outputs"] == {"answer": "went on"}
    await user.call("vmDelete", vmId=vm_id)


@pytest.mark.parametrize("vm_id", ["../../etc", ".", "bw-\n", "bw-\0", "x" * 10_000])
async def test_an_id_that_cannot_be_one_is_an_unknown_one(user: User, vm_id: str):
    assert "machine" in (await user.error("exec", command="true", vmId=vm_id)).lower()


@pytest.mark.parametrize("way", ["path", "symlink", "dots", "directory outside", "fifo"])
async def test_only_regular_files_in_an_allowed_directory_can_be_taken(
    user: User, tmp_path: Path, way: str
):
    secret, inside = tmp_path / "secret", user.allowed / way
    secret.write_text("a secret of the host")
    match way:
        case "path":
            inside = secret
        case "symlink":
            inside.symlink_to(secret)
        case "dots":
            inside = user.allowed / ".." / secret
        case "directory outside":
            inside = tmp_path
        case _:
            os.mkfifo(inside)
    text = await user.error("vers_rlm", signature="-> answer", files={"f": str(inside)})
    assert str(inside) in text
    assert any(word in text for word in ("outside", "not a regular file")), text


async def test_a_server_with_no_model_names_the_variables_to_set(tmp_path: Path):
    async with users.user(tmp_path, VERS_RLM_MODEL="") as user:
        text = await user.error("vers_rlm", signature="-> answer")
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "VERS_RLM_MODEL"):
        assert name in text
