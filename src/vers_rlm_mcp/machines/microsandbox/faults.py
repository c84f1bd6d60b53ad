"""Translates the library's errors: no other module handles them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vers_rlm_mcp.errors import BackendUnavailable, MachineError, MachineFull

if TYPE_CHECKING:
    from collections.abc import Generator

MAX_WORDS: Final = 500
"""Characters of the library's message in an error: it repeats a cause for every layer."""

INSTALL: Final = "Install it: pip install 'vers-rlm-mcp[microvm]'"

MEANS: Final[dict[str, tuple[type[MachineError], str]]] = {
    "runtime-not-installed": (BackendUnavailable, f"{INSTALL}."),
    "runtime-incomplete": (BackendUnavailable, f"{INSTALL} --force-reinstall."),
    "image-not-found": (
        BackendUnavailable,
        "Name another with VERS_RLM_IMAGE, or the path of an archive made by `docker save`.",
    ),
    "image-pull-failed": (
        BackendUnavailable,
        "Without a network, save it where there is one (`docker save -o image.tar NAME`), and set "
        "VERS_RLM_IMAGE to the path of the archive.",
    ),
    "unsupported": (MachineError, "Look for another version of the package microsandbox."),
    "unsupported-operation": (MachineError, "Make a new machine: this one is of an older runtime."),
    "sandbox-stop-timed-out": (MachineError, "Delete it again later."),
    "snapshot-source-recovery": (MachineError, "Delete the machine, and make another."),
}
"""By the library's code for an error: what we raise, and what to do next."""

NO_SNAPSHOT: Final = "snapshot not found"
"""The library's message. It has no code, and sometimes comes as an error of the bindings."""

NO_ROOM: Final = ("No space left on device", "Cannot allocate memory", "Disk quota exceeded")
"""The system's messages for a full host, which the library passes on."""


class NoSuchSandbox(MachineError):
    """The library knows no machine of this name."""


class NoSuchSnapshot(MachineError):
    """The library knows no snapshot of this name."""


@contextmanager
def translated(what: str, root: type[Exception]) -> Generator[None]:
    """Turn what the library raises into errors of this project.

    Args:
        what: The operation, for the message: ``branch machine X``.
        root: The class that the library's errors derive from.
    """
    try:
        yield
    except root as error:
        raise meaning(what, error) from None
    except (OSError, ValueError, TypeError) as error:  # of its bindings, which check arguments
        if NO_SNAPSHOT in str(error):
            raise NoSuchSnapshot(_no_commit(what)) from None
        raise MachineError(f"Cannot {what}: {_short(error)}.") from None


def meaning(what: str, error: Exception) -> MachineError:
    """What an error of the library means."""
    code = str(getattr(error, "code", ""))
    if code == "sandbox-not-found":
        return NoSuchSandbox(f"Cannot {what}: there is no such machine any more.")
    words = _short(error)
    if NO_SNAPSHOT in words:
        return NoSuchSnapshot(_no_commit(what))
    if any(sign in words for sign in NO_ROOM):
        return MachineFull(f"Cannot {what}: {words}. Make room on this computer, and try again.")
    kind, advice = MEANS.get(code, (MachineError, "`msb doctor` tells what this computer lacks."))
    return kind(f"Cannot {what}: {words}. {advice}")


def _no_commit(what: str) -> str:
    return f"Cannot {what}: there is no such commit any more."


def _short(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}…"
