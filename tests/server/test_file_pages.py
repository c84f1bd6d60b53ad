"""A file read a page at a time."""

import base64

import pytest
from hypothesis import given, strategies as st

from vers_rlm_mcp.server.command_tools import page_of


def read(content: bytes, offset: int, length: int):
    """As the machine reads: a byte more than the page, a negative offset from the end."""
    start = max(0, len(content) + offset) if offset < 0 else offset
    return page_of("/f", content[start : start + length + 1], offset, length)


def read_all(content: bytes, length: int) -> bytes:
    read_back, offset = b"", 0
    while True:
        page = read(content, offset, length).fields
        text = page["content"]
        read_back += base64.b64decode(text) if page["encoding"] == "base64" else text.encode()
        if page["next_offset"] is None:
            return read_back
        assert page["next_offset"] > offset
        offset = page["next_offset"]


@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode), st.integers(1, 20))
def test_following_the_offsets_reads_every_byte_once(content: bytes, length: int):
    assert read_all(content, length) == content


def test_text_is_never_cut_within_a_character():
    page = read("aé€😀".encode(), 0, 7)
    assert (page.fields["content"], page.fields["encoding"], page.fields["next_offset"]) == (
        "aé€",
        "utf-8",
        6,
    )


def test_binary_is_said_to_be_base64():
    page = read(b"\xff\x00\xfe", 0, 100)
    assert (page.fields["content"], page.fields["encoding"], page.fields["next_offset"]) == (
        "/wD+",
        "base64",
        None,
    )
    assert "base64" in page.text


def test_the_tail_is_read_with_a_negative_offset_and_ends_there():
    page = read(b"0123456789", -4, 100)
    assert (page.fields["content"], page.fields["offset"], page.fields["next_offset"]) == (
        "6789",
        -4,
        None,
    )
    page = read(b"0123456789", -4, 3)
    assert (page.fields["content"], page.fields["next_offset"]) == ("678", -1)
    assert read(b"0123456789", -1, 3).fields["content"] == "9"


@pytest.mark.parametrize("offset", [0, 5])
def test_a_page_beyond_the_end_is_empty(offset: int):
    page = read(b"", offset, 10)
    assert (page.fields["content"], page.fields["next_offset"], page.text) == ("", None, "(empty)")


def test_the_text_alone_says_where_to_continue():
    assert "offset 3" in read(b"abcdef", 0, 3).text
