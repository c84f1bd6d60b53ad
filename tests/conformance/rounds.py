"""The tools and the prompt that need the client's answers first, which come with a second call.

That is how a server asks in the revision 2026-07-28, where it can send no request of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from mcp.server.mcpserver import Context  # noqa: TC002 - read from annotations by the SDK
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequest,
    InputRequiredResult,
    ListRootsRequest,
    ListRootsResult,
    SamplingMessage,
    TextContent,
)

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

Response = TypeVar("Response", ElicitResult, CreateMessageResult, ListRootsResult)

STATE = "what was said before"


def mount(server: MCPServer[Any]) -> None:
    """Add them to a server."""
    for tool in (
        test_input_required_result_elicitation,
        test_input_required_result_sampling,
        test_input_required_result_list_roots,
        test_input_required_result_request_state,
        test_input_required_result_tampered_state,
        test_input_required_result_multiple_inputs,
        test_input_required_result_multi_round,
        test_input_required_result_capabilities,
    ):
        server.add_tool(tool, structured_output=False)
    server.prompt()(test_input_required_result_prompt)


def test_input_required_result_elicitation(context: Context) -> str | InputRequiredResult:
    """Greet the user by name."""
    said = given(context, "user_name", ElicitResult)
    name = said and (said.content or {}).get("name")
    if name is None:
        return need(user_name=question("What is your name?", name="string"))
    return f"Hello, {name}!"


def test_input_required_result_sampling(context: Context) -> str | InputRequiredResult:
    """Ask the client's model."""
    said = given(context, "capital_question", CreateMessageResult)
    if said is None:
        return need(capital_question=_sample("What is the capital of France?"))
    return str(said.content)


def test_input_required_result_list_roots(context: Context) -> str | InputRequiredResult:
    """List the client's roots."""
    said = given(context, "client_roots", ListRootsResult)
    if said is None:
        return need(client_roots=ListRootsRequest())
    return "Roots: " + ", ".join(str(root.uri) for root in said.roots)


def test_input_required_result_request_state(context: Context) -> str | InputRequiredResult:
    """Remember something between two calls."""
    if given(context, "confirm", ElicitResult) is None:
        return need(STATE, confirm=question("Please confirm", ok="boolean"))
    if context.request_state != STATE:
        raise MCPError(INVALID_PARAMS, "This is not the state that was given")
    return "state-ok"


def test_input_required_result_tampered_state(context: Context) -> str | InputRequiredResult:
    """Remember something that the client may not change."""
    return test_input_required_result_request_state(context)


def test_input_required_result_multiple_inputs(context: Context) -> str | InputRequiredResult:
    """Ask three things at once."""
    name = given(context, "user_name", ElicitResult)
    greeting = given(context, "greeting", CreateMessageResult)
    roots = given(context, "client_roots", ListRootsResult)
    if not (name and greeting and roots):
        return need(
            STATE,
            user_name=question("What is your name?", name="string"),
            greeting=_sample("Generate a greeting"),
            client_roots=ListRootsRequest(),
        )
    return f"{greeting.content}, {name.content}, at {roots.roots}"


def test_input_required_result_multi_round(context: Context) -> str | InputRequiredResult:
    """Ask two things, one after the other."""
    if context.request_state == "2" and (colour := given(context, "step2", ElicitResult)):
        return f"Colour: {colour.content}"
    if context.request_state == "1" and given(context, "step1", ElicitResult):
        return need("2", step2=question("Step 2: What is your favorite color?", color="string"))
    return need("1", step1=question("Step 1: What is your name?", name="string"))


def test_input_required_result_capabilities(context: Context) -> str | InputRequiredResult:
    """Ask only what the client can be asked."""
    can = context.client_capabilities
    if can and can.sampling:
        return need(greeting=_sample("Generate a greeting"))
    if can and can.elicitation:
        return need(user_name=question("What is your name?", name="string"))
    return "The client can be asked nothing."


async def test_input_required_result_prompt(context: Context) -> str | InputRequiredResult:
    """Write a prompt around what the user says."""
    said = given(context, "user_context", ElicitResult)
    if said is None:
        ask = question("What context should the prompt use?", context="string")
        return need(user_context=ask)
    return f"Consider: {said.content}"


def given(context: Context, key: str, kind: type[Response]) -> Response | None:
    """What the client answered to a question."""
    response = (context.input_responses or {}).get(key)
    return response if isinstance(response, kind) else None


def need(state: str | None = None, **requests: InputRequest) -> InputRequiredResult:
    """Ask for answers first."""
    return InputRequiredResult(input_requests=requests, request_state=state)


def question(message: str, **fields: str) -> ElicitRequest:
    """A question to the user; `fields` are names and types of what is to be filled in."""
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in fields.items()},
        "required": list(fields),
    }
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def _sample(text: str) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(text=text))
    return CreateMessageRequest(
        params=CreateMessageRequestParams(messages=[message], max_tokens=100)
    )
