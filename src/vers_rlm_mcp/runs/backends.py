"""Which backend the settings choose, and how it is opened and examined."""

# ruff: noqa: PLC0415 - a backend is imported when it is chosen: what it needs may be missing, or slow to load

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vers_rlm_mcp.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.machines import Backend, Finding
    from vers_rlm_mcp.machines.bubblewrap import BubblewrapConfig
    from vers_rlm_mcp.machines.microsandbox import MicrosandboxConfig
    from vers_rlm_mcp.machines.vers import VersConfig
    from vers_rlm_mcp.settings import Settings

KEY_PLACES = "VERS_API_KEY, ~/.vers/keys.json, ~/.vers/config.json or ~/.versrc"


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and why it is this one."""

    name: Literal["vers", "microsandbox", "bubblewrap"]
    reason: str


def choose_backend(settings: Settings) -> Choice:
    """The backend that the settings choose.

    With `auto`, where microsandbox is installed, the first call after a boot of this computer
    boots a machine: it takes a second or so, and is remembered.
    """
    if settings.backend != "auto":
        return Choice(settings.backend, "it was asked for")
    from vers_rlm_mcp.machines.vers import find_key

    if key := find_key(os.environ, Path.home()):
        return Choice("vers", f"there is a key of Vers in {key.source}")
    from vers_rlm_mcp.machines.microsandbox import usable

    found = usable(settings.state_dir)
    reason = f"there is no key of Vers, and {found.reason}"
    return Choice("microsandbox" if found.yes else "bubblewrap", reason)


def open_backend(settings: Settings) -> Backend:
    """The chosen backend. Raises `BackendUnavailable`, or `SettingsError`."""
    name = choose_backend(settings).name
    if name == "vers":
        from vers_rlm_mcp.machines.vers import VersBackend

        return VersBackend(_vers(settings))
    _make_state_dir(settings)
    if name == "microsandbox":
        from vers_rlm_mcp.machines.microsandbox import MicrosandboxBackend

        return MicrosandboxBackend(settings.state_dir, _microsandbox(settings))
    from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend

    return BubblewrapBackend(settings.state_dir, _bubblewrap(settings))


def _make_state_dir(settings: Settings) -> None:
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BackendUnavailable(
            f"The state directory {settings.state_dir} cannot be made: {error.strerror}. "
            "Set VERS_RLM_STATE_DIR to one that you may write to."
        ) from error


async def examine_backend(settings: Settings) -> Sequence[Finding]:
    """What the chosen backend needs, found out by trying; ends at the first that fails.

    On Vers nothing is made, which would cost money; elsewhere a machine is, and removed again.
    """
    name = choose_backend(settings).name
    if name == "vers":
        from vers_rlm_mcp.machines import vers

        return await vers.probe(_vers(settings))
    if name == "microsandbox":
        from vers_rlm_mcp.machines import microsandbox

        return await microsandbox.probe(_microsandbox(settings))
    from vers_rlm_mcp.machines import bubblewrap

    return await bubblewrap.probe(settings.state_dir, _bubblewrap(settings))


def _vers(settings: Settings) -> VersConfig:
    from vers_rlm_mcp.machines.vers import VersConfig, find_key, find_url

    key = find_key(os.environ, Path.home())
    if key is None:
        raise BackendUnavailable(
            f"There is no key of Vers: put one into {KEY_PLACES}; https://vers.sh makes them."
        )
    return VersConfig(
        key=key,
        url=find_url(os.environ),
        ssh_domain=settings.vers_ssh_domain,
        ssh_address=settings.vers_ssh_address,
        ca_file=settings.vers_ca_file,
        insecure=settings.vers_insecure,
        fidelity=settings.vers_fidelity,
        vcpu_count=settings.vcpu_count,
        mem_size_mib=settings.mem_size_mib,
        fs_size_mib=settings.fs_size_mib,
    )


def _microsandbox(settings: Settings) -> MicrosandboxConfig:
    from vers_rlm_mcp.machines.microsandbox import MicrosandboxConfig

    return MicrosandboxConfig(
        image=settings.image,
        network=settings.network,
        network_domains=settings.network_domains,
        vcpu_count=settings.vcpu_count,
        mem_size_mib=settings.mem_size_mib,
        fs_size_mib=settings.fs_size_mib,
        max_seconds=settings.max_machine_seconds,
    )


def _bubblewrap(settings: Settings) -> BubblewrapConfig:
    from vers_rlm_mcp.machines.bubblewrap import BubblewrapConfig

    return BubblewrapConfig(
        base=settings.base,
        network=settings.network,
        vcpu_count=settings.vcpu_count,
        mem_size_mib=settings.mem_size_mib,
        fs_size_mib=settings.fs_size_mib,
        max_processes=settings.max_processes,
    )
