"""The errors of the project, named by what the caller may do about them.

    VersRlmError
    ├── UsageError              the request is wrong; say it differently
    │   ├── SignatureError      the signature cannot be read
    │   ├── InputError          inputs or files do not fit the signature or the rules
    │   ├── UnknownHandle       no such machine, commit or run (the valid ones are named)
    │   ├── PathRefused         a path that may not, or cannot, be read or written
    │   ├── MergeConflict       files to be brought over were changed there, too (they are named)
    │   └── SettingsError       flags or environment make no sense together
    ├── MachineError            a machine could not do what was asked
    │   ├── BackendUnavailable  no machine can be made here; the text says what to install or set
    │   ├── MachineFull         a limit (disk, memory, processes) was hit; the machine lives on
    │   └── MachineGone         the machine is no longer there: what ran on it is lost
    ├── KernelError             the REPL in the machine
    │   ├── KernelBusy          a cell is running; wait for it
    │   ├── KernelGone          the kernel ended; its variables are lost
    │   └── WireError           the guest sent something that is not the protocol
    ├── ModelError              a language model could not answer
    │   ├── ModelUnavailable    no key, no such model, no access: the user must change something
    │   └── ModelFailed         the provider failed, after the retries that make sense
    └── BudgetExceeded          the budget does not allow this call

Every message says what happened, to what, and what to do next, in words that a model or a person
can act on. No message ever holds a key.
"""

from __future__ import annotations


class VersRlmError(Exception):
    """The root of every error that this package raises on purpose."""


class UsageError(VersRlmError):
    """The request is wrong; the message says how to say it differently."""


class SignatureError(UsageError):
    """The signature cannot be read; the message points at the part and shows a right one."""


class InputError(UsageError):
    """Inputs or files do not fit the signature or the rules."""


class UnknownHandle(UsageError):
    """No machine, commit or run has this id; the message lists the valid ones."""


class PathRefused(UsageError):
    """A path that may not, or cannot, be read or written."""


class MergeConflict(UsageError):
    """Files to be brought into a machine were changed there meanwhile; the message names them."""


class SettingsError(UsageError):
    """Flags or environment variables make no sense, alone or together."""


class MachineError(VersRlmError):
    """A machine could not do what was asked of it."""


class BackendUnavailable(MachineError):
    """No machine can be made here; the message says what to install or to set."""


class MachineFull(MachineError):
    """A limit of the machine (disk, memory, processes) was hit. The machine lives on."""


class MachineGone(MachineError):
    """The machine is no longer there; what ran on it is lost."""


class KernelError(VersRlmError):
    """The REPL in the machine could not do what was asked of it."""


class KernelBusy(KernelError):
    """A cell is running in this kernel; wait for it or interrupt it."""


class KernelGone(KernelError):
    """The kernel's process ended; its variables are lost, the machine's files are not."""


class WireError(KernelError):
    """The guest sent something that is not the protocol; its connection is closed."""


class ModelError(VersRlmError):
    """A language model could not answer."""


class ModelUnavailable(ModelError):
    """No key, no such model or no access: the user has to change something."""


class ModelFailed(ModelError):
    """The provider failed, after all the retries that make sense."""


class BudgetExceeded(VersRlmError):
    """The run's budget does not allow this call."""
