"""Makes a machine one of its own: python3 -I -S -c THIS NAME. The standard library only.

A copy still has the name and the identity of its original. Its random numbers, clock and boot are
seen to by the hypervisor.
"""

from __future__ import annotations

import socket
import sys
import uuid


def main(name: str) -> None:
    """Give the machine a name, and an identity that no other has."""
    socket.sethostname(name)
    for path, text in (("/etc/hostname", name), ("/etc/machine-id", uuid.uuid4().hex)):
        with open(path, "w") as file:
            file.write(text + "\n")


main(sys.argv[1])
