"""A machine that boots and then does not answer is an error of ours, and nothing of it is left."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.errors import MachineError
from vers_rlm_mcp.machines.microsandbox import MicrosandboxBackend, MicrosandboxConfig, backend

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = "an/image:1"

PACKAGE = f'''
import asyncio
from types import SimpleNamespace as Space

class MicrosandboxError(Exception):
    code = "microsandbox-error"

class NotFound(MicrosandboxError):
    code = "sandbox-not-found"

there = set()

class Image:
    @staticmethod
    def oci(image, root_disk):
        return image

    @staticmethod
    async def list():
        return [Space(reference="{IMAGE}")]

class Machine:
    status = "running"

    def __init__(self, name):
        self.name = name

    async def detach(self):
        pass

    async def connect(self):
        return self

    async def exec_stream(self, *_, **__):
        ANSWER

    async def destroy(self, force):
        there.remove(self.name)

class Sandbox:
    @staticmethod
    async def create(name, **_):
        there.add(name)
        return Machine(name)

    @staticmethod
    async def get(name):
        if name not in there:
            raise NotFound(name)
        return Machine(name)

async def prune():
    pass

PullPolicy = Space(NEVER=0)
Storage = Space(prune=prune)
Network = Space(none=lambda: None)
Stdin = Space(pipe=lambda: None)
'''
"""As much of the package as it takes to make a machine."""


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("raise MicrosandboxError('the guest is gone')", "the guest is gone"),
        ("await asyncio.Event().wait()", "did not answer within"),
    ],
    ids=["refusing", "silent"],
)
async def test_a_machine_that_does_not_answer_is_an_error_and_is_removed(
    answer: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "microsandbox.py").write_text(PACKAGE.replace("ANSWER", answer))
    monkeypatch.delitem(sys.modules, "microsandbox", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(backend, "RENEW_SECONDS", 0.1)
    async with MicrosandboxBackend(tmp_path, MicrosandboxConfig(image=IMAGE)) as opened:
        with pytest.raises(MachineError, match=words):
            await opened.create()
    assert sys.modules.pop("microsandbox").there == set()
    assert list((tmp_path / "microsandbox" / "machines").iterdir()) == []
