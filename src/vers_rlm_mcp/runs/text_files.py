"""Reads host files that are the values of text inputs, whatever encoding says what they are.

UTF-8 is taken as it is; a byte order mark says beyond doubt what else a text is. Everything else is
refused before anything is spent, with what it seems to be and what to do.
"""

from __future__ import annotations

import codecs
import os
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from vers_rlm_mcp.errors import InputError

if TYPE_CHECKING:
    from contextlib import ExitStack

CHUNK: Final = 1 << 20
HEAD: Final = 4096
"""Bytes by which a file's kind is recognised."""

MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, with whose mark it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks (Unicode, chapter 23.8) and the encodings they stand for."""

KINDS: Final = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a zip archive (or an Office document)"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"PAR1", "a parquet table"),
    (b"ARROW1", "an Arrow table"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "RIFF data (an image, sound or film)"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"\x7fELF", "a program"),
)
"""How files begin that people have beside texts."""

NULS: Final = 0.2
"""The part of a text's bytes that are NUL in UTF-16 of a European language, and in no other."""


def open_text(name: str, path: Path, stack: ExitStack) -> Path:
    """The path of a file with this text in UTF-8: itself, or a temporary copy.

    Args:
        name: The input that it is the value of, for errors.
        path: The file, which its caller has opened.
        stack: Closes the copy.

    Raises:
        InputError: It is not a text, or its encoding is in doubt.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
        for mark, encoding in MARKS:
            if head.startswith(mark):
                file.seek(len(mark))
                return _transcode(name, file, encoding, stack)
        if kind := next((what for magic, what in KINDS if head.startswith(magic)), None):
            raise _refuse(name, f"{kind}, not text")
        if head.count(0) > NULS * len(head):
            raise _refuse(name, "binary data, or UTF-16 without a byte order mark")
        file.seek(0)
        _check_utf8(name, file)
    return path


def _check_utf8(name: str, file: IO[bytes]) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    while True:
        chunk = file.read(CHUNK)
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            place = done - pending + error.start
            byte = error.object[error.start]
            raise _refuse(
                name, f"not UTF-8 (byte 0x{byte:02x} at {place:,}), perhaps Latin-1 or Windows-1252"
            ) from None
        if not chunk:
            return
        done += len(chunk)


def _transcode(name: str, file: IO[bytes], encoding: str, stack: ExitStack) -> Path:
    copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while chunk := file.read(CHUNK):
            copy.write(decoder.decode(chunk).encode())
        copy.write(decoder.decode(b"", final=True).encode())
    except UnicodeError:
        raise _refuse(name, f"marked as {encoding}, but not valid as that") from None
    except OSError as error:
        directory = tempfile.gettempdir()
        raise InputError(
            f"The input {name!r} could not be converted to UTF-8 in {directory}: "
            f"{os.strerror(error.errno or 0)}. Make room there, or convert the file."
        ) from None
    copy.flush()
    return Path(f"/proc/self/fd/{copy.fileno()}")


def _refuse(name: str, what: str) -> InputError:
    return InputError(
        f"The file for input {name!r} is {what}. Convert it to UTF-8, or pass it in `files`, so "
        "that the model finds it below /workspace/files and reads it with Python."
    )
