"""Files that a run hands over, kept beside its journal and copied to where the user wants them.

Their names come from a machine and are hostile: they become relative paths that are safe on every
system, and each file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import unicodedata
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from vers_rlm_mcp.errors import PathRefused

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

PART_BYTES: Final = 120
"""Bytes of the name of a directory or file: every file system takes more."""

MOST_PARTS: Final = 16
"""Directories and the name, together."""

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"\\|?*\ud800-\udfff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def safe_names(names: Iterable[str]) -> dict[str, str]:
    """A name for each of these relative paths that every system can hold, no two alike.

    Names that differ only in case or in their Unicode form get a number.
    """
    given: dict[str, str] = {}
    files: set[str] = set()
    directories: set[str] = set()
    for name in names:
        parts = [_safe_part(part) for part in name.split("/") if part not in ("", ".", "..")]
        *parents, last = parts[-MOST_PARTS:] or ["file"]
        stem, suffix = os.path.splitext(last)  # noqa: PTH122 - a name, not a path
        number = 1
        # No file may have the name of another one, or of another one's directory.
        while True:
            above = {_folded("/".join(parents[:depth])) for depth in range(1, len(parents) + 1)}
            safe = "/".join([*parents, last])
            if _folded(safe) not in files | directories and not above & files:
                break
            number += 1
            if above & files:
                parents[0] = f"{parents[0]}-{number}"
            else:
                last = f"{stem}-{number}{suffix}"
        files.add(_folded(safe))
        directories |= above
        given[name] = safe
    return given


def _safe_part(part: str) -> str:
    text = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", part)).rstrip(". ").lstrip(" ")
    if not text or _RESERVED.fullmatch(text):
        text = f"_{text}"
    data = text.encode()
    if len(data) > PART_BYTES:
        digest = hashlib.sha256(data).hexdigest()[:8]
        end = os.path.splitext(text)[1].encode()[:16]  # noqa: PTH122 - a name, not a path
        cut = data[: PART_BYTES - len(end) - 9].decode(errors="ignore")
        text = f"{cut}-{digest}{end.decode(errors='ignore')}"
    return text


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


@contextmanager
def written_whole(target: Path, *, private: bool = False) -> Generator[IO[bytes]]:
    """A new file that takes the place of `target` if the block ends well, and else disappears.

    Its mode is read and write: for its owner alone if it is `private`, else as the umask has it.
    """
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".vers-rlm-")
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            yield file
        if not private:  # as it was made
            mask = os.umask(0o077)
            os.umask(mask)
            Path(name).chmod(0o666 & ~mask)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def copy_out(source: Path, directory: Path, name: str, *, replace: bool = False) -> Path:
    """Copy a kept file into a directory of the user, and return its path.

    Raises:
        PathRefused: It is there already, a link would lead elsewhere, or it cannot be written.
    """
    target = directory / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        root = directory.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.parent.resolve().is_relative_to(root):
            raise PathRefused(f"{target} leads out of {directory}: a part of it is a link.")
        if not replace and os.path.lexists(target):
            raise PathRefused(f"{target} exists; --force replaces it.")
        with written_whole(target) as copy, source.open("rb") as file:
            shutil.copyfileobj(file, copy)
    except OSError as error:
        raise PathRefused(f"{target} cannot be written: {error.strerror}.") from None
    return target
