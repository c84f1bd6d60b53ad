"""Runs and files of machines, read as resources."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from clients import call, environment_in, in_memory, script, text_of
from mcp import Client, MCPError
from mcp_types import (
    BlobResourceContents,
    CompletionArgument,
    ResourceLink,
    ResourceTemplateReference,
    TextResourceContents,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

LONG = "x" * 70_000


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Client]:
    """One for the module."""
    home = tmp_path_factory.mktemp("server")
    model = script(home / "replies", "print('y' * 70_000)", f"FINAL(a='{LONG}', b=[1])")
    async with in_memory(environment_in(home) | {"VERS_RLM_MODEL": model}) as client:
        yield client


@pytest.fixture(scope="module")
async def uri(client: Client) -> str:
    """The URI of a run with long texts, to which its result links."""
    result = await client.call_tool("vers_rlm", {"signature": "-> a: str, b: list[int]"})
    links = [content for content in result.content if isinstance(content, ResourceLink)]
    return links[0].uri


async def read(client: Client, uri: str) -> str | bytes:
    (contents,) = (await client.read_resource(uri)).contents
    if isinstance(contents, BlobResourceContents):
        return contents.blob.encode()
    assert isinstance(contents, TextResourceContents)
    return contents.text


async def page(client: Client, uri: str) -> dict[str, Any]:
    return json.loads(await read(client, uri))


async def whole(client: Client, uri: str) -> str:
    """A text, all its pages."""
    text = ""
    while len(text) < (part := await page(client, f"{uri}?offset={len(text)}"))["chars"]:
        text += part["text"]
        assert bool(part["next"]) == (len(text) < part["chars"])
    return text


async def test_the_whole_of_a_run_is_linked_from_its_result(client: Client, uri: str):
    run = await page(client, uri)
    assert (run["status"], len(run["steps"]), run["next"]) == ("finished", 2, None)
    assert run["outputs"] == [f"{uri}/outputs/a", f"{uri}/outputs/b"]
    assert run["steps"][0]["uri"] == f"{uri}/steps/1"
    assert (await page(client, f"{uri}?cursor=1"))["steps"] == run["steps"][1:]


async def test_long_texts_are_read_page_by_page(client: Client, uri: str):
    assert await whole(client, f"{uri}/outputs/a") == LONG
    assert "y" * 70_000 in await whole(client, f"{uri}/steps/1")
    assert (await page(client, f"{uri}/outputs/b"))["text"] == "[\n  1\n]"


async def test_files_of_a_vm_are_text_where_they_are_text(client: Client):
    vm_id = (await call(client, "vmCreate"))["vm_id"]
    await call(client, "writeFile", path="/workspace/a b", content="häh?")
    await call(client, "writeFile", path="/workspace/raw", content="/w==", encoding="base64")
    assert await read(client, f"vm://{vm_id}/files/workspace/a%20b") == "häh?"
    assert await read(client, f"vm://{vm_id}/files/workspace/a%20b?offset=3") == "h?"
    assert await read(client, f"vm://{vm_id}/files/workspace/raw") == b"/w=="


@pytest.mark.parametrize(
    ("end", "says"),
    [("", "No run 'run-0'"), ("/steps/1", "No run 'run-0'"), ("/outputs/a", "No run 'run-0'")],
)
async def test_what_is_not_there_is_said(client: Client, uri: str, end: str, says: str):
    with pytest.raises(MCPError, match=says):
        await client.read_resource(f"rlm://runs/run-0{end}")
    with pytest.raises(MCPError, match="has no step 9; it has 2"):
        await client.read_resource(f"{uri}/steps/9")
    with pytest.raises(MCPError, match="there is: a, b"):
        await client.read_resource(f"{uri}/outputs/c")
    with pytest.raises(MCPError, match="No machine 'bw-0'"):
        await client.read_resource("vm://bw-0/files/etc/passwd")


async def test_numbers_that_are_none_are_refused_and_negative_ones_count_from_the_end(
    client: Client, uri: str
):
    assert (await page(client, f"{uri}/outputs/a?offset=-5"))["text"] == LONG[-5:]
    assert len((await page(client, f"{uri}?cursor=-1"))["steps"]) == 1
    assert (await page(client, f"{uri}/outputs/a?offset=999999999"))["text"] == ""
    vm_id = (await call(client, "vmCreate"))["vm_id"]
    await call(client, "writeFile", path="/workspace/a", content="häh?")
    assert await read(client, f"vm://{vm_id}/files/workspace/a?offset=-3") == "h?"
    for wrong in ("x", "1.5", "9" * 30):
        for address in (
            f"{uri}?cursor=",
            f"{uri}/steps/1?offset=",
            f"vm://{vm_id}/files/a?offset=",
        ):
            with pytest.raises(MCPError, match="not a whole number"):
                await client.read_resource(address + wrong)


async def test_ids_are_completed(client: Client, uri: str):
    reference = ResourceTemplateReference(uri="rlm://runs/{runId}{?cursor}")
    argument = CompletionArgument(name="runId", value="run-")
    found = await client.complete(reference, argument.model_dump())
    assert uri.rpartition("/")[2] in found.completion.values


async def test_files_that_a_run_hands_over_outlive_its_machine(
    tmp_path_factory: pytest.TempPathFactory,
):
    home = tmp_path_factory.mktemp("files")
    code = (
        "writeFile('out/d/r \u00e9.csv', 'a,b')\n"
        "open('x.bin', 'wb').write(bytes(range(256)))\n"
        "FINAL('out/d/r \u00e9.csv')"
    )
    model = script(home / "replies", code)
    async with in_memory(environment_in(home) | {"VERS_RLM_MODEL": model}) as client:
        arguments = {"signature": "-> report: file", "outputFiles": ["*.bin"]}
        result = await client.call_tool("vers_rlm", arguments)
        fields = result.structured_content
        assert fields, result
        assert fields["outputs"] == {"report": "d/r \u00e9.csv"}
        assert [(each["name"], each["size"]) for each in fields["files"]] == [
            ("d/r \u00e9.csv", 3),
            ("x.bin", 256),
        ]
        assert fields["files"][0]["uri"] in text_of(result)
        (report, binary) = (each["uri"] for each in fields["files"])
        assert await read(client, report) == "a,b"
        assert base64.b64decode(await read(client, binary)) == bytes(range(256))
        assert await read(client, f"{report}?offset=2") == "b"
        run = await page(client, report.partition("/files/")[0])
        assert run["files"] == [report, binary]
        listed = (await client.list_resources()).resources
        assert report in [each.uri for each in listed]
        for wrong in (f"{report}x", report.replace("d/", "../")):
            with pytest.raises(MCPError):
                await read(client, wrong)
