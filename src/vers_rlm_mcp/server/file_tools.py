# ruff: noqa: D101, N803, PLC0415 - the fields of an answer are explained by its tool; a tool's
# parameters are named as the client sends them; the rooms below are imported by the first call
"""Tools that read and change files in a machine."""

import base64
import binascii
import codecs
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

from mcp.server.mcpserver import Context
from pydantic import Field

from vers_rlm_mcp.errors import InputError, PathRefused

from .application import application
from .bounds import prefix
from .command_tools import OVERHEAD_CHARS, VmId, join_parts
from .known_clients import META_MAX, client_of
from .schemas import IN_WORDS
from .toolset import READS, REPLACES, Answer, Toolset

if TYPE_CHECKING:
    from vers_rlm_mcp.runs import Workbench

READ_BYTES = 16_384
"""Bytes of a file in an answer, unless asked for otherwise: some 4,000 tokens."""

READ_MAX = 262_144
"""Most bytes of a file in one answer."""

READ_CHARS = 400_000
"""Characters of an answer of `readFile`, to clients that show as many if a tool asks for it."""

META = {META_MAX: READ_CHARS}

EDIT_BYTES = 16 << 20
"""Bytes of a file that can be edited in place."""

ENTRIES = 1_000
"""Entries of a directory that are listed."""

SHELL_SECONDS = 30.0
"""For looking at a file: milliseconds, unless the machine is busy."""

LISTING_BYTES = 200_000

LINE_CHARS = 200

CONTINUATION = range(0x80, 0xC0)
"""Bytes that only continue a character of UTF-8."""

MAX_CONTINUATION = 3

BINARY = {*range(32), 127} - {ord(each) for each in "\t\n\r\f\x1b"}
"""Bytes that a text in Latin-1 does not contain."""

C1 = range(0x80, 0xA0)
"""Bytes that are characters on Windows, and control characters in Latin-1."""

UNDEFINED = {0x81, 0x8D, 0x8F, 0x90, 0x9D}
"""Those that are none on Windows either."""

URL_SAFE = str.maketrans("-_", "+/")

Encoding = Literal["utf-8", "latin-1", "base64"]

TOOLS = Toolset()


class FileFields(TypedDict):
    vm_id: str
    path: str
    content: str
    encoding: str
    offset: int
    length: int
    size: int | None
    """None if it cannot be told, as where there is no shell."""
    next_offset: int | None


@TOOLS.tool(
    "readFile",
    "Read a file",
    READS,
    {"path": "/workspace/notes.txt"},
    meta=META,
)
async def read_file(
    context: Context,
    path: str,
    vmId: VmId = None,
    offset: Annotated[int, Field(description="Byte; negative: from the end. Default 0")] = 0,
    length: Annotated[
        int, Field(ge=1, le=READ_MAX, description="Bytes. Default 16384, max 262144"), IN_WORDS
    ] = READ_BYTES,
) -> Answer[FileFields]:
    """Read a file in the VM, a page at a time, or list a directory; binary comes as base64."""
    from vers_rlm_mcp.machines import resolve_path

    bench, machine_id = await application(context).target(vmId)
    client = client_of(context).with_tool(META)
    room = client.room // 2 - OVERHEAD_CHARS
    path = resolve_path(path)
    kind, size = await _look(bench, machine_id, path)
    if kind == "directory":
        data = await _list(bench, machine_id, path)
        size = len(data)
        start = offset if offset >= 0 else max(0, size + offset)
        data = data[start : start + length + 1]
    else:
        start = offset if offset >= 0 or size is None else max(0, size + offset)
        data = await bench.read_file(path, machine_id=machine_id, offset=start, length=length + 1)
    page = decode_page(data, start, length, room, client.measure, from_end=offset < 0)
    return _describe(machine_id, path, page, size, is_directory=kind == "directory")


async def _look(bench: "Workbench", machine_id: str, path: str) -> tuple[str, int | None]:
    """What a path leads to, and its size; ("", None) if that cannot be told."""
    result = await _shell(bench, machine_id, f"stat -L -c '%s %F' -- {shlex.quote(path)}")
    size, _, kind = result.decode(errors="replace").strip().partition(" ")
    return (kind, int(size)) if size.isdecimal() else ("", None)


async def _list(bench: "Workbench", machine_id: str, path: str) -> bytes:
    listing = await _shell(bench, machine_id, f"LC_ALL=C ls -lAp -- {shlex.quote(path)}")
    return b"\n".join(listing.splitlines()[1 : ENTRIES + 1])  # without the total


async def _shell(bench: "Workbench", machine_id: str, command: str) -> bytes:
    try:
        result = await bench.exec(
            command, machine_id=machine_id, timeout=SHELL_SECONDS, limit=LISTING_BYTES
        )
    except PathRefused:  # it has no shell
        return b""
    return result.stdout.data


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a file."""

    content: str
    encoding: str
    offset: int
    length: int
    """Bytes of the file that it stands for."""
    has_more: bool


def decode_page(
    data: bytes,
    offset: int,
    length: int,
    room: int,
    measure: Callable[[str], int] = len,
    *,
    from_end: bool = False,
) -> Page:
    """A page of a file, from `data`, which holds a byte more than the page if there is more.

    A character that the page's end would split is left to the next page.

    Args:
        data: The bytes from `offset` on.
        offset: Where they are in the file.
        length: The bytes of the page.
        room: The size that its content may have as JSON.
        measure: Measures that.
        from_end: Whether the page is the file's tail: a character that its beginning splits is
            left out.
    """
    split = _leading_continuation(data) if offset else 0
    cut = split if from_end else 0
    offset, data, length = offset + cut, data[cut:], max(1, length - cut)
    page, is_last = data[:length], len(data) <= length
    text = _decode(page, is_last=is_last)
    if text is not None:
        content, encoding = prefix(text, room, measure), "utf-8"
        taken = len(content.encode())
    elif split == cut and (encoding := _old_encoding(page)):
        content = prefix(page.decode(encoding), room, measure)
        taken = len(content)
    else:
        taken = min(len(page), room * 3 // 4)
        content, encoding = base64.b64encode(page[:taken]).decode(), "base64"
    return Page(content, encoding, offset, taken, taken < len(data))


def _leading_continuation(data: bytes) -> int:
    """The bytes of a character of UTF-8 that began before; 0 if it was none of UTF-8."""
    cut = next((n for n, byte in enumerate(data) if byte not in CONTINUATION), 0)
    if not 0 < cut <= MAX_CONTINUATION:
        return 0
    return cut if _decode(data[cut:], is_last=False) else 0


def _decode(page: bytes, *, is_last: bool) -> str | None:
    """A page of text; None if it is not UTF-8, or binary."""
    if b"\0" in page:
        return None
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(page, final=is_last)
    except UnicodeDecodeError:
        return None
    return text if text or not page else None


def _old_encoding(page: bytes) -> str:
    """The encoding of a text with one byte for each character; "" if it is no text."""
    if any(byte in BINARY for byte in page):
        return ""
    if not any(byte in C1 for byte in page):
        return "latin-1"
    return "" if any(byte in UNDEFINED for byte in page) else "cp1252"


def _describe(
    machine_id: str, path: str, page: Page, size: int | None, *, is_directory: bool
) -> Answer[FileFields]:
    end = page.offset + page.length
    if page.length and not page.has_more:
        size = end
    elif size is not None and page.length and size <= end:  # it has grown, or is in /proc
        size = None
    following = end if page.has_more and end != 0 else None
    fields: FileFields = {
        "vm_id": machine_id,
        "path": path,
        "content": page.content,
        "encoding": page.encoding,
        "offset": page.offset,
        "length": page.length,
        "size": size,
        "next_offset": following,
    }
    what = f"{'directory ' if is_directory else ''}{path} in VM {machine_id}"
    if page.length:
        total = f"{size:,}" if size is not None else "more"
        where = f"bytes {page.offset:,} to {end:,} of {total}"
        encoding = "" if page.encoding == "utf-8" else f", as {page.encoding}"
        more = f"; there is more: continue with offset {following}" if following else ""
        remark = f"[{what}: {where}{encoding}{more}]"
    elif page.offset:
        at = f", at {size:,} bytes" if size is not None else ""
        remark = f"[{what}: offset {page.offset:,} is at or beyond its end{at}]"
    else:
        remark = f"[{what}: empty]"
    return Answer(fields, join_parts([page.content, remark]))


class Written(TypedDict):
    vm_id: str
    path: str
    size: int


@TOOLS.tool(
    "writeFile", "Write a file", REPLACES, {"path": "/workspace/notes.txt", "content": "Hello"}
)
async def write_file(
    context: Context,
    path: str,
    content: str,
    vmId: VmId = None,
    encoding: Encoding = "utf-8",
) -> Answer[Written]:
    """Write a file in the VM, replacing it if it exists; directories are made.

    Relative and ~ paths start in /workspace, here and everywhere.
    """
    from vers_rlm_mcp.machines import resolve_path

    app = application(context)
    bench, machine_id = await app.target(vmId)
    path, data = resolve_path(path), _encode(content, encoding)
    async with app.turn(f"{machine_id}:{path}"):
        size = await bench.write_file(path, data, machine_id=machine_id)
    text = f"Wrote {size:,} bytes to {path} in VM {machine_id}"
    return Answer({"vm_id": machine_id, "path": path, "size": size}, text)


def _encode(content: str, encoding: Encoding) -> bytes:
    if encoding == "base64":
        return _from_base64(content)
    try:
        return content.encode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    except UnicodeEncodeError as error:
        character = content[error.start]
        raise InputError(
            f"{encoding} has no {character!r}; nothing was written. Use utf-8."
        ) from error


def _from_base64(content: str) -> bytes:
    # Also in lines, for URLs, and without padding.
    plain = "".join(content.split()).rstrip("=").translate(URL_SAFE)
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"The content is not base64: {error}. Nothing was written.") from error


class EditedFields(Written):
    replaced: int


@TOOLS.tool(
    "editFile",
    "Edit a file",
    REPLACES,
    {"path": "/workspace/app.py", "old": "x = 1", "new": "x = 2"},
)
async def edit_file(
    context: Context,
    path: str,
    old: str,
    new: str,
    vmId: VmId = None,
    all: Annotated[  # noqa: A002 - as clients send it
        bool, Field(description="Every place. Default false: it must be the only one")
    ] = False,
) -> Answer[EditedFields]:
    """Replace exact text in a file in the VM, and tell how often."""
    from vers_rlm_mcp.machines import resolve_path

    app = application(context)
    bench, machine_id = await app.target(vmId)
    path = resolve_path(path)
    async with app.turn(f"{machine_id}:{path}"):
        data = await bench.read_file(path, machine_id=machine_id, length=EDIT_BYTES + 1)
        if len(data) > EDIT_BYTES:
            raise InputError(f"{path} is larger than {EDIT_BYTES >> 20} MiB; edit it with exec.")
        edited, replaced = _replace(path, data, old, new, everywhere=all)
        size = await bench.write_file(path, edited, machine_id=machine_id)
    places = "1 place" if replaced == 1 else f"{replaced} places"
    text = f"Replaced {places} in {path} in VM {machine_id}, now {size:,} bytes"
    fields: EditedFields = {
        "vm_id": machine_id,
        "path": path,
        "size": size,
        "replaced": replaced,
    }
    return Answer(fields, text)


def _replace(path: str, data: bytes, old: str, new: str, *, everywhere: bool) -> tuple[bytes, int]:
    """The file with the text replaced, and in how many places."""
    if not old or old == new:
        raise InputError("`old` must be a text that is in the file, and `new` another.")
    was, becomes = (text.encode("utf-8", "surrogateescape") for text in (old, new))
    count = data.count(was)
    windows = was.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    if not count and data.count(windows):
        # The file has the line ends of Windows, which models do not see.
        was, becomes = windows, becomes.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        count = data.count(was)
    if not count:
        raise InputError(f"{path} does not contain `old`{_near(data, old)}. Nothing was changed.")
    if count > 1 and not everywhere:
        raise InputError(
            f"{path} contains `old` {count} times: give more of the text around it, or set `all`. "
            "Nothing was changed."
        )
    return data.replace(was, becomes), count


def _near(data: bytes, old: str) -> str:
    """Where the first line of a text is, if only the white space around it differs."""
    wanted = next((line.strip() for line in old.splitlines() if line.strip()), "")
    lines = data.decode(errors="replace").splitlines()
    near = [f"{n}: {line}" for n, line in enumerate(lines, 1) if wanted and line.strip() == wanted]
    if not near:
        return ""
    return f", though line {near[0][:LINE_CHARS]!r} looks like its first: compare white space"
