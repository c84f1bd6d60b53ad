"""The replies of the service. Fields that are not used are left out here and ignored."""

from __future__ import annotations

import logging
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, cast

from pydantic import (
    AfterValidator,
    AliasChoices,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WrapValidator,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import ValidatorFunctionWrapHandler

logger = logging.getLogger(__name__)

UUID_PATTERN: Final = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"

MAX_KEY: Final = 64 * 1024
"""Characters of an SSH key: far more than the longest."""

MAX_INTEGER: Final = 2**31 - 1
"""Of processors and MiB: far more than any machine has."""

Id = Annotated[str, StringConstraints(pattern=UUID_PATTERN), AfterValidator(str.lower)]
"""Ids become parts of addresses and host names, so nothing but a UUID will do."""


def _or_none(value: object, read: ValidatorFunctionWrapHandler) -> object:
    try:
        return read(value)
    except ValidationError:
        return None


OrNone: Final = WrapValidator(_or_none)
"""For what is not needed, and so may be missing or odd: it is None then."""


def _utc(value: object) -> object:
    """Add the zone that some servers leave out."""
    if isinstance(value, str):
        parsed = datetime.fromisoformat(value)
        return parsed if parsed.tzinfo else f"{value}Z"
    return value


def _readable(value: object) -> object:
    """The labels that can be read: texts, whose characters are whole."""
    if not isinstance(value, dict):
        return {}
    labels = cast("dict[object, object]", value)
    return {name: text for name, text in labels.items() if _is_text(name) and _is_text(text)}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


Moment = Annotated[AwareDatetime | None, BeforeValidator(_utc), OrNone]
Labels = Annotated[dict[str, str], BeforeValidator(_readable)]
Text = Annotated[str | None, OrNone]
State = Annotated[str | None, AfterValidator(lambda state: state and state.lower()), OrNone]
Size = Annotated[Annotated[int, Field(gt=0, le=MAX_INTEGER)] | None, OrNone]


class Reply(BaseModel):
    """Part of an answer."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Vm(Reply):
    """A machine, as lists and its status show it. Those of others may be of any form."""

    vm_id: Id
    created_at: Moment = None
    state: State = None
    """``booting``, ``running``, ``paused``, ``sleeping`` or ``dead``; None if it is not told."""
    labels: Labels = Field(default_factory=dict)


class VmMetadata(Reply):
    """The origin and size of a machine; older servers omit the size."""

    vm_id: Annotated[Id | None, OrNone] = None
    parent_commit_id: Text = None
    grandparent_vm_id: Text = None
    """The machine that the commit was taken of; for a branch, the machine it was branched from."""
    vcpu_count: Size = None
    mem_size_mib: Size = None


class MadeVm(Reply):
    """A machine that was just made."""

    vm_id: Id


class MadeVms(Reply):
    """Machines that were just made; older servers send one without a list around it."""

    vms: list[MadeVm]

    @classmethod
    def parse(cls, data: Any) -> MadeVms:
        """Read either reply."""
        return cls.model_validate(data if "vms" in data else {"vms": [data]})


class MadeCommit(Reply):
    """A commit that was just taken."""

    commit_id: Id


class CommitInfo(Reply):
    """A commit; some replies call its id `id`."""

    commit_id: Id = Field(validation_alias=AliasChoices("commit_id", "id"))
    created_at: Moment = None
    name: Text = None
    description: Text = None
    parent_vm_id: Text = None
    """The machine that it was taken of."""


class Page(Reply):
    """Some of what is listed, or all of it."""

    items: list[Any]
    is_all: bool = False
    total: Annotated[int | None, OrNone] = None
    """How many there are in all, if that is told."""

    @classmethod
    def parse(cls, data: Any, name: str) -> Page:
        """Read a list, which is whole, or an object that holds some of one."""
        if isinstance(data, list):
            return cls.model_validate({"items": data, "is_all": True})
        if not isinstance(data, dict):
            raise ValueError("it is no list")  # noqa: TRY004 - like any other that cannot be read
        page = cast("dict[str, Any]", data)
        return cls.model_validate({"items": page.get(name), "total": page.get("total")})

    def has_next(self, seen: int, limit: int) -> bool:
        """Whether there may be more, after `seen` items and with at most `limit` on a page."""
        if self.is_all or not self.items:
            return False
        return len(self.items) >= limit if self.total is None else seen < self.total


ReplyT = TypeVar("ReplyT", bound=Reply)


def read_each(model: type[ReplyT], items: Sequence[Any]) -> Sequence[ReplyT]:
    """Read items one by one. Those without an id, of which nothing can be asked, are left out."""
    read: list[ReplyT] = []
    for item in items:
        try:
            read.append(model.model_validate(item))
        except ValidationError:
            _warn_once()
    return read


@cache
def _warn_once() -> None:
    logger.warning("Vers lists something without an id that can be used; it is left out.")


class SshKey(Reply):
    """The private key for `root` on a machine. It is kept in memory only."""

    ssh_private_key: str = Field(repr=False, max_length=MAX_KEY)


class KeyLimits(Reply):
    """What may be made with a key; None where the service does not say."""

    label: Text = None
    max_vcpus: Size = None
    max_memory_mib: Size = None


class Organisation(Reply):
    """The organisation that a key belongs to."""

    name: Text = None


class Identity(Reply):
    """The owner and limits of a key."""

    api_key: Annotated[KeyLimits | None, OrNone] = None
    org: Annotated[Organisation | None, OrNone] = None
