"""The program that the host starts, with the arguments SENT ARCHIVE DIRECTORY VARIABLES MODE.

It finds the kernel of this machine by its socket in DIRECTORY or starts one, passes its own
standard input and output on to it, and then only waits: frames go straight from the kernel to the
host. The kernel has its own session and survives if this process is killed. The exit status
says how the kernel ended, as a shell would, or is one of the two below.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys

# The C core of `socket`: the module itself takes a third of the time that a kernel takes to start.
# For the same reason neither `signal` nor `contextlib` is used here.
from _socket import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SO_PEERCRED,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

SOCKET = "kernel.sock"
FAREWELL = b"\0"
"""Sent by a kernel that releases an attachment. A stream that ends without it means it died."""

RELEASED = 121
"""Exit status when the kernel still runs, but no longer for this host."""

UNKNOWN_END = 120
"""Exit status when another process started the kernel and only that one knows how it ended."""

KILL_SECONDS = 5.0
"""A killed process is gone at once, unless the system itself hangs."""

_SIGKILL = 9

_CREDENTIALS = struct.Struct("3i")
_DESCRIPTORS = struct.Struct("2i")


def main() -> None:
    """Attach to the kernel (MODE `attach`), to a new one (`restart`), or just kill it (`kill`)."""
    _, _, directory, variables, mode = sys.argv[1:]
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Through the descriptor, since the address of a Unix socket holds no more than 108 bytes.
    address = f"/proc/self/fd/{lock}/{SOCKET}"
    connection = _connect(address)
    if connection and mode != "attach":
        _kill(connection)
        connection = None
    if mode == "kill":
        return
    child = 0
    if connection is None:
        connection, child = _start(address, lock, variables)
    os.close(lock)
    os.chdir("/")  # as the kernel does between cells; see `workplace`
    _hand_over(connection)
    sys.exit(_end(connection, child))


def _connect(address: str) -> socket | None:
    connection = socket(AF_UNIX, SOCK_STREAM)
    try:
        connection.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    return connection


def _kill(connection: socket) -> None:
    """Kill the kernel that listens there, and its descendants."""
    credentials = connection.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size)
    kernel: int = _CREDENTIALS.unpack(credentials)[0]
    for pid in [kernel, *_descendants(kernel)]:
        try:
            os.kill(pid, _SIGKILL)
        except ProcessLookupError:
            continue
    connection.settimeout(KILL_SECONDS)
    _wait_for_farewell(connection)
    connection.close()


def _descendants(ancestor: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(name))
    found = list(children.get(ancestor, ()))
    for pid in found:
        found += children.get(pid, ())
    return found


def _start(address: str, lock: int, variables: str) -> tuple[socket, int]:
    """Start a kernel; return a connection to it and its process id."""
    if os.path.lexists(address):
        os.unlink(address)
    listener = socket(AF_UNIX, SOCK_STREAM)
    listener.bind(address)
    listener.listen()
    try:
        child = os.fork()
    except BlockingIOError:
        sys.exit("the machine has as many processes as it may: end some, e.g. exec('kill -9 -1')")
    if child == 0:
        os.close(lock)
        _become_kernel(listener, variables)
    listener.close()
    connection = _connect(address)
    if connection is None:
        raise ConnectionError("the kernel ended while it started")
    return connection, child


def _become_kernel(listener: socket, variables: str) -> None:
    try:
        os.setsid()
        listener.listen()  # once more, so that SO_PEERCRED names this process
        from ..sessions import UNMARKED, bear

        bear(UNMARKED)  # or it would end along with the job that has started it
        from .service import serve

        serve(listener, variables)
    except BaseException as error:  # noqa: BLE001 - the process ends here, and says why
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(1)


def _hand_over(connection: socket) -> None:
    connection.sendmsg([FAREWELL], [(SOL_SOCKET, SCM_RIGHTS, _DESCRIPTORS.pack(0, 1))])
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)


def receive_descriptors(connection: socket) -> tuple[int, int]:
    """The counterpart of `_hand_over`: what the host writes to, and what it reads from."""
    _, ancillary, _, _ = connection.recvmsg(1, 256, MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS) and len(data) == _DESCRIPTORS.size:
            return _DESCRIPTORS.unpack(data)
    raise ConnectionError("no descriptors came with the connection")


def _wait_for_farewell(connection: socket) -> bytes:
    """Wait for the kernel's farewell, which is empty if it dies."""
    try:
        return connection.recv(1)
    except OSError:
        return b""


def _end(connection: socket, child: int) -> int:
    """Wait until the kernel releases this host or dies, and return the exit status."""
    if _wait_for_farewell(connection):
        return RELEASED
    if not child:
        return UNKNOWN_END
    _, status = os.waitpid(child, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
