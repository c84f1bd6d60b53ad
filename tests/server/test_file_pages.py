"""A file read a page at a time."""

import base64
import json

from hypothesis import given, strategies as st

from vers_rlm_mcp.server.file_tools import Page, decode_page

ROOM = 10_000


def read(content: bytes, offset: int, length: int, room: int = ROOM) -> Page:
    """As the machine reads: a byte more than the page."""
    return decode_page(content[offset : offset + length + 1], offset, length, room)


def read_all(content: bytes, length: int, room: int) -> bytes:
    read_back, offset = b"", 0
    while True:
        page = read(content, offset, length, room)
        assert page.offset == offset
        if page.encoding == "base64":
            read_back += base64.b64decode(page.content)
        else:
            read_back += page.content.encode(page.encoding)
        offset += page.length
        if not page.has_more:
            return read_back
        assert page.length


@given(
    st.binary(max_size=60) | st.text(max_size=30).map(str.encode),
    st.integers(1, 20),
    st.integers(20, 60),
)
def test_following_the_pages_reads_every_byte_once(content: bytes, length: int, room: int):
    assert read_all(content, length, room) == content


def test_text_is_never_cut_within_a_character():
    text = "aé€😀".encode()
    assert read(text, 0, 7) == Page("aé€", "utf-8", 0, 6, True)
    tail = decode_page(text[2:], 2, 100, ROOM, from_end=True)
    assert tail == Page("€😀", "utf-8", 3, 7, False)
    assert read(text, 2, 100).encoding == "base64"  # no byte is lost, and none misread


def test_what_is_no_text_is_base64_and_old_texts_are_read_as_such():
    for content, shown, encoding in [
        (b"\xff\x00\xfe", "/wD+", "base64"),
        (b"x\0y", "eAB5", "base64"),
        ("café über".encode("latin-1"), "café über", "latin-1"),
        ("“café”".encode("cp1252"), "“café”", "cp1252"),
        (b"caf\xe9 \x81", "Y2Fm6SCB", "base64"),
        (b"", "", "utf-8"),
    ]:
        page = read(content, 0, 100)
        assert (page.content, page.encoding, page.has_more) == (shown, encoding, False)


def test_a_page_ends_where_its_json_would_be_longer_than_its_reader_shows():
    for content in (b"\n" * 500, "é".encode() * 500, b'"' * 500, b"\xff\0" * 500):
        page = read(content, 0, 1000, room=100)
        assert page.has_more
        assert len(json.dumps(page.content, ensure_ascii=False)) <= 110
