"""Several clients of one server over HTTP: none can use, or learn of, what is another's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
from clients import call, connected, error, script, vm_ids
from mcp_types import PromptReference

from vers_rlm_mcp.errors import SettingsError
from vers_rlm_mcp.server import serve_http
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ServeHttp

pytestmark = pytest.mark.slow

ANN = "the-token-of-ann-0123456789"
BOB = "the-token-of-bob-0123456789"


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """Settings of a server for both, one of them named in a file."""
    file = tmp_path / "tokens"
    file.write_text(f"# Bob, on the laptop\n{BOB}\n")
    return {
        "VERS_RLM_TOKEN": ANN,
        "VERS_RLM_TOKEN_FILE": str(file),
        "VERS_RLM_MODEL": script(tmp_path / "replies", "FINAL('done')"),
    }


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_what_is_anothers_is_to_a_client_as_if_it_did_not_exist(
    serve_http_process: ServeHttp, tokens: dict[str, str], transport: str
):
    async with (
        serve_http_process("--transport", transport, env=tokens) as server,
        connected(server.url, token=ANN) as ann,
        connected(server.url, "legacy" if transport == "sse" else "2026-07-28", BOB) as bob,
    ):
        hers = (await call(ann, "vmCreate", keepVM=True))["vm_id"]
        commit = (await call(ann, "vmSnapshot", vmId=hers))["commit_id"]
        assert await call(bob, "vmList") == {"vms": [], "commits": []}
        assert "There is none yet" in await error(bob, "exec", command="true")
        for tool, arguments in uses(hers, commit):
            foreign = await error(bob, tool, **arguments)
            (_, invented), *_ = [use for use in uses("bw-x", "c-x") if use[0] == tool]
            assert foreign.replace(hers, "bw-x").replace(commit, "c-x") == await error(
                bob, tool, **invented
            )
        run_id = (await call(ann, "vers_rlm", signature="-> x"))["run_id"]
        for tool in ("rlmResume", "vmTree"):
            # He had some of his own above.
            assert f"No run {run_id!r}. Known" in (said := await error(bob, tool, runId=run_id))
            assert said.count(run_id) == 1
        assert (await call(bob, "vmTree"))["nodes"] == []
        assert hers in (await call(ann, "vmTree"))["tree"]
        completed = await bob.complete(
            PromptReference(name="investigate"), {"name": "vmId", "value": ""}
        )
        assert completed.completion.values == []
        assert (await call(ann, "exec", command="echo mine", vmId=hers))["stdout"] == "mine\n"
        await call(ann, "vmDelete", vmId=hers)


def uses(vm_id: str, commit_id: str) -> list[tuple[str, dict[str, Any]]]:
    """Every way to name a machine or a commit."""
    return [
        ("exec", {"command": "true", "vmId": vm_id}),
        ("python", {"code": "1", "vmId": vm_id}),
        ("readFile", {"path": "/etc/passwd", "vmId": vm_id}),
        ("writeFile", {"path": "/workspace/x", "content": "", "vmId": vm_id}),
        ("vmSnapshot", {"vmId": vm_id}),
        ("vmBranch", {"vmId": vm_id}),
        ("vmDelete", {"vmId": vm_id}),
        ("vmRestore", {"commitId": commit_id}),
        ("vers_rlm", {"signature": "-> answer", "vmId": vm_id}),
    ]


async def test_calls_at_the_same_time_are_each_their_callers(
    serve_http_process: ServeHttp, tokens: dict[str, str]
):
    async with serve_http_process(env=tokens) as server:
        seen: dict[tuple[str, str], list[str]] = {}

        async def use(token: str, era: str) -> None:
            async with connected(server.url, era, token) as client:
                await call(client, "vmCreate")
                run = await call(client, "vers_rlm", signature="-> answer", keepVM=True)
                assert run["outputs"] == {"answer": "done"}
                seen[token, era] = await vm_ids(client)

        for era in ("legacy", "2026-07-28"):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(use, ANN, era)
                tasks.start_soon(use, BOB, era)
        assert set(seen[ANN, "legacy"]) < set(seen[ANN, "2026-07-28"])
        assert len(seen[ANN, "2026-07-28"]) == len(seen[BOB, "2026-07-28"]) == 4
        assert not set(seen[ANN, "2026-07-28"]) & set(seen[BOB, "2026-07-28"])


async def test_a_session_serves_only_who_began_it(
    serve_http_process: ServeHttp, tokens: dict[str, str]
):
    accept = {"Accept": "application/json, text/event-stream"}
    info = {"name": "test", "version": "1"}
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}
    begin = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    tools = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    async with (
        serve_http_process(env=tokens) as server,
        httpx2.AsyncClient(headers=accept) as http,
    ):

        async def post(body: dict[str, Any], token: str, **headers: str) -> httpx2.Response:
            bearer = {"Authorization": f"Bearer {token}"}
            return await http.post(server.url, json=body, headers=bearer | headers)

        session = (await post(begin, ANN)).headers["Mcp-Session-Id"]
        assert (await post(tools, BOB, **{"Mcp-Session-Id": session})).status_code == 404
        assert (await post(tools, ANN, **{"Mcp-Session-Id": session})).status_code == 200


async def test_a_kept_machine_is_its_owners_after_a_restart_and_no_token_is_on_the_disk(
    serve_http_process: ServeHttp, tokens: dict[str, str], tmp_path: Path
):
    async with serve_http_process(env=tokens) as server, connected(server.url, token=ANN) as ann:
        vm_id = (await call(ann, "vmCreate", keepVM=True))["vm_id"]
    async with serve_http_process(env=tokens) as server:
        async with connected(server.url, token=BOB) as bob:
            assert await vm_ids(bob) == []
        async with connected(server.url, token=ANN) as ann:
            assert await vm_ids(ann) == [vm_id]
            await call(ann, "vmDelete", vmId=vm_id)
    for path in (tmp_path / "state").iterdir():
        assert not path.is_file() or ANN.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"token": "short"}, "16 characters"),
        ({"token": "what cannot be sent as a token"}, "16 characters"),
        ({"token_file": "/missing/file"}, "/missing/file"),
        ({"token_file": "/dev/null"}, "has none"),
    ],
)
async def test_a_token_that_protects_nothing_is_refused(
    tmp_path: Path, settings: dict[str, str], said: str
):
    with pytest.raises(SettingsError, match=said):
        await serve_http(Settings.model_validate({"state_dir": tmp_path, **settings}))
