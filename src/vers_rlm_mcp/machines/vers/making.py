"""Makes things without losing any: before an attempt is repeated, its result is looked up.

The service is not known to honour an idempotency key, so when the response to a request is lost,
the thing may or may not exist. Ours are recognized as follows:

- A fresh machine has the label of this request, `REQUEST`, from the beginning.
- A commit has a unique name.
- A branch or a machine from a commit cannot be labelled in the request; it is labelled right
  afterwards. Until then it is ours if it was not listed before the request, its metadata name the
  machine or commit that was copied, and it has no other request's label. Requests for copies of the
  same thing wait for each other, so that their copies are not confused. Unlabelled copies are not
  looked for later, when they might be anyone's, with one exception: `unlabelled` finds those of a
  process that was killed. What remains is a copy of which the service told us nothing, in a minute
  in which it answered nothing else either.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import anyio

from vers_rlm_mcp.errors import MachineError
from vers_rlm_mcp.retries import with_retries

from .faults import PassingVersFault
from .shielded import finish_or_undo

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .api import VersApi
    from .schema import VmMetadata

logger = logging.getLogger(__name__)

OWN_LABELS: Final = "vers-rlm-mcp."
"""The prefix of this module's labels, which callers do not see."""

REQUEST: Final = f"{OWN_LABELS}request"
PARENT: Final = f"{OWN_LABELS}parent"
"""The commit or machine that was copied; metadata name both for either."""

FINISH_SECONDS: Final = 15.0
"""How long a request continues after it was cancelled: a branch takes 10 s, and its answer is the
surest way to learn what to delete."""

LATE_SECONDS: Final = 600.0
"""How long a service may continue a request that was given up: it is in trouble then."""

CLOCK_SECONDS: Final = 60.0
"""How far the service's clock may be from ours."""

CLEAN_SECONDS: Final = 15.0
"""To delete what a failed request made; the rest is deleted by the next call."""


class Making:
    """A request for things, repeated as needed.

    Args:
        post: Requests them once and returns their ids.
        find: Returns the ids of what this request has visibly made so far. None if that cannot be
            found out: then the request is not repeated.
        finish: Prepares them for use: labels them, waits until they can be reached.
        delete: Deletes one of them.
        lasting: Whether `find` stays reliable. Then it also looks for what appears late, because
            the service completed a request that we gave up.
        count: How many are wanted.
    """

    def __init__(
        self,
        post: Callable[[], Awaitable[Sequence[str]]],
        *,
        find: Callable[[], Awaitable[Sequence[str]]] | None,
        delete: Callable[[str], Awaitable[None]],
        finish: Callable[[Sequence[str]], Awaitable[None]] | None = None,
        lasting: bool = False,
        count: int = 1,
    ) -> None:
        self._post = post
        self._find = find
        self._delete = delete
        self._finish = finish
        self._lasting = lasting
        self._count = count
        self._started = time.monotonic()
        self._reported: set[str] = set()
        """Ids that the service reported, as long as they may have to be deleted."""
        self._kept: set[str] = set()
        self._doubtful = False
        """Whether the service may have made something without reporting it."""

    async def run(self) -> Sequence[str]:
        """Make exactly `count` things, or raise; `clean` removes everything else."""
        made = (await with_retries(self._attempt, failed=MachineError))[: self._count]
        if len(made) < self._count:
            raise MachineError(
                f"Vers made {len(made)} of the {self._count} that were asked for in one request: "
                "ask for one at a time."
            )
        if self._finish:
            await self._finish(made)
        return made

    @property
    def settled(self) -> bool:
        """Whether nothing that this request made has to be deleted any more, or looked for."""
        return not (self._reported or self._doubtful)

    async def clean(self, keep: Sequence[str] = ()) -> None:
        """Delete what this request made, but for `keep`."""
        self._kept.update(keep)
        was_doubtful = self._doubtful
        late = time.monotonic() < self._started + LATE_SECONDS
        self._doubtful = was_doubtful and self._lasting and late
        if was_doubtful and self._find:
            self._reported.update(await self._find())
        self._reported -= self._kept
        for made_id in list(self._reported):
            await self._delete(made_id)
            self._reported.discard(made_id)

    async def _attempt(self) -> Sequence[str]:
        if self._doubtful and self._find and len(found := await self._find()) >= self._count:
            self._reported.update(found)
            return found
        try:
            return await finish_or_undo(self._ask, seconds=FINISH_SECONDS)
        except PassingVersFault as fault:
            self._doubtful = True
            if self._find is None:
                raise MachineError(
                    f"{fault} It may have been made all the same: list it."
                ) from None
            raise
        except anyio.get_cancelled_exc_class():
            self._doubtful = self._doubtful or not self._reported
            raise

    async def _ask(self) -> Sequence[str]:
        made = await self._post()
        self._reported.update(made)
        if len(made) < self._count and self._find:  # an older service reports only one
            made = await self._find()
            self._reported.update(made)
        return made


class Maker:
    """Performs requests, and cleans up what they leave behind."""

    def __init__(self) -> None:
        self._leftovers: list[Making] = []

    async def make(self, making: Making) -> Sequence[str]:
        """Perform a request; after an error or a cancellation nothing of it is left.

        If the clean-up fails as well, a later `clean` repeats it.
        """
        try:
            made = await making.run()
        except BaseException:
            await self._clean(making)
            raise
        await self._clean(making, made)
        return made

    async def clean(self) -> None:
        """Delete what earlier requests left behind; what cannot be deleted stays for later."""
        leftovers, self._leftovers = self._leftovers, []
        for making in leftovers:
            await self._clean(making)

    async def _clean(self, making: Making, keep: Sequence[str] = ()) -> None:
        with anyio.move_on_after(CLEAN_SECONDS, shield=True):
            try:
                await making.clean(keep)
            except MachineError as error:
                logger.warning("What a failed request made cannot be deleted yet: %s", error)
        if not making.settled:
            self._leftovers.append(making)


@dataclass(frozen=True, slots=True)
class Origin:
    """What copies are made of: a live machine, or a commit by its id or one of its names."""

    kind: Literal["machine", "commit_id", "ref", "tag_name"]
    id: str

    @property
    def is_name(self) -> bool:
        """Whether it only names a commit."""
        return self.kind in {"ref", "tag_name"}

    def is_origin_of(self, metadata: VmMetadata) -> bool:
        """Whether these are the metadata of a copy."""
        if self.kind == "machine":
            return metadata.grandparent_vm_id == self.id
        return metadata.parent_commit_id == self.id


async def copies_of(api: VersApi, origin: Origin) -> Callable[[], Awaitable[Sequence[str]]] | None:
    """A function that finds unlabelled copies made from now on; None if `origin` is only a name."""
    if origin.is_name:
        return None
    before = await api.vms()
    old = {vm.vm_id for vm in before}
    # Whether a copy has the labels of its original is not documented.
    inherited = {vm.labels.get(REQUEST) for vm in before} | {None}

    async def find() -> Sequence[str]:
        new = [
            vm.vm_id
            for vm in await api.vms()
            if vm.vm_id not in old and vm.labels.get(REQUEST) in inherited
        ]
        return [vm_id for vm_id in new if origin.is_origin_of(await api.metadata(vm_id))]

    return find


async def unlabelled(api: VersApi, parent: str, asked_at: float) -> Sequence[str]:
    """Copies of a machine or commit without a request's label, made about when it was asked."""
    vms = await api.vms()
    inherited = {vm.labels.get(REQUEST) for vm in vms if vm.vm_id == parent} | {None}
    candidates = [
        vm.vm_id
        for vm in vms
        if -CLOCK_SECONDS < api.made_at(vm) - asked_at < LATE_SECONDS
        and vm.vm_id != parent
        and vm.labels.get(REQUEST) in inherited
    ]
    found: list[str] = []
    for vm_id in candidates:
        with suppress(MachineError):  # it may be anyone's
            metadata = await api.metadata(vm_id)
            if parent in (metadata.parent_commit_id, metadata.grandparent_vm_id):
                found.append(vm_id)
    return found
