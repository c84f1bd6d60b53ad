"""The REPL in a machine: a Python process that runs cells and keeps their variables.

`Kernel` is the host's half. The other half, in `guest`, is sent to the machine and only talks
frames (`wire`): nothing of it is imported here, and nothing it says is believed unchecked.
"""

from .attachment import has_kernel
from .base import (
    Carried,
    Handler,
    HostCall,
    Json,
    Variable,
)
from .host import Kernel

__all__ = [
    "Carried",
    "Handler",
    "HostCall",
    "Json",
    "Kernel",
    "Variable",
    "has_kernel",
]
