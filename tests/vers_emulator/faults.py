"""Faults on demand: what goes wrong, where, on which machine, how often and how probably."""

from __future__ import annotations

from fnmatch import fnmatchcase
from random import Random
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

if TYPE_CHECKING:
    from collections.abc import Sequence


class Fault(BaseModel):
    """Something that goes wrong at a place, as often as it is told to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str = "*"
    """A pattern (``fnmatch``) of the place: ``POST /vm/*/branch``, ``exec``, ``sftp``, ``tls``."""
    vm: str | None = None
    """The only machine concerned."""
    times: int | None = Field(default=1, ge=1)
    """How often; None for as long as it is set."""
    probability: float = Field(default=1.0, ge=0, le=1)


class Delay(Fault):
    """The request is only looked at after a while."""

    kind: Literal["delay"] = "delay"
    seconds: float


class ReplyFault(Fault):
    """What becomes of a request or of its reply."""


class Refuse(ReplyFault):
    """The service answers with an error, and does nothing."""

    kind: Literal["refuse"] = "refuse"
    status: int = 503
    retry_after: str | None = None
    body: str = ""
    content_type: str | None = None


class Hang(ReplyFault):
    """Nothing is done and nothing answered: for a while, then the connection is closed."""

    kind: Literal["hang"] = "hang"
    seconds: float | None = None
    """None for ever."""


class Reset(ReplyFault):
    """The connection is reset before anything was done."""

    kind: Literal["reset"] = "reset"


class LoseReply(ReplyFault):
    """What was asked is done, and the connection closed instead of an answer."""

    kind: Literal["lose_reply"] = "lose_reply"


class Truncate(ReplyFault):
    """What was asked is done; the connection is closed half-way through the answer's body."""

    kind: Literal["truncate"] = "truncate"


class Garbage(ReplyFault):
    """What was asked is done; the answer's status is right, its body is no JSON."""

    kind: Literal["garbage"] = "garbage"
    body: str = "<html><body>upstream said something else</body></html>"


class Answer(ReplyFault):
    """The service answers something else than the truth; what is None is as it would have been."""

    kind: Literal["answer"] = "answer"
    does: bool = True
    """Whether what was asked is done all the same."""
    status: int | None = None
    body: str | None = None
    headers: dict[str, str] = {}
    """Besides the usual ones, or in their place."""


class Endless(ReplyFault):
    """Nothing is done, and the answer's body goes on and on: what is repeated, and how fast."""

    kind: Literal["endless"] = "endless"
    status: int = 200
    piece: str = "x" * 65536
    pause: float = 0.0
    """Seconds between two pieces: a slow drip."""
    codec: Literal["gzip", "deflate"] | None = None
    """How the body is compressed. A piece of zeros makes a bomb of a thousand to one."""
    pieces: int | None = None
    """After how many it ends all the same."""


class Mute(Fault):
    """The door takes a connection and says nothing, not even in the TLS handshake."""

    kind: Literal["mute"] = "mute"


class NotReady(Fault):
    """SSH of machines made by the request at `at` is not there yet."""

    kind: Literal["not_ready"] = "not_ready"
    seconds: float
    hang: bool = False
    """Whether connections stay silent until then; else they are closed after the TLS handshake."""


class FailTls(Fault):
    """The TLS handshake fails with an alert."""

    kind: Literal["fail_tls"] = "fail_tls"


class RefuseLogin(Fault):
    """The right key is refused."""

    kind: Literal["refuse_login"] = "refuse_login"


class Cut(Fault):
    """The SSH connection breaks during a session at `at`, ``exec``, ``shell`` or ``sftp``.

    It strikes a session that starts, or the next one that is running and carries something.
    """

    kind: Literal["cut"] = "cut"
    after_bytes: int | None = None
    """Bytes of the session's streams, both ways together."""
    after_seconds: float | None = None


AnyFault = Annotated[
    Delay
    | Refuse
    | Hang
    | Reset
    | LoseReply
    | Truncate
    | Garbage
    | Answer
    | Endless
    | Mute
    | NotReady
    | FailTls
    | RefuseLogin
    | Cut,
    Field(discriminator="kind"),
]

FAULT: TypeAdapter[AnyFault] = TypeAdapter(AnyFault)
"""Reads one fault from JSON."""

Kind = TypeVar("Kind", bound=Fault)


def quota(at: str = "POST /vm/*", *, times: int | None = 1) -> Refuse:
    """A refusal for want of quota. How the service words one is not known; this is a guess."""
    body = '{"error":"quota exceeded: the organisation may not have more VMs","success":false}'
    return Refuse(at=at, times=times, status=403, body=body, content_type="application/json")


class Faults:
    """The faults that are set. They are looked at in the order in which they were set."""

    def __init__(self, seed: int = 0) -> None:
        self._set: list[tuple[Fault, int | None]] = []
        self._random = Random(seed)
        self.taken: list[Fault] = []
        """Those that happened, in their order."""

    def seed(self, seed: int) -> None:
        """Make what is only probable go the same way again."""
        self._random = Random(seed)

    def set(self, *faults: Fault) -> None:
        """Let faults happen from now on, besides those that are set already."""
        self._set += [(fault, fault.times) for fault in faults]

    def clear(self) -> None:
        """Let none happen any more."""
        self._set.clear()

    def left(self) -> Sequence[Fault]:
        """Those that are still to happen, each with the times that are left."""
        return [fault.model_copy(update={"times": times}) for fault, times in self._set]

    def take(self, kind: type[Kind], at: str, *vms: str) -> Kind | None:
        """The fault of a kind that happens now, at a place and to one of `vms`; it is counted."""
        for index, (fault, times) in enumerate(self._set):
            if not isinstance(fault, kind) or not fnmatchcase(at, fault.at):
                continue
            if fault.vm not in (None, *vms) or self._random.random() >= fault.probability:
                continue
            if times is None or times > 1:
                self._set[index] = fault, times and times - 1
            else:
                del self._set[index]
            self.taken.append(fault)
            return fault
        return None
