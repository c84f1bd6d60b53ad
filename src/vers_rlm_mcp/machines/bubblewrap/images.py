"""Unpacks a docker-archive (what `docker save` and `podman save` write) into a root directory.

An archive is a tar of a `manifest.json`, a configuration and layers, which are tars themselves, to
be applied in order (https://github.com/moby/docker-image-spec/blob/main/spec.md). Nothing is
written outside the root directory, whatever the archive says; device nodes are left out.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

from vers_rlm_mcp.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .cache import Cache

WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"

MAX_DOCUMENT: Final = 4 * 1024 * 1024
"""Bytes of an archive's JSON documents; real ones have a few thousand."""


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked image."""

    root: Path
    environment: Mapping[str, str]


def unpack(archive: Path, cache: Cache, first_id: int | None) -> Image:
    """Unpack an archive, or find what was unpacked before.

    Args:
        archive: The file.
        cache: Where unpacked images are kept.
        first_id: Added to the owners' ids. None makes us the owner of everything.

    Raises:
        SettingsError: The file is not a docker-archive, or is damaged.
    """
    try:
        with tarfile.open(archive) as tar:
            manifest = _document(tar, "manifest.json")[0]
            config = _document(tar, manifest["Config"])

            def make(root: Path) -> None:
                for name in manifest["Layers"]:
                    _apply(_member(tar, name), root, first_id)

            info = archive.stat()
            content = (json.dumps(manifest), info.st_size, info.st_mtime_ns)
            place = cache.provide("image", (str(archive), first_id), content, make)
    except (tarfile.TarError, OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{archive} cannot be used as a base: {error}. It must be a root directory, or an "
            "archive that `docker save` or `podman save` wrote."
        ) from error
    variables: list[str] = config.get("config", {}).get("Env") or []
    return Image(place, dict(item.split("=", 1) for item in variables if "=" in item))


def _document(tar: tarfile.TarFile, name: str) -> Any:
    return json.loads(_member(tar, name).read(MAX_DOCUMENT))


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    file = tar.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is not a file")
    return file


def _apply(layer: IO[bytes], root: Path, first_id: int | None) -> None:
    """Apply one layer on top of the previous ones."""
    with tarfile.open(fileobj=layer, mode="r:*") as tar:
        # Members are checked here, since Python's own filters need 3.11.4.
        tar.extraction_filter = lambda member, _: member
        for member in tar:
            place = _place(root, member.name)
            if place == root or member.isdev():
                continue
            if place.name.startswith(WHITEOUT):
                _white_out(root, place)
                continue
            if member.islnk():
                _require_inside(root, root / member.linkname)
            _remove_replaced(place, member)
            first = first_id or 0  # Owners have an effect only if we are root.
            member.name = str(place.relative_to(root))
            member.mode &= 0o7777
            member.uid += first
            member.gid += first
            tar.extract(member, root, numeric_owner=True)


def _place(root: Path, name: str) -> Path:
    """The path of an entry. Its directory is inside the root."""
    place = root / name.lstrip("/")
    if ".." in place.parts:
        raise ValueError(f"{name} leads out of the image")
    if place != root:
        _require_inside(root, place.parent)
    return place


def _require_inside(root: Path, path: Path) -> None:
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path.relative_to(root)} leads out of the image")


def _white_out(root: Path, mark: Path) -> None:
    """Remove what a layer's whiteout deletes."""
    if mark.name == OPAQUE:
        for entry in mark.parent.iterdir():
            _remove(entry)
    else:
        name = mark.name.removeprefix(WHITEOUT)
        _remove(_place(root, str(mark.relative_to(root).with_name(name))))


def _remove_replaced(place: Path, member: tarfile.TarInfo) -> None:
    """Remove what a layer replaces with an entry of another type."""
    if os.path.lexists(place) and not (
        member.isdir() and place.is_dir() and not place.is_symlink()
    ):
        _remove(place)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
