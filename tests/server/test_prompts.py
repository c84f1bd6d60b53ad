"""What users may start from, and what they are helped to type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mcp import Client, MCPError
from mcp_types import CompletionArgument, PromptReference, TextContent

from vers_rlm_mcp.errors import BackendUnavailable
from vers_rlm_mcp.server import create_server
from vers_rlm_mcp.server.completions import MAX_VALUES, Completions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from mcp_types import Completion

    from vers_rlm_mcp.server import Application

ARGUMENTS = {
    "investigate": {"question": "Does sort keep the order of equal lines?"},
    "try_fixes": {"problem": "The tests hang; pytest -x must pass"},
    "analyse_file": {"request": "Who caused it, in /data/a b.log?"},
}


@pytest.fixture
async def client(application: Application) -> AsyncGenerator[Client]:
    async with Client(create_server(application)) as client:
        yield client


async def text(client: Client, name: str, **arguments: str) -> str:
    (message,) = (await client.get_prompt(name, arguments)).messages
    assert message.role == "user"
    assert isinstance(message.content, TextContent)
    return message.content.text


async def test_every_prompt_says_what_it_is_for_and_puts_what_is_given_into_its_text(
    client: Client,
):
    listed = (await client.list_prompts()).prompts
    assert [prompt.name for prompt in listed] == list(ARGUMENTS)
    tools = {tool.name for tool in (await client.list_tools()).tools}
    for prompt in listed:
        assert prompt.title
        assert prompt.description
        (argument,) = list(prompt.arguments or ())  # clients give each of several a single word
        assert argument.description
        shown = await text(client, prompt.name, **ARGUMENTS[prompt.name])
        assert all(value in shown for value in ARGUMENTS[prompt.name].values())
        assert any(tool in shown for tool in tools)


async def test_what_is_given_by_other_names_belongs_to_the_text(client: Client):
    shown = await text(client, "investigate", question="why is the", vmId="sky", colour="blue")
    assert "why is the; vmId: sky; colour: blue" in shown
    assert "words after the command" in shown
    assert "/a.log" in await text(client, "analyse_file", path="/a.log", question="Who?")


async def test_a_prompt_without_what_it_needs_is_refused_by_name(client: Client):
    with pytest.raises(MCPError, match="question"):
        await client.get_prompt("investigate", {})


async def ids(_: Mapping[str, str]) -> Sequence[str]:
    return [f"vm-{number}" for number in range(2 * MAX_VALUES)]


async def broken(_: Mapping[str, str]) -> Sequence[str]:
    raise BackendUnavailable("There is no backend here.")


async def complete(typed: str, argument: str = "vmId") -> Completion:
    completions = Completions({"vmId": ids, "runId": broken})
    argument_typed = CompletionArgument(name=argument, value=typed)
    return await completions(PromptReference(name="investigate"), argument_typed, None)


async def test_of_many_values_as_many_are_offered_as_the_protocol_allows():
    all_of_them = await complete("")
    assert len(all_of_them.values) == MAX_VALUES
    assert all_of_them.total == 2 * MAX_VALUES
    assert all_of_them.has_more
    assert (await complete("vm-19")).values == ["vm-19", *(f"vm-19{digit}" for digit in range(10))]


async def test_where_there_can_be_no_values_none_are_offered():
    assert (await complete("", "runId")).values == []
    assert (await complete("", "question")).values == []
