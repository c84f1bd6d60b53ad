"""Makes things without losing any, and without taking another's for ours.

The service is not known to honour an idempotency key, so when the response to a request is lost,
the thing may or may not exist: before an attempt is repeated, its result is looked up. And what a
response names may be another's machine, or none. So a `Claim` tells ours from all others:

- It was not listed before the request.
- A fresh machine has the label of this request, `REQUEST`, from the beginning.
- A branch or a machine from a commit cannot be labelled in the request; it is labelled right
  afterwards. Until then it is ours if it was made since, its metadata name the machine or commit
  that was copied, and it has no other request's label. Requests for copies of the same thing wait
  for each other, so that their copies are not confused.
- A commit has a unique name.

What is not ours is not used and not deleted, whatever names it. Unlabelled copies are not looked
for later, when they might be anyone's, with one exception: `unlabelled` finds those of a process
that was killed. What remains is a copy of which the service told us nothing, in a minute in which
it answered nothing else either.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import anyio

from vers_rlm_mcp.errors import BackendUnavailable, MachineError
from vers_rlm_mcp.retries import with_retries

from ..base import CLOCK_SECONDS
from .faults import NotThere, PassingVersFault, Refused
from .shielded import finish_or_undo, run_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .api import VersApi
    from .schema import CommitInfo, Vm, VmMetadata

T = TypeVar("T")

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

SKEW_SECONDS: Final = 60.0
"""How far the clocks of the service's own computers may be apart."""

MAX_CANDIDATES: Final = 100
"""Machines that are looked at to find a copy without a label: the first ones made after it was
asked for. Others are most likely not ours."""

VISIBLE_SECONDS: Final = 3.0
"""How long a machine that was just made may be unknown to the service."""

VISIBLE_PAUSE: Final = 0.3

REPEAT_SECONDS: Final = 120.0
"""How long a request is repeated: as long as one attempt may take."""

CLEAN_SECONDS: Final = 15.0
"""To delete what a failed request made; the rest is deleted by the next call."""


class NotOurs(MachineError):
    """What the service named as made by a request was not made by it."""


class Making:
    """A request for things, repeated as needed.

    Args:
        post: Requests them once and returns their ids.
        check: Raises `NotOurs` unless all of these ids are of things that this request made.
        find: Returns the ids of what this request has visibly made so far. None if that cannot be
            found out: then the request is not repeated.
        finish: Prepares them for use: labels them, waits until they can be reached.
        delete: Deletes one of them.
        is_answering: Whether the service answers anything at all.
        lasting: Whether `find` stays reliable. Then it also looks for what appears late, because
            the service completed a request that we gave up.
        count: How many are wanted.
    """

    def __init__(
        self,
        post: Callable[[], Awaitable[Sequence[str]]],
        *,
        check: Callable[[Sequence[str]], Awaitable[None]],
        find: Callable[[], Awaitable[Sequence[str]]] | None,
        delete: Callable[[str], Awaitable[None]],
        is_answering: Callable[[], Awaitable[bool]],
        finish: Callable[[Sequence[str]], Awaitable[None]] | None = None,
        lasting: bool = False,
        count: int = 1,
    ) -> None:
        self._post = post
        self._check = check
        self._find = find
        self._delete = delete
        self._is_answering = is_answering
        self._finish = finish
        self._lasting = lasting
        self._count = count
        self._started = time.monotonic()
        self._reported: set[str] = set()
        """Ids of what was certainly made, as long as they may have to be deleted."""
        self._kept: set[str] = set()
        self._doubtful = False
        """Whether the service may have made something that is not known yet."""

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
        was_doubtful, self._doubtful = self._doubtful, True
        try:
            made = await finish_or_undo(
                self._ask, seconds=FINISH_SECONDS, is_worthwhile=self._is_answering
            )
        except (NotThere, Refused, BackendUnavailable):  # so nothing was made
            self._doubtful = was_doubtful
            raise
        except PassingVersFault as fault:
            if self._find is None:
                raise MachineError(
                    f"{fault} It may have been made all the same: list it."
                ) from None
            if time.monotonic() > self._started + REPEAT_SECONDS:
                raise MachineError(f"{fault} Try again later.") from None
            raise
        except anyio.get_cancelled_exc_class():
            self._doubtful = was_doubtful or not self._reported
            raise
        self._doubtful = was_doubtful
        return made

    async def _ask(self) -> Sequence[str]:
        made = await self._post()
        try:
            await self._check(made)
        except NotOurs:
            raise
        except MachineError as error:
            raise MachineError(f"What Vers has made cannot be looked at: {error}") from None
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
        """Whether these are the metadata of a copy; with a name, of one of any commit."""
        if self.kind == "machine":
            return metadata.grandparent_vm_id == self.id
        if self.is_name:
            return metadata.parent_commit_id is not None
        return metadata.parent_commit_id == self.id


class Claim:
    """Tells the machines that one request makes from all others.

    Args:
        api: The service.
        request: The request's own label.
        origin: What is copied; None for a fresh machine.
        describe: Returns a machine's metadata.
    """

    def __init__(
        self,
        api: VersApi,
        request: str,
        origin: Origin | None,
        describe: Callable[[str], Awaitable[VmMetadata]],
    ) -> None:
        self._api = api
        self._request = request
        self._origin = origin
        self._describe = describe
        self._began_at = time.time()
        self._old: set[str] = set()
        self._inherited: set[str | None] = {None}

    async def begin(self) -> None:
        """Note which machines there are before the request."""
        before = await self._api.vms()
        self._old = {vm.vm_id for vm in before}
        # Whether a copy has the labels of its original is not documented.
        self._inherited |= {vm.labels.get(REQUEST) for vm in before}

    async def find(self) -> Sequence[str]:
        """The machines that this request has visibly made so far."""
        found: list[str] = []
        for vm in await self._api.vms():
            with suppress(MachineError):  # of which nothing can be learnt: it may be anyone's
                if await self.covers(vm):
                    found.append(vm.vm_id)
        return found

    async def check(self, machine_ids: Sequence[str]) -> None:
        """Raise `NotOurs` unless all of these were made by this request, and each is another."""
        if len(set(machine_ids)) < len(machine_ids):
            raise NotOurs(f"Vers named one machine twice as new ones: {', '.join(machine_ids)}.")
        for machine_id in machine_ids:
            vm = await self._look_at(machine_id)
            if vm is None or not await self.covers(vm):
                raise NotOurs(
                    f"Vers named machine {machine_id} as a new one, but this request did not make "
                    "it. It was left as it is; try again later."
                )

    async def covers(self, vm: Vm) -> bool:
        """Whether this request made a machine. Raises `MachineError` if that cannot be learnt."""
        label = vm.labels.get(REQUEST)
        if vm.vm_id in self._old:
            return False
        if label == self._request:
            return True
        made_at = self._api.made_at(vm)
        if self._origin is None or label not in self._inherited:
            return False
        if made_at and made_at < self._began_at - SKEW_SECONDS:
            return False
        return self._origin.is_origin_of(await self._describe(vm.vm_id))

    async def _look_at(self, machine_id: str) -> Vm | None:
        async def look() -> Vm | None:
            try:
                return await self._api.status(machine_id)
            except NotThere:
                return None

        return None if machine_id in self._old else await wait_for(look)


class CommitClaim:
    """Tells the commit that one request takes from all others, by its name."""

    def __init__(self, api: VersApi, name: str) -> None:
        self.made: dict[str, CommitInfo] = {}
        """The commits of this name, as far as they are known."""
        self._api = api
        self._name = name

    async def find(self, until: Sequence[str] = ()) -> Sequence[str]:
        """The commits of this name. Stops looking when it has found all of `until`."""
        async for info in self._api.commits():
            if info.name == self._name:
                self.made[info.commit_id] = info
                if until and self.made.keys() >= set(until):
                    break
        return list(self.made)

    async def check(self, commit_ids: Sequence[str]) -> None:
        """Raise `NotOurs` unless all of these have this name."""

        async def look() -> bool | None:
            return set(commit_ids) <= set(await self.find(commit_ids)) or None

        if not await wait_for(look):
            raise NotOurs(
                f"Vers named commit {commit_ids[0]} as a new one, but lists none of this id and "
                "name. It was left as it is; try again later."
            )


async def wait_for(look: Callable[[], Awaitable[T | None]]) -> T | None:
    """Look for what was just made, of which the service may tell only some seconds later."""
    until = anyio.current_time() + VISIBLE_SECONDS
    while (found := await look()) is None and anyio.current_time() < until:  # noqa: ASYNC110 - a service gives no event
        await anyio.sleep(VISIBLE_PAUSE)
    return found


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

    async def look_at(vm_id: str) -> None:
        with suppress(MachineError):  # it may be anyone's
            metadata = await api.metadata(vm_id)
            if parent in (metadata.parent_commit_id, metadata.grandparent_vm_id):
                found.append(vm_id)

    await run_all([partial(look_at, vm_id) for vm_id in candidates[:MAX_CANDIDATES]])
    return found
