"""The OpenAI Agents SDK: an agent, whose model is played by a script, calls the tool."""

import asyncio
import json
import os

from agents import Agent, Model, ModelResponse, Runner, Usage, set_tracing_disabled
from agents.mcp import MCPServerStdio
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)


class Caller(Model):
    """Calls `vers_rlm` once, and then says what it returned."""

    def __init__(self) -> None:
        self.offered: list[str] = []

    async def get_response(self, system_instructions, input, model_settings, tools, *_, **__):  # noqa: A002
        self.offered = [tool.name for tool in tools]
        results = [item for item in input if item.get("type") == "function_call_output"]
        said = _message(str(results[-1]["output"])) if results else _call()
        return ModelResponse(output=[said], usage=Usage(), response_id=None)

    def stream_response(self, *_, **__):
        raise NotImplementedError


def _call() -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        id="1",
        call_id="1",
        type="function_call",
        name="vers_rlm",
        arguments=json.dumps({"signature": "-> answer: int"}),
    )


def _message(text: str) -> ResponseOutputMessage:
    content = ResponseOutputText(text=text, type="output_text", annotations=[])
    return ResponseOutputMessage(
        id="2", type="message", role="assistant", status="completed", content=[content]
    )


async def main() -> None:
    set_tracing_disabled(True)
    server = MCPServerStdio(
        {"command": os.environ["SERVER"], "env": dict(os.environ)},
        client_session_timeout_seconds=60,
    )
    async with server:
        model = Caller()
        agent = Agent(name="agent", model=model, mcp_servers=[server])
        result = await Runner.run(agent, "What is 6 * 7?")
        print(json.dumps({"tools": model.offered, "answer": str(result.final_output)}))


asyncio.run(main())
