"""Checks whether machines can be made here by booting one, and says what to do if not.

Run as a program, ``python -m vers_rlm_mcp.machines.microsandbox.probe STATE_DIR``, it boots a
machine that needs no image, and writes to standard error why that fails.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import BackendUnavailable, VersRlmError

from ..base import Finding
from .images import ensure_image
from .library import Library
from .records import new_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .config import MicrosandboxConfig

BOOT_SECONDS: Final = 20.0
"""A machine usually boots in a fraction of a second. On slower computers set the backend
explicitly: then it is not tried first."""

CLEAN_SECONDS: Final = 20.0
"""To remove a machine, even one that hangs."""

KVM: Final = "/dev/kvm"


async def probe(config: MicrosandboxConfig) -> Sequence[Finding]:
    """Try each thing that machines need, up to the first that fails."""
    library = Library()
    findings: list[Finding] = []
    for name, attempt in (
        ("package", lambda: _package(library)),
        ("KVM", _kvm),
        ("machine", lambda: _boot(library)),
        ("image", lambda: _image(library, config)),
    ):
        findings.append(await _finding(name, attempt))
        if not findings[-1].ok:
            break
    return findings


async def _finding(name: str, attempt: Callable[[], Awaitable[str]]) -> Finding:
    try:
        return Finding(name, True, await attempt())
    except VersRlmError as error:
        return Finding(name, False, str(error))


async def _package(library: Library) -> str:
    return f"microsandbox {library.package.version()} is installed"


async def _kvm() -> str:
    if sys.platform != "linux":
        return "not needed here"
    if not os.access(KVM, os.F_OK):
        raise BackendUnavailable(f"{KVM} is missing: enable virtualization in the firmware.")
    if not os.access(KVM, os.R_OK | os.W_OK):
        raise BackendUnavailable(
            f"This user may not open {KVM}: sudo usermod -aG kvm $USER, and log in again."
        )
    return f"{KVM} may be opened"


async def _boot(library: Library) -> str:
    name = new_name()
    with tempfile.TemporaryDirectory() as root:
        try:
            with anyio.fail_after(BOOT_SECONDS):
                await library.boot(name, root)
        except TimeoutError:
            raise BackendUnavailable(f"it did not boot within {BOOT_SECONDS:g} s") from None
        finally:
            with anyio.move_on_after(CLEAN_SECONDS, shield=True):
                await library.destroy(name)
    return "a machine boots"


async def _image(library: Library, config: MicrosandboxConfig) -> str:
    return f"{await ensure_image(library, config.image)} is at hand"


async def _main() -> None:
    library = Library()
    await _kvm()
    await _boot(library)


if __name__ == "__main__":
    try:
        anyio.run(_main)
    except VersRlmError as error:
        sys.exit(str(error))
