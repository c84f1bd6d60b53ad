"""The replies of the service. Fields that are not used are left out here and ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import (
    AliasChoices,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

UUID_PATTERN: Final = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"

Id = Annotated[str, StringConstraints(pattern=UUID_PATTERN)]
"""Ids become parts of addresses and host names, so nothing but a UUID will do."""


def _utc(value: object) -> object:
    """Add the zone that some servers leave out."""
    if isinstance(value, str):
        parsed = datetime.fromisoformat(value)
        return parsed if parsed.tzinfo else f"{value}Z"
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_utc)]
Labels = Annotated[dict[str, str], BeforeValidator(lambda value: value or {})]  # pyright: ignore[reportUnknownLambdaType]


class Reply(BaseModel):
    """Part of an answer."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Vm(Reply):
    """A machine, as lists and its status show it."""

    vm_id: Id
    created_at: Moment
    state: str
    """``booting``, ``running``, ``paused``, ``sleeping`` or ``dead``."""
    labels: Labels = Field(default_factory=dict)


class VmMetadata(Reply):
    """The origin and size of a machine; older servers omit the size."""

    parent_commit_id: str | None = None
    grandparent_vm_id: str | None = None
    """The machine that the commit was taken of; for a branch, the machine it was branched from."""
    vcpu_count: int | None = None
    mem_size_mib: int | None = None


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
    created_at: Moment
    name: str | None = None
    description: str | None = None
    parent_vm_id: str | None = None
    """The machine that it was taken of."""


class CommitPage(Reply):
    """Some of the commits."""

    commits: list[CommitInfo]
    total: int


class SshKey(Reply):
    """The private key for `root` on a machine. It is kept in memory only."""

    ssh_private_key: str = Field(repr=False)


class KeyLimits(Reply):
    """What may be made with a key; None where the service does not say."""

    label: str | None = None
    max_vcpus: int | None = None
    max_memory_mib: int | None = None


class Organisation(Reply):
    """The organisation that a key belongs to."""

    name: str | None = None


class Identity(Reply):
    """The owner and limits of a key."""

    api_key: KeyLimits = KeyLimits()
    org: Organisation = Organisation()
