"""The REPL in a machine: a Python process that runs cells and keeps their variables.

`Kernel` is the host's half. The other half, `guest`, is sent to the machine and speaks frames
(`wire`). Nothing of it is imported here, and every frame from it is checked.
"""

from .attachment import has_kernel
from .base import (
    Carried,
    Handler,
    HostCall,
    Variable,
)
from .host import Kernel

__all__ = [
    "Carried",
    "Handler",
    "HostCall",
    "Kernel",
    "Variable",
    "has_kernel",
]
