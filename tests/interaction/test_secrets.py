"""What is the host's stays the host's."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import users

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from users import User

KEY = "sk-ant-marker-5d41402abc4b2a76"
CLOSED = "http://127.0.0.1:9"
"""An address where nobody answers: port 9 discards, where it is served at all."""


@pytest.fixture(scope="module")
async def rich(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[User]:
    """A user whose server has keys in its environment."""
    home = tmp_path_factory.mktemp("rich")
    keys = dict.fromkeys(("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "VERS_API_KEY"), KEY)
    urls = dict.fromkeys(("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL"), CLOSED)
    chosen = {"VERS_RLM_LOG_LEVEL": "debug", "VERS_RLM_BACKEND": "bubblewrap"}
    async with users.user(home, **keys, **urls, **chosen) as user:
        yield user


@pytest.mark.parametrize(
    "path",
    ["/etc/shadow", "/etc/gshadow", "/etc/ssh", "/root", "/home", "/etc/sudoers", "/var/lib"],
)
async def test_a_machine_has_nothing_of_the_hosts_secret_places(rich: User, path: str):
    # Which packages there are is no secret, and apt in the machine needs to know.
    find = f"find {path} -type f -size +0 ! -path '/var/lib/dpkg/*' 2>&1 | head -5"
    result = await rich.call("exec", command=find)
    lines = [line for line in result["stdout"].splitlines() if "No such file" not in line]
    assert lines == []


async def test_a_machine_has_nothing_of_the_state_directory_nor_of_other_machines(rich: User):
    other = (await rich.call("vmCreate"))["vm_id"]
    await rich.call("exec", command="echo secret-of-the-other > /workspace/f; sleep 86397 &")
    mine = (await rich.call("vmCreate"))["vm_id"]
    seen = (await rich.call("exec", command="ls /tmp; ps ax; cat /workspace/f"))["stdout"]
    for word in ("pytest", "86397", "secret-of-the-other"):
        assert word not in seen
    assert "gone" in await rich.exec(f"ls {rich.state} 2>&1 || echo gone")
    # The mount table names where the machine's files come from; none of it can be reached.
    sources = await rich.exec("grep -o '/.vers[^ ]*' /proc/self/mountinfo")
    for path in {"/.vers", *sources.split()}:
        assert await rich.exec(f"find {path} -mindepth 1 2>/dev/null | head -3; true") == ""
    for vm_id in (mine, other):
        await rich.call("vmDelete", vmId=vm_id)


async def test_a_machine_cannot_reach_back_through_proc_or_inherited_descriptors(rich: User):
    code = """
import glob, os
found = []
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        found.append(open(path, "rb").read())
    except OSError:
        pass
links = []
for path in glob.glob("/proc/[0-9]*/fd/*"):
    try:
        links.append(os.readlink(path))
    except OSError:
        pass
FINAL({"variables": sorted(os.environ), "all": b"".join(found).decode(errors="replace"),
       "links": links, "root": os.listdir("/proc/1/root") if os.access("/proc/1/root", 4) else []})
"""
    seen = (await rich.run(code))["outputs"]["answer"]
    assert KEY not in seen["all"]
    assert not [name for name in seen["variables"] if "API" in name or "VERS_RLM" in name]
    assert not [link for link in seen["links"] if str(rich.home) in link]
    assert "etc" not in seen["root"] or "state" not in seen["root"]


@pytest.mark.parametrize("model", ["anthropic:claude-sonnet-4-5", "openai:gpt-5"])
async def test_a_key_is_in_no_answer_no_log_and_no_file(rich: User, model: str):
    with_model = {"signature": "-> answer", "model": model, "budget": {"seconds": 5}}
    result = await rich.tool("vers_rlm", **with_model)
    assert KEY not in str(result)
    environment = await rich.call("exec", command="env; cat /proc/*/environ /proc/*/cmdline; true")
    assert KEY not in str(environment)
    assert KEY not in rich.log()
    assert [path for path in _files(rich.state) if KEY.encode() in path.read_bytes()] == []


async def test_a_machine_without_network_reaches_no_service_of_the_host(rich: User):
    code = """
import socket
def reach(address):
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError as error:
        return type(error).__name__
    return "reached"
FINAL([reach(("127.0.0.1", port)) for port in (22, 80, PORT)] + [reach(("169.254.169.254", 80))])
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = await rich.run(code.replace("PORT", str(port)))
    assert "reached" not in result["outputs"]["answer"]


async def test_the_state_directory_is_its_owners_alone(rich: User):
    await rich.run("FINAL(1)")
    assert rich.state.stat().st_mode & 0o077 == 0


def _files(directory: Path) -> list[Path]:
    return [
        path
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)
    ]
