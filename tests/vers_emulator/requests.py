"""The bodies that the service takes, and reading them with its ways of refusing.

The texts are those of axum, in which the published errors are worded: no JSON is a 400, JSON of
another shape a 422, a missing content type a 415, all in plain text.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr, ValidationError
from pydantic_core import from_json

from .answers import plain

if TYPE_CHECKING:
    from starlette.requests import Request


class VmConfig(BaseModel):
    vcpu_count: StrictInt | None = None
    mem_size_mib: StrictInt | None = None
    fs_size_mib: StrictInt | None = None
    image_name: StrictStr | None = None
    kernel_name: StrictStr | None = None
    labels: dict[StrictStr, StrictStr] | None = None


class NewRoot(BaseModel):
    vm_config: VmConfig


class FromCommit(BaseModel):
    commit_id: StrictStr | None = None
    tag_name: StrictStr | None = None
    ref: StrictStr | None = None


class NewState(BaseModel):
    state: StrictStr


class Resize(BaseModel):
    fs_size_mib: StrictInt


class NewCommit(BaseModel):
    name: StrictStr | None = None
    description: StrictStr | None = None


class ChangeCommit(BaseModel):
    is_public: StrictBool
    name: StrictStr | None = None
    description: StrictStr | None = None


class Exec(BaseModel):
    command: list[StrictStr] = Field(min_length=1)
    env: dict[StrictStr, StrictStr] | None = None
    stdin: StrictStr | None = None
    working_dir: StrictStr | None = None
    timeout_secs: StrictInt | None = None
    exec_id: StrictStr | None = None


class PutFile(BaseModel):
    path: StrictStr
    content_b64: StrictStr
    mode: StrictInt | None = None
    create_dirs: StrictBool | None = None


class NewTag(BaseModel):
    commit_id: StrictStr
    tag_name: StrictStr


class Labels(BaseModel):
    labels: dict[StrictStr, StrictStr]


Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, model: type[Body]) -> Body:
    """The body of a request, or the refusal that it deserves."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise plain(415, "Expected request with `Content-Type: application/json`")
    try:
        value = from_json(await request.body())
    except ValueError as error:
        raise plain(400, f"Failed to parse the request body as JSON: {error}") from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise plain(
            422,
            f"Failed to deserialize the JSON body into the target type: {place}: {first['msg']}",
        ) from None


def read_id(request: Request, name: str) -> str:
    """A UUID of the path, or a 400."""
    value = request.path_params[name]
    return _uuid(value, f"Invalid URL: Cannot parse `{name}` with value `{value}`")


def check_id(value: str, name: str) -> str:
    """A UUID of a body, or a 400."""
    return _uuid(value, f"Invalid {name} `{value}`")


def read_number(request: Request, name: str, default: int, most: int) -> int:
    """A number of the query, or a 400."""
    text = request.query_params.get(name, str(default))
    if not text.isdigit() or int(text) > most:
        raise plain(400, f"Failed to deserialize query string: {name}: invalid value `{text}`")
    return int(text)


def read_flag(request: Request, name: str) -> bool:
    """A truth value of the query, or a 400."""
    text = request.query_params.get(name, "false")
    if text not in ("true", "false"):
        raise plain(400, f"Failed to deserialize query string: {name}: invalid value `{text}`")
    return text == "true"


def _uuid(value: str, complaint: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise plain(400, f"{complaint}: UUID parsing failed") from None
