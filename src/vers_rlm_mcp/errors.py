"""The exception hierarchy, named by what the caller may do about each error.

    VersRlmError
    ├── UsageError              the request is wrong; change it
    │   ├── SignatureError      the signature cannot be parsed
    │   ├── InputError          inputs or files do not match the signature or the rules
    │   ├── UnknownHandle       no such machine, commit or run; the message names the valid ones
    │   ├── PathRefused         a path may not, or cannot, be read or written
    │   ├── MergeConflict       both machines changed the files to merge; the message names them
    │   └── SettingsError       a flag or environment variable is invalid
    ├── MachineError            a machine could not do what was asked
    │   ├── BackendUnavailable  no machine can be created; the message says what to install or set
    │   ├── MachineFull         a limit (disk, memory, processes) was reached; the machine survives
    │   └── MachineGone         the machine no longer exists; what ran on it is lost
    ├── KernelError             the REPL in the machine could not do what was asked
    │   ├── KernelBusy          a cell is running; wait for it
    │   ├── KernelGone          the kernel ended; its variables are lost
    │   └── WireError           the guest violated the protocol
    ├── ModelError              a language model could not answer
    │   ├── ModelUnavailable    no key, no such model or no access; the user must change something
    │   └── ModelFailed         the provider failed, even after retries
    └── BudgetExceeded          the run's budget does not allow the call

A message says what happened, to what, and what to do next, so that a model or a person can act on
it. No message contains a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMED_HANDLES = 10
"""How many valid ids an error names: enough to choose from, few enough for a model to read."""


class VersRlmError(Exception):
    """Base class of all errors that this package raises on purpose."""


class UsageError(VersRlmError):
    """The request is wrong; the message says how to correct it."""


class SignatureError(UsageError):
    """The signature cannot be parsed; the message quotes the part and shows a valid signature."""


class InputError(UsageError):
    """Inputs or files do not match the signature or the rules."""


class UnknownHandle(UsageError):
    """No machine, commit or run has this id; the message lists the valid ids."""


class PathRefused(UsageError):
    """A path may not, or cannot, be read or written."""


class MergeConflict(UsageError):
    """Files to merge into a machine were changed on both sides; the message names them."""


class SettingsError(UsageError):
    """Flags or environment variables are invalid, alone or in combination."""


class MachineError(VersRlmError):
    """A machine could not do what was asked."""


class BackendUnavailable(MachineError):
    """No machine can be created here; the message says what to install or set."""


class MachineFull(MachineError):
    """A limit of the machine (disk, memory, processes) was reached. The machine survives."""


class MachineGone(MachineError):
    """The machine no longer exists; what ran on it is lost."""


class KernelError(VersRlmError):
    """The REPL in the machine could not do what was asked."""


class KernelBusy(KernelError):
    """A cell is running in this kernel; wait for it or interrupt it."""


class KernelGone(KernelError):
    """The kernel process ended. Its variables are lost; the machine's files are not."""


class WireError(KernelError):
    """The guest violated the protocol; its connection is closed."""


class ModelError(VersRlmError):
    """A language model could not answer."""


class ModelUnavailable(ModelError):
    """No key, no such model or no access; the user must change something."""


class ModelFailed(ModelError):
    """The provider failed, even after retries."""


class BudgetExceeded(VersRlmError):
    """The run's budget does not allow the call."""


def unknown_handle(kind: str, handle: str, valid: Sequence[str]) -> UnknownHandle:
    """The error for an unknown id, which names the newest valid ones.

    Args:
        kind: ``machine``, ``commit`` or ``run``.
        handle: The unknown id.
        valid: The known ids, oldest first.
    """
    if not valid:
        return UnknownHandle(f"No {kind} {handle!r}: there is no {kind} at all yet.")
    named = ", ".join(list(reversed(valid))[:NAMED_HANDLES])
    more = f" and {len(valid) - NAMED_HANDLES} older" if len(valid) > NAMED_HANDLES else ""
    return UnknownHandle(f"No {kind} {handle!r}. Known, newest first: {named}{more}.")
