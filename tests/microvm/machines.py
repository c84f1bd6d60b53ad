"""Machines of microsandbox as tests open them: as large, and of the image, that settings say.

As a program, it fetches the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from vers_rlm_mcp.machines.microsandbox import MicrosandboxBackend, MicrosandboxConfig
from vers_rlm_mcp.machines.microsandbox.images import ensure_image
from vers_rlm_mcp.machines.microsandbox.library import Library
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def open_microsandbox(directory: Path) -> MicrosandboxBackend:
    """A backend over a state directory."""
    settings = Settings.model_validate({})
    config = MicrosandboxConfig(
        image=settings.image,
        vcpu_count=settings.vcpu_count,
        mem_size_mib=settings.mem_size_mib,
        fs_size_mib=settings.fs_size_mib,
    )
    return MicrosandboxBackend(directory, config)


if __name__ == "__main__":
    # Done once for all tests: the emulated computer takes minutes to load an image.
    print(anyio.run(ensure_image, Library(), Settings.model_validate({}).image))
