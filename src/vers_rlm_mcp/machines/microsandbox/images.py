"""The image that machines start from: brought into the library's store when first needed."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from .records import new_name

if TYPE_CHECKING:
    from .library import Library

logger = logging.getLogger(__name__)


async def image_at_hand(library: Library, image: str) -> str:
    """The reference of an image that is there.

    Args:
        library: Whose store it is.
        image: A reference, or the path of a docker-archive.

    Raises:
        BackendUnavailable: It cannot be had; the message says how else.
    """
    archive = _archive(image)
    reference = _tag(archive) if archive else image
    if await library.has_image(reference):
        return reference
    logger.info("Machines start from %s, which is fetched now, once.", image)
    if archive:
        await library.load_image(str(archive), reference)
    else:
        async for line in library.pull_image(reference, new_name()):
            logger.info("%s: %s", reference, line)
    return reference


def _archive(image: str) -> Path | None:
    path = Path(image).expanduser()
    return path if path.is_file() else None


def _tag(archive: Path) -> str:
    """A name for the image in this very archive."""
    info = archive.stat()
    what = f"{archive.resolve()} {info.st_size} {info.st_mtime_ns}"
    return f"vers-rlm/archive:{hashlib.sha256(what.encode()).hexdigest()[:16]}"
