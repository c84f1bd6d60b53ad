"""The base of a machine, by the name that is recorded with the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import images
from .identity import FIRST_ID
from .rootfs import PYTHON, Rootfs, directory_rootfs, host_rootfs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .cache import Cache
    from .config import Network

HOST_BASE: Final = "host"
"""The name of the host's own system; any other is the path of a directory or archive."""

USUAL_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Base:
    """What a machine starts from."""

    rootfs: Rootfs
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Environment variables of its programs."""


def open_base(cache: Cache, name: str, wanted: Network, *, mapped: bool) -> Base:
    """Prepare a base, or reuse a prepared one. Raises OSError or SettingsError."""
    if name == HOST_BASE:
        return Base(host_rootfs(cache, wanted, mapped=mapped))
    place = Path(name)
    if place.is_dir():
        root = directory_rootfs(cache, place, wanted, mapped=mapped)
        return Base(root, _environment(root, {}))
    image = images.unpack(place, cache, FIRST_ID if mapped else None)
    root = directory_rootfs(cache, image.root, wanted, mapped=mapped, shifted=True)
    return Base(root, _environment(root, image.environment))


def _environment(root: Rootfs, given: Mapping[str, str]) -> Mapping[str, str]:
    path = given.get("PATH", USUAL_PATH)
    shown = [f"{target}/bin" for target in root.binds.values() if target == PYTHON]
    return {**given, "PATH": ":".join([path, *shown])}
