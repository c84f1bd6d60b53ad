"""The MCP client's own model, asked through sampling, and the choice of a run's models.

Sampling needs a client that offers it and a connection on which a server can ask: up to protocol
revision 2025-11-25, over stdio or an HTTP session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResultWithTools,
    SamplingMessage,
    TextContent,
)
from pydantic import ValidationError

from vers_rlm_mcp.errors import ModelFailed, ModelUnavailable, UsageError
from vers_rlm_mcp.models import (
    SAMPLING,
    Model,
    ModelOptions,
    estimate_usage,
    open_model,
    read_stop_reason_of_sampling,
)
from vers_rlm_mcp.values import Completion

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AsyncExitStack

    from mcp.server.mcpserver import Context
    from mcp.server.session import ServerSession

    from vers_rlm_mcp.settings import Settings
    from vers_rlm_mcp.values import Message

MAX_TOKENS = 8192
"""Tokens of a reply unless the caller sets a limit: sampling requires one."""

REFUSED = -1
"""The error code with which a client reports that its user declined a sampling request."""


Names = tuple[str | None, str | None]
"""A model's name in the call, and in the settings or the record."""


def choose_models(
    context: Context[Any, Any],
    settings: Settings,
    root: Names,
    sub: Names,
    resources: AsyncExitStack,
) -> dict[str, Model]:
    """A run's model and its sub-calls' model, which are closed with the resources.

    Raises the same as `choose_model`.
    """
    model = choose_model(*root, context, ModelOptions.of_root(settings))
    resources.push_async_callback(model.aclose)
    options = ModelOptions.of_sub(settings)
    sub_model = choose_model(sub[0], sub[1] or model.name, context, options)
    resources.push_async_callback(sub_model.aclose)
    return {"model": model, "sub_model": sub_model}


def choose_model(
    asked: str | None,
    default: str | None,
    context: Context[Any, Any],
    options: ModelOptions = ModelOptions(),  # noqa: B008 - immutable
) -> Model:
    """The model named in the call, the default, one with a key, or the client's own.

    Args:
        asked: The tool's argument. It cannot name a script, which is a file of the host.
        default: The setting.
        context: The call, for its client.
        options: What the user sets for the model.

    Raises:
        UsageError: The argument names a script.
        ModelUnavailable: There is no such model, or none at all; the text says what to set.
    """
    if asked is not None and asked.strip().startswith("scripted"):
        raise UsageError(
            "A scripted model can be chosen only in the server's settings (VERS_RLM_MODEL); "
            "leave `model` out, or name a provider's model."
        )
    name = asked or default
    if name == SAMPLING:
        if not _offers_sampling(context.session):
            raise ModelUnavailable(
                "This client does not offer sampling on this connection. Name another model as "
                "`provider:model`, with its key in the server's environment "
                "(ANTHROPIC_API_KEY or OPENAI_API_KEY)."
            )
        return SamplingModel(context)
    try:
        return open_model(name, options=options)
    except ModelUnavailable:
        if name is None and _offers_sampling(context.session):
            return SamplingModel(context)
        raise


class SamplingModel(Model):
    """The client's model. What its replies use is estimated, and what they cost is unknown."""

    name = SAMPLING

    def __init__(self, context: Context[Any, Any]) -> None:
        self._session = context.session
        # A client over HTTP expects the request on the stream of the call that it serves.
        self._metadata = ServerMessageMetadata(related_request_id=context.request_id)

    async def complete(
        self, messages: Sequence[Message], *, max_tokens: int | None = None
    ) -> Completion:
        """Ask the client for a reply; see `Model.complete`."""
        request = CreateMessageRequest(params=_params(messages, max_tokens or MAX_TOKENS))
        try:
            result = await self._session.send_request(
                request, CreateMessageResultWithTools, metadata=self._metadata
            )
        except MCPError as error:
            if error.code == REFUSED:
                raise ModelUnavailable(
                    f"The user of the MCP client declined to let its model answer: {error}. "
                    "Allow sampling in the client, or set a key for another model."
                ) from error
            raise ModelFailed(f"The MCP client could not ask its model: {error}") from error
        except ValidationError as error:
            raise ModelFailed("The MCP client's sampling reply is not what MCP defines.") from error
        return _completion(messages, result)

    async def aclose(self) -> None:
        """Do nothing: the connection is the client's."""


def _offers_sampling(session: ServerSession) -> bool:
    capabilities = session.client_capabilities
    return bool(capabilities and capabilities.sampling) and session.can_send_request


def _params(messages: Sequence[Message], max_tokens: int) -> CreateMessageRequestParams:
    return CreateMessageRequestParams(
        system_prompt=next((m.content for m in messages if m.role == "system"), None),
        messages=[
            SamplingMessage(role=m.role, content=TextContent(text=m.content))
            for m in messages
            if m.role != "system"
        ],
        max_tokens=max_tokens,
    )


def _completion(messages: Sequence[Message], result: CreateMessageResultWithTools) -> Completion:
    blocks = result.content_as_list
    texts = [block.text for block in blocks if isinstance(block, TextContent)]
    if blocks and not texts:
        raise ModelFailed(f"The MCP client's model replied with {blocks[0].type}, not text.")
    text = "\n".join(texts)
    stop_reason = read_stop_reason_of_sampling(result.stop_reason)
    return Completion(text, estimate_usage(messages, text), stop_reason)
