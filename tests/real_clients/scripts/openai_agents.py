"""The OpenAI Agents SDK: an agent, whose model is played by a script, calls the tools."""

import asyncio
import json

from agents import Agent, Model, ModelResponse, Runner, Usage, set_tracing_disabled
from agents.mcp import MCPServerStdio
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)
from trial import ENVIRONMENT, SERVER, next_call, report


class Caller(Model):
    """Calls tools for as long as there is something to call."""

    def __init__(self) -> None:
        self.offered: list[str] = []
        self.answers: list[str] = []

    async def get_response(self, system_instructions, input, model_settings, tools, *_, **__):  # noqa: A002
        self.offered = [tool.name for tool in tools]
        results = [item for item in input if item.get("type") == "function_call_output"]
        self.answers = [str(result["output"]) for result in results]
        call = next_call(self.answers)
        said = _call(len(results), *call) if call else _message("Done.")
        return ModelResponse(output=[said], usage=Usage(), response_id=None)

    def stream_response(self, *_, **__):
        raise NotImplementedError


def _call(number: int, name: str, arguments: dict) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        id=f"call-{number}",
        call_id=f"call-{number}",
        type="function_call",
        name=name,
        arguments=json.dumps(arguments),
    )


def _message(text: str) -> ResponseOutputMessage:
    content = ResponseOutputText(text=text, type="output_text", annotations=[])
    return ResponseOutputMessage(
        id="message", type="message", role="assistant", status="completed", content=[content]
    )


async def main() -> None:
    set_tracing_disabled(True)
    async with MCPServerStdio({"command": SERVER, "env": ENVIRONMENT}) as server:
        model = Caller()
        await Runner.run(Agent(name="agent", model=model, mcp_servers=[server]), "What is 6 * 7?")
        report(model.offered, model.answers)


asyncio.run(main())
