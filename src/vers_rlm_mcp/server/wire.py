"""JSON-RPC messages on the wire: what clients send, and an answer to what cannot be served.

The SDK gives no answer to what it cannot parse (modelcontextprotocol/python-sdk#2751), so that the
client waits until its time is up; takes a request whose id is null or a fraction for a
notification; and ends the connection over a result that is not JSON.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, cast

from mcp_types import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, from_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic_core import ErrorDetails

logger = logging.getLogger(__name__)

Id = int | float | str | None

MAX_MESSAGE_BYTES: Final = 16 << 20
"""Bytes of a message, which contains the inputs of a call. Larger inputs come as host files."""

EDGE_BYTES: Final = 65_536
"""Bytes of the beginning, and of the end, of a longer message, in which its id is looked for."""

MAX_PARTS: Final = 200_000
"""Strings, values and brackets read in search of an id: a few tenths of a second."""

MAX_ID_CHARS: Final = 1_000
"""Characters of an id: it is repeated in every message about its request."""

MAX_BATCH: Final = 100
"""Requests of a batch that are answered one by one."""

BOM: Final = b"\xef\xbb\xbf"

PART: Final = re.compile(
    r'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)|[{}\[\]:,]|[^\s{}\[\]:,"]+', re.DOTALL
)
"""A string, value or bracket of JSON. A string may lack its end, so that it is read only once."""

NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
LAST_ID: Final = re.compile(r'"id"\s*:\s*("(?:[^"\\]|\\.)*"|-?[0-9.]+)\s*}?\s*$', re.DOTALL)
SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to something that cannot be served."""

    code: int
    message: str
    id: Id = None

    def encode(self) -> bytes:
        """The answer on the wire."""
        error = {"code": self.code, "message": self.message}
        return json.dumps({"jsonrpc": "2.0", "id": self.id, "error": error}).encode()


def read_message(data: bytes) -> JSONRPCMessage | tuple[Refusal, ...]:
    """The message that a client sent, or the answers to it if it cannot be served.

    A byte order mark and white space around the message are ignored. Without a message there is no
    answer, nor is there one to a notification.
    """
    data = data.removeprefix(BOM).strip(b" \t\r\n")
    if not data:
        return ()
    if len(data) > MAX_MESSAGE_BYTES:
        return (refuse_length(data[:EDGE_BYTES], data[-EDGE_BYTES:]),)
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        text = data.decode(errors="replace")
        return (Refusal(PARSE_ERROR, _parse_fault(data, text, str(error)), find_id(text)),)
    return _read_value(value)


def refuse_length(head: bytes, tail: bytes) -> Refusal:
    """The answer to a message that is too long, of which this is the beginning and the end."""
    number = find_id(head.decode(errors="replace"))
    if number is None and (match := LAST_ID.search(tail.decode(errors="replace"))):
        number = _id(match[1])
    most = MAX_MESSAGE_BYTES >> 20
    return Refusal(
        INVALID_REQUEST,
        f"The message is longer than {most} MiB. Pass large inputs as files.",
        number,
    )


def write_message(message: JSONRPCMessage) -> bytes:
    """A message on the wire; an error in place of a result that cannot be written as JSON."""
    try:
        return message.model_dump_json(by_alias=True, exclude_unset=True).encode()
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        logger.error("A message to the client cannot be written as JSON: %s", error)  # noqa: TRY400
        fault = "The answer cannot be written as JSON."
        return Refusal(INTERNAL_ERROR, fault, getattr(message, "id", None)).encode()


def find_id(text: str) -> Id:
    """The id of a message that cannot be parsed; None if it has none that can be read."""
    depth, key, last = 0, "", ""
    for number, match in enumerate(PART.finditer(text)):
        part = match[0]
        if number > MAX_PARTS:
            break
        if depth == 1 and key == '"id"' and last == ":":
            return _id(part)
        if part in "{[":
            depth += 1
        elif part in "}]":
            depth -= 1
        elif part == ":":
            key = last
        last = part
    found = LAST_ID.search(text[-EDGE_BYTES:])
    return _id(found[1]) if found else None


def _read_value(value: object) -> JSONRPCMessage | tuple[Refusal, ...]:
    if isinstance(value, list):
        return tuple(_refuse_batch(cast("list[object]", value)))
    if not isinstance(value, dict):
        return (Refusal(INVALID_REQUEST, "A message is a JSON object."),)
    fields = cast("dict[str, Any]", value)
    if isinstance(number := fields.get("id"), float) and number.is_integer():
        fields["id"] = int(number)  # some languages know only one kind of number
    if "id" in fields and "method" in fields and (fault := _id_fault(fields["id"])):
        return (Refusal(INVALID_REQUEST, fault, _echo(fields["id"])),)
    try:
        return jsonrpc_message_adapter.validate_python(fields, by_name=False)
    except ValidationError as error:
        return _refuse_fields(fields, error)


def _refuse_fields(
    fields: dict[str, Any], error: ValidationError
) -> JSONRPCMessage | tuple[Refusal, ...]:
    number, is_request = _echo(fields.get("id")), "method" in fields
    fault = f"This is not a JSON-RPC message: {_describe(fields, error.errors())}."
    if (
        not is_request
        and isinstance(number, int | str)
        and ("result" in fields or "error" in fields)
    ):
        # An answer of the client's, for which a call here may wait.
        refusal = ErrorData(code=INVALID_REQUEST, message=fault)
        return JSONRPCError(jsonrpc="2.0", id=number, error=refusal)
    if is_request and "id" not in fields:
        logger.warning("A notification was ignored. %s", fault)
        return ()
    return (Refusal(INVALID_REQUEST, fault, number),)


def _refuse_batch(batch: list[object]) -> Iterator[Refusal]:
    fault = "Batches are not part of this protocol: send each message by itself."
    ids = [
        _echo(cast("dict[str, Any]", each)["id"])
        for each in batch
        if isinstance(each, dict) and "id" in each
    ]
    if not ids:
        yield Refusal(INVALID_REQUEST, fault)
    for number in ids[:MAX_BATCH]:
        yield Refusal(INVALID_REQUEST, fault, number)


def _describe(fields: dict[str, Any], errors: Sequence[ErrorDetails]) -> str:
    if fields.get("jsonrpc") != "2.0":
        return '`jsonrpc` must be "2.0"'
    if "method" not in fields:
        return "it has no `method`"
    if not isinstance(fields["method"], str):
        return "`method` must be a string"
    if not isinstance(fields.get("params", {}), dict | None):
        return "`params` must be an object"
    return str(errors[0]["msg"])


def _parse_fault(data: bytes, text: str, error: str) -> str:
    if b"\0" in data[:4]:
        return "The message is not UTF-8 but looks like UTF-16 or UTF-32: send UTF-8."
    if "recursion" in error:
        return "The message is nested too deeply."
    try:
        data.decode()
    except UnicodeDecodeError as fault:
        return f"The message is not UTF-8 (byte {fault.start}: 0x{data[fault.start]:02x})."
    if SURROGATE.search(text) and "escape" in error:
        return (
            "The message has half an emoji in it, an unpaired surrogate such as \\ud83d: send "
            f"whole characters ({error})."
        )
    return f"The message is not JSON: {error}."


def _id_fault(number: object) -> str:
    if number is None:
        return "The id of a request must not be null; a notification has no id at all."
    if isinstance(number, bool) or not isinstance(number, int | str):
        return "The id of a request is a whole number or a string."
    if len(str(number)) > MAX_ID_CHARS:
        return f"The id of a request is longer than {MAX_ID_CHARS} characters."
    return ""


def _echo(number: object) -> Id:
    """An id as an answer repeats it, if it is a number or a string."""
    if isinstance(number, bool) or not isinstance(number, int | float | str):
        return None
    if isinstance(number, float) and not isfinite(number):
        return None
    return number


def _id(token: str) -> Id:
    if not (token.startswith('"') or NUMBER.fullmatch(token)):
        return None
    try:
        return _echo(from_json(token))
    except ValueError:
        return None
