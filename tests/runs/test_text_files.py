"""Text inputs from files: a text is taken, and what else there is told before a machine is made."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

import pytest
from lab import Turns, cell

from vers_rlm_mcp.errors import InputError
from vers_rlm_mcp.runs.text_files import CHUNK

if TYPE_CHECKING:
    from pathlib import Path

    from lab import Lab

TEXT = "naïve\r\n日本 🎉\0end"
READ = cell("FINAL(text)")


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    ],
    ids=["utf-8", "utf-8 with a mark", "utf-16-le", "utf-16-be", "utf-32-le"],
)
async def test_a_text_is_taken_in_every_encoding_that_says_what_it_is(
    lab: Lab, tmp_path: Path, data: bytes
):
    path = tmp_path / "text"
    path.write_bytes(data)
    result = await lab.run("text -> same", Turns(READ), files={"text": path})
    assert result.outputs == {"same": TEXT}


async def test_a_large_text_is_checked_across_its_pieces(lab: Lab, tmp_path: Path):
    path = tmp_path / "text"
    path.write_bytes(b"x" * (CHUNK - 1) + "é".encode() + b"y")
    count = cell("FINAL(len(text))")
    result = await lab.run("text -> n: int", Turns(count), files={"text": path})
    assert result.outputs == {"n": CHUNK + 1}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"%PDF-1.7\n", "is a PDF, not text"),
        (b"PK\x03\x04rest", "is a zip archive"),
        (b"\x1f\x8b\x08", "is gzip data"),
        (b"PAR1....PAR1", "is a parquet table"),
        (b"SQLite format 3\x00", "is an SQLite database"),
        (b"\x89PNG\r\n", "is a PNG image"),
        ("a,b\r\n1,2\r\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("caf\xe9 au lait".encode("latin-1"), "byte 0xe9 at 3"),
        (b"x" * CHUNK + b"\xff", "byte 0xff at 1,048,576"),
        (b"cut \xc3", "byte 0xc3 at 4"),
        (codecs.BOM_UTF16_LE + b"odd", "marked as utf-16-le, but not valid"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8x\x00", "marked as utf-16-le, but not valid"),
    ],
)
async def test_what_is_no_text_is_told_with_what_to_do_and_leaves_nothing(
    lab: Lab, tmp_path: Path, data: bytes, said: str
):
    path = tmp_path / "text"
    path.write_bytes(data)
    model = Turns(READ)
    with pytest.raises(InputError) as caught:
        await lab.run("text -> same", model, files={"text": path})
    assert said in str(caught.value)
    assert "pass it in `files`" in str(caught.value)
    assert model.asked == []
    assert lab.journal_ids() == []
    assert lab.events == []


async def test_a_file_that_is_no_input_is_taken_as_it_is(lab: Lab, tmp_path: Path):
    path = tmp_path / "paper.pdf"
    path.write_bytes(b"%PDF-\xff\xfe")
    code = cell("FINAL(exec('od -An -tx1 files/deep/paper.pdf').stdout)")
    result = await lab.run("-> data", Turns(code), files={"deep/paper.pdf": path})
    assert result.outputs == {"data": " 25 50 44 46 2d ff fe\n"}
