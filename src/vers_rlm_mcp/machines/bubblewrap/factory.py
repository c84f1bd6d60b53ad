"""Opens the backend as the settings say."""

# ruff: noqa: D102, ARG002

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import BackendFactory, Usable
from .backend import BubblewrapBackend
from .config import BubblewrapConfig
from .probe import probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.settings import Settings

    from ..base import Finding


class BubblewrapFactory(BackendFactory):
    """The fallback backend: most Linux computers have what it needs."""

    def usable(self, settings: Settings) -> Usable:
        return Usable(True, "")

    def open(self, settings: Settings) -> BubblewrapBackend:
        return BubblewrapBackend(settings.state_dir, _config(settings))

    async def probe(self, settings: Settings) -> Sequence[Finding]:
        return await probe(settings.state_dir, _config(settings))


def _config(settings: Settings) -> BubblewrapConfig:
    return BubblewrapConfig(
        base=settings.base,
        network=settings.network,
        vcpu_count=settings.vcpu_count,
        mem_size_mib=settings.mem_size_mib,
        fs_size_mib=settings.fs_size_mib,
        max_processes=settings.max_processes,
    )
