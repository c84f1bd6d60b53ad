"""Opens the backend according to the settings. The microsandbox package is loaded only then."""

# ruff: noqa: D102, PLC0415

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import BackendFactory
from .config import MicrosandboxConfig
from .usable import forget, usable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.settings import Settings

    from ..base import Backend, Finding, Usable


class MicrosandboxFactory(BackendFactory):
    """The backend of the microsandbox package, selected if one of its machines boots here."""

    def usable(self, settings: Settings) -> Usable:
        return usable(settings.state_dir)

    def forget(self, settings: Settings) -> None:
        forget(settings.state_dir)

    def open(self, settings: Settings) -> Backend:
        from .backend import MicrosandboxBackend

        return MicrosandboxBackend(settings.state_dir, _config(settings))

    async def probe(self, settings: Settings) -> Sequence[Finding]:
        from .probe import probe

        return await probe(_config(settings))


def _config(settings: Settings) -> MicrosandboxConfig:
    return MicrosandboxConfig(
        image=settings.image,
        network=settings.network,
        network_domains=settings.network_domains,
        vcpu_count=settings.vcpu_count,
        mem_size_mib=settings.mem_size_mib,
        fs_size_mib=settings.fs_size_mib,
        max_seconds=settings.max_machine_seconds,
    )
