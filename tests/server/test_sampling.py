"""The client's own model, asked through a real client's sampling callback."""

from typing import Any

import pytest
from mcp import Client
from mcp.client import ClientRequestContext
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ErrorData,
    ImageContent,
    TextContent,
)

from vers_rlm_mcp.errors import UsageError, VersRlmError
from vers_rlm_mcp.server.sampling import REFUSED, choose_model
from vers_rlm_mcp.values import Message


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch):
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> MCPServer:
    server = MCPServer("test")

    @server.tool()
    async def ask(context: Context, model: str | None = None) -> str:  # pyright: ignore[reportUnusedFunction]
        try:
            chosen = choose_model(model, None, context)
            reply = await chosen.complete(
                [
                    Message("system", "Be brief."),
                    Message("user", "One?"),
                    Message("assistant", "1"),
                    Message("user", "Two?"),
                ]
            )
        except VersRlmError as error:
            return f"{type(error).__name__}: {error}"
        return f"{chosen.name}: {reply.text} ({reply.stop_reason}, {reply.usage.usd})"

    return server


class Human:
    """Answers a client's sampling requests, and remembers them."""

    def __init__(self, answer: CreateMessageResult | ErrorData) -> None:
        self.asked: list[CreateMessageRequestParams] = []
        self._answer = answer

    async def __call__(
        self, context: ClientRequestContext, params: CreateMessageRequestParams
    ) -> CreateMessageResult | ErrorData:
        self.asked.append(params)
        return self._answer


def reply(content: TextContent | ImageContent, stop: str | None = "endTurn") -> CreateMessageResult:
    return CreateMessageResult(role="assistant", content=content, model="m", stop_reason=stop)


async def ask(
    server: MCPServer, human: Human | None, mode: Any = "legacy", **arguments: str
) -> str:
    async with Client(server, mode=mode, sampling_callback=human) as client:
        result = await client.call_tool("ask", arguments)
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


async def test_with_no_key_the_clients_model_is_asked(server: MCPServer):
    human = Human(reply(TextContent(text="2")))
    assert await ask(server, human) == "sampling: 2 (end, None)"
    (params,) = human.asked
    assert params.system_prompt == "Be brief."
    assert [(m.role, m.content.text) for m in params.messages] == [  # pyright: ignore
        ("user", "One?"),
        ("assistant", "1"),
        ("user", "Two?"),
    ]


async def test_a_reply_cut_at_the_limit_is_known_to_be(server: MCPServer):
    human = Human(reply(TextContent(text="2"), "maxTokens"))
    assert "(length, None)" in await ask(server, human, model="sampling")


@pytest.mark.parametrize(
    ("stop", "told"),
    [("end_turn", "(end"), ("content_filter", "(refusal"), ("bored", "(unknown"), (None, "(end")],
)
async def test_other_words_for_the_end_of_a_reply_are_understood_or_unknown(
    server: MCPServer, stop: str | None, told: str
):
    human = Human(reply(TextContent(text="<think>Hm.</think>2"), stop))
    answer = await ask(server, human)
    assert answer.startswith(f"sampling: 2 {told}")
    failed = await ask(server, Human(reply(TextContent(text="2"), "error")))
    assert failed.startswith("ModelFailed: The MCP client's model broke off")


async def test_without_keys_and_sampling_the_error_names_the_variables(server: MCPServer):
    for mode in ("legacy", "2026-07-28"):
        text = await ask(server, None, mode)
        assert text.startswith("ModelUnavailable")
        assert "ANTHROPIC_API_KEY" in text


async def test_where_sampling_cannot_be_had_asking_for_it_says_so(server: MCPServer):
    human = Human(reply(TextContent(text="2")))
    assert "does not offer sampling" in await ask(server, None, model="sampling")
    assert "does not offer sampling" in await ask(server, human, "2026-07-28", model="sampling")


async def test_a_refusing_user_a_failing_client_and_a_picture_are_told_apart(server: MCPServer):
    refused = await ask(server, Human(ErrorData(code=REFUSED, message="No.")))
    failed = await ask(server, Human(ErrorData(code=-32603, message="Broken.")))
    picture = await ask(server, Human(reply(ImageContent(data="aa", mime_type="image/png"))))
    assert refused.startswith("ModelUnavailable: The user of the MCP client declined")
    assert failed == "ModelFailed: The MCP client could not ask its model: Broken."
    assert picture.startswith("ModelFailed")


async def test_a_caller_cannot_name_a_file_of_the_host_as_a_model(server: MCPServer):
    text = await ask(server, None, model="scripted:/etc/passwd")
    assert text.startswith(UsageError.__name__)
    assert "VERS_RLM_MODEL" in text
