"""Bytes and names that are no text pass unchanged, and nothing in a name is ever run."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from users import User

NAMES = [
    "two words",
    "'single' and \"double\"",
    "$(touch executed) `touch executed` ${HOME}",
    "; touch executed #",
    "new\nline\ttab\r",
    "-rf",
    "*?[a]",
    "żółć 文件 😀",
    "back\\slash\\n",
    "x" * 255,
]
EVERY_BYTE = bytes(range(256)) * 257


@pytest.mark.parametrize("name", NAMES)
async def test_a_file_can_have_any_name(user: User, name: str):
    path = f"/workspace/odd/{name}"
    content = base64.b64encode(EVERY_BYTE).decode()
    await user.call("writeFile", path=path, content=content, encoding="base64")
    data, offset = b"", 0
    while offset is not None:
        page = await user.call("readFile", path=path, offset=offset, length=30_001)
        data += base64.b64decode(page["content"])
        offset = page.get("next_offset")
    assert data == EVERY_BYTE
    code = f"print(len(readFile({path!r}, binary=True)), exec('ls -a odd . | grep -cx executed'))"
    assert (await user.call("python", code=code))["output"].startswith(f"{len(EVERY_BYTE)} 0")


async def test_host_files_can_have_any_name(user: User):
    for name in NAMES:
        (user.allowed / name).write_bytes(name.encode() + EVERY_BYTE)
    files = [str(user.allowed / name) for name in NAMES]
    code = "FINAL({name: sha256(open('files/' + name, 'rb').read()).hexdigest() for name in names})"
    result = await user.run(
        f"import os\nfrom hashlib import sha256\nnames = os.listdir('files')\n{code}", files=files
    )
    digests = {name: hashlib.sha256(name.encode() + EVERY_BYTE).hexdigest() for name in NAMES}
    assert result["outputs"] == {"answer": digests}


async def test_a_machine_can_have_files_whose_names_are_no_text(user: User):
    code = """
import os
name = os.fsdecode(b"/workspace/\\xff\\xfe name")
writeFile(name, bytes(range(256)))
print(name, [name])
assert readFile(name, binary=True) == bytes(range(256))
branch = vmBranch()
vmSwitch(branch)
writeFile(name, b"\\xfe")
assert readFile(name, binary=True) == b"\\xfe"
(found,) = [name for name in os.listdir() if name.endswith(" name")]
FINAL([exec("ls -b").stdout, os.fsencode(found).hex()])
"""
    result = await user.run(code)
    assert result["outputs"] == {"answer": ["\\377\\376\\ name\n", b"\xff\xfe name".hex()]}


async def test_command_output_that_is_no_text_is_shown_and_does_no_harm(user: User):
    result = await user.call("exec", command=r"printf '\377\376\000\033[2J text'")
    assert result["stdout"].endswith(" text")


async def test_an_input_passes_to_the_machine_unchanged(user: User):
    text = "".join(chr(code) for code in range(1, 0x2000)) + "\r\n\u2028\0'''\"\"\"\\"
    digest = hashlib.sha256(text.encode()).hexdigest()
    result = await user.run(
        "import hashlib\nFINAL(hashlib.sha256(text.encode()).hexdigest())",
        signature="text -> answer",
        inputs={"text": text},
    )
    assert result["outputs"] == {"answer": digest}


async def test_a_binary_file_as_a_text_input_is_refused_or_read_with_a_word_about_it(user: User):
    host = user.allowed / "binary"
    host.write_bytes(EVERY_BYTE)
    user.write_script("FINAL(str(len(log)))")
    result = await user.tool("vers_rlm", signature="log -> answer", files={"log": str(host)})
    host.unlink()
    assert result.is_error
    assert "'log'" in str(result.content)
    assert "utf-8" in str(result.content).lower()
    assert await user.call("vmList")
