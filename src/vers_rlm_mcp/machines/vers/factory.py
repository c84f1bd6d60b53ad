"""Opens the backend according to the settings. The SSH and HTTP libraries are loaded only then."""

# ruff: noqa: D102, ARG002, PLC0415

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vers_rlm_mcp.errors import BackendUnavailable

from ..base import BackendFactory, Usable
from .config import VersConfig, find_key, find_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.settings import Settings

    from ..base import Backend, Finding

KEY_PLACES: Final = "VERS_API_KEY, ~/.vers/keys.json, ~/.vers/config.json or ~/.versrc"


class VersFactory(BackendFactory):
    """The backend of the Vers service, selected if there is a key for it."""

    costs_money = True

    def usable(self, settings: Settings) -> Usable:
        if key := find_key(os.environ, _home()):
            return Usable(True, f"there is a key of Vers in {key.source}")
        return Usable(False, "there is no key of Vers")

    def open(self, settings: Settings) -> Backend:
        from .backend import VersBackend

        return VersBackend(_config(settings))

    async def probe(self, settings: Settings) -> Sequence[Finding]:
        from .probe import probe

        return await probe(_config(settings))


def _home() -> Path:
    """The user's home; where there is none, a path below which there is nothing."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.devnull)


def _config(settings: Settings) -> VersConfig:
    key = find_key(os.environ, _home())
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
