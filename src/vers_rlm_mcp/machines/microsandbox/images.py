"""The image that machines start from: pulled into the library's store when first needed."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from .records import new_name

if TYPE_CHECKING:
    from .library import Library

logger = logging.getLogger(__name__)


async def ensure_image(library: Library, image: str) -> str:
    """Put an image into the store, if it is not there, and return its reference.

    Args:
        library: The owner of the store.
        image: A reference, or the path of a docker-archive.

    Raises:
        BackendUnavailable: The image cannot be obtained; the message says what to do.
    """
    archive = _archive(image)
    reference = _tag(archive) if archive else image
    if await library.has_image(reference):
        return reference
    logger.info("Fetching %s, from which machines start. This happens once.", image)
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
    """A tag for the image in this version of an archive."""
    info = archive.stat()
    what = f"{archive.resolve()} {info.st_size} {info.st_mtime_ns}"
    return f"vers-rlm/archive:{hashlib.sha256(what.encode()).hexdigest()[:16]}"
