"""A machine's own network, joined to the host's through pasta or slirp4netns.

Both translate connections in user space. Neither lets the machine reach services on the host's
loopback interface, nor anyone reach the machine. What the host serves on its other addresses, and
what is in its local network, can be reached.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from vers_rlm_mcp.errors import BackendUnavailable

from .pipes import PipeReceiveStream, Pipes, PipeSendStream, read_text

NAMESERVER: Final = "10.0.2.3"
"""The address of machines' DNS server: slirp4netns' own; pasta is configured to use it too."""

CONNECT_SECONDS: Final = 10.0
"""How long connecting may take; some 30 ms are usual."""

CONNECT_POLL: Final = 0.002
"""Seconds between two checks for a route: the helpers have no common way to report one."""

END_SECONDS: Final = 5.0
"""How long a killed helper may take to be gone."""

EVERYWHERE: Final = "00000000"
"""The destination of a default route, as the kernel writes it."""

TUNNEL: Final = Path("/dev/net/tun")

MISSING: Final = (
    "A network for machines needs pasta or slirp4netns: install the package `passt` or "
    "`slirp4netns`, or choose the network `off` or `host`."
)


def helper() -> str | None:
    """The program that connects machines; None when there is none."""
    return shutil.which("pasta") or shutil.which("slirp4netns")


def obstacle() -> str:
    """Why machines cannot have a network here, and what to do; empty when they can."""
    if helper() is None:
        return MISSING
    if not TUNNEL.exists() or TUNNEL.stat().st_mode & 0o006 != 0o006:
        return (
            f"A network for machines needs {TUNNEL}, open to every user as it is by default: "
            f"`modprobe tun; chmod 666 {TUNNEL}`; or choose the network `off` or `host`."
        )
    return ""


class Connection:
    """The running helper of one machine."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        life: PipeSendStream,
        complaint: PipeReceiveStream,
    ) -> None:
        self._process = process
        self._life = life
        """The helper ends when the last copy of this is closed, even if this process is killed."""
        self._complaint = complaint
        """Its standard error, kept open because the helper writes to it after it has connected."""

    @classmethod
    async def open(cls, pid: int, owner: int | None) -> Connection:
        """Connect the network namespace of a process.

        `owner` is the user it belongs to, None for our own. Raises BackendUnavailable.
        """
        if reason := obstacle():
            raise BackendUnavailable(reason)
        with Pipes() as pipes:
            life, complaint = pipes.outgoing(), pipes.incoming()
            ending, errors = pipes.theirs
            process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: ASYNC220 - only starts it
                _command(pid, ending),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[ending],
                cwd="/",
                user=owner,
                group=owner,
                extra_groups=None if owner is None else [],
            )
        connection = cls(process, life, complaint)
        try:
            with anyio.move_on_after(CONNECT_SECONDS):
                while process.poll() is None:
                    if _has_route(pid):
                        return connection
                    await anyio.sleep(CONNECT_POLL)
            process.kill()
            raise BackendUnavailable(  # noqa: TRY301 - the helper is closed in every case
                f"A machine's network cannot be connected: {await read_text(complaint)}"
            )
        except BaseException:
            await connection.close()
            raise

    async def close(self) -> None:
        """End the helper."""
        self._process.kill()
        self._life.close()
        self._complaint.close()
        with anyio.move_on_after(END_SECONDS, shield=True):
            await to_thread.run_sync(self._process.wait, abandon_on_cancel=True)


def _command(pid: int, ending: int) -> list[str]:
    program = helper() or ""
    if Path(program).name == "pasta":  # It ends with the namespace.
        options = ["--config-net", "--foreground", "--quiet", "--no-map-gw"]
        options += [f"-{kind}none" for kind in "tuTU"]
        return [program, *options, "--dns-forward", NAMESERVER, str(pid)]
    options = ["--configure", "--mtu=65520", "--disable-host-loopback", f"--exit-fd={ending}"]
    return [program, *options, str(pid), "tap0"]


def _has_route(pid: int) -> bool:
    """Whether there is a default route, which the helpers set last."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/net/route").read_text().splitlines()[1:]
        return any(line.split()[1] == EVERYWHERE for line in lines)
    return False
