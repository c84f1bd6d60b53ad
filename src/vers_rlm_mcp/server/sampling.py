"""The MCP client's own model, asked through sampling; and which model a run is given.

Sampling exists where the client offers it and the connection lets a server ask: in the protocol up
to 2025-11-25, over stdio or an HTTP session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    SamplingMessage,
    TextContent,
)
from pydantic import ValidationError

from vers_rlm_mcp.errors import ModelFailed, ModelUnavailable, UsageError
from vers_rlm_mcp.models import SAMPLING, Model, open_model
from vers_rlm_mcp.values import Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcp.server.mcpserver import Context
    from mcp.server.session import ServerSession

    from vers_rlm_mcp.values import Message, StopReason

MAX_TOKENS = 8192
"""Tokens of a reply when the caller does not say: sampling demands a number."""

REFUSED = -1
"""The error code with which a client reports that its user declined a sampling request."""


def choose_model(asked: str | None, default: str | None, context: Context[Any, Any]) -> Model:
    """The model for a run: the one asked for, the default, one with a key, or the client's own.

    Args:
        asked: The tool's argument. It cannot name a script, which is a file of the host.
        default: The setting.
        context: Of the call, for its client.

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
        return open_model(name)
    except ModelUnavailable:
        if name is None and _offers_sampling(context.session):
            return SamplingModel(context)
        raise


class SamplingModel(Model):
    """Asks the client for its model's replies. The client does not tell what they cost."""

    name = SAMPLING

    def __init__(self, context: Context[Any, Any]) -> None:
        self._session = context.session
        # Ties a request to the call it serves, on whose stream a client over HTTP expects it.
        self._metadata = ServerMessageMetadata(related_request_id=context.request_id)

    async def complete(
        self, messages: Sequence[Message], *, max_tokens: int | None = None
    ) -> Completion:
        """Ask the client for a reply; see `Model.complete`."""
        request = CreateMessageRequest(params=_params(messages, max_tokens or MAX_TOKENS))
        try:
            result = await self._session.send_request(
                request, CreateMessageResult, metadata=self._metadata
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
        return _completion(result)

    async def aclose(self) -> None:
        """The connection is the client's; there is nothing to close."""


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


def _completion(result: CreateMessageResult) -> Completion:
    if not isinstance(result.content, TextContent):
        raise ModelFailed(f"The MCP client's model replied with {result.content.type}, not text.")
    stop_reason: StopReason = "length" if result.stop_reason == "maxTokens" else "end"
    return Completion(result.content.text, Usage(usd=None), stop_reason)
