"""Runs in processes of their own, which are killed, with a model that counts what it is asked."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import anyio
from three_plans import CELL_SECONDS

import user_data
from models.servers import OpenAIServer, Reply
from vers_rlm_mcp import rlm
from vers_rlm_mcp.values import Message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from anyio.abc import Process
    from family import Family

    from models.servers import Request

COMMAND = str(Path(sys.executable).with_name("vers-rlm-mcp"))
MODEL = "openai:counted"
BUBBLEWRAP = {"VERS_RLM_BACKEND": "bubblewrap"}
KILL_POLL_SECONDS = 0.001
"""Between two looks at a journal: the next event may be written meanwhile, not many more."""

Stream = int | IO[bytes]

Point = dict[str, Any]
"""Fields of an event; None for one that it does not have."""


@dataclass
class Killed:
    """A run whose process is killed and started again; `home` holds all that it has."""

    home: Path
    server: OpenAIServer
    settings: Mapping[str, str]
    """What the environment of its processes says besides."""
    run_id: str = ""
    paid: dict[str, int] = field(default_factory=dict[str, int])
    """How often a request had been asked when the process was killed, its reply in the journal."""

    @property
    def asked(self) -> Counter[str]:
        """What the model was asked, by the fingerprint of the request."""
        return Counter(map(_fingerprint, self.server.requests))

    @property
    def paid_again(self) -> set[str]:
        """Requests that were asked again although their reply was in the journal."""
        return {request for request, count in self.paid.items() if self.asked[request] > count}

    def journal(self) -> list[dict[str, Any]]:
        """The events that are on disk in whole lines."""
        files = (self.home / "state" / "runs").glob("run-*/events.jsonl")
        lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    async def command(self, *arguments: str) -> str:
        """The output of a command that must succeed."""
        with anyio.fail_after(90):
            argv = [COMMAND, *arguments]
            done = await anyio.run_process(argv, env=self._environment, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    async def kill_at(self, point: Point, *arguments: str) -> None:
        """Start a command, and kill it when such an event is new in the journal."""
        before = len(self.journal())
        with (self.home / "log").open("ab") as log:
            process = await self.start(*arguments, stdout=log, stderr=log)
        try:
            with anyio.fail_after(90):
                while not any(_fits(point, event) for event in self.journal()[before:]):
                    assert process.returncode is None, (point, (self.home / "log").read_text())
                    await anyio.sleep(KILL_POLL_SECONDS)
        finally:
            with suppress(ProcessLookupError):  # it ended before what it was to be killed at
                process.kill()
            await process.aclose()
        self.note_paid()

    async def start(self, *arguments: str, stdout: Stream, stderr: Stream) -> Process:
        """Start a command."""
        return await anyio.open_process(
            [COMMAND, *arguments], env=self._environment, stdout=stdout, stderr=stderr
        )

    def note_paid(self) -> None:
        """Note the run's id, and what is answered in its journal: it must not be asked again."""
        (directory,) = (self.home / "state" / "runs").iterdir()
        self.run_id = directory.name
        asked = self.asked
        self.paid = {request: asked[request] for request in _answered(self.journal())} | self.paid

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_DATA_HOME": str(user_data.DIRECTORY),
            "VERS_RLM_STATE_DIR": str(self.home / "state"),
            **self.settings,
            "VERS_RLM_MODEL": MODEL,
            "VERS_RLM_CELL_TIMEOUT": str(CELL_SECONDS),
            "OPENAI_BASE_URL": self.server.url,
        }


@asynccontextmanager
async def killable(
    home: Path, model: Family, settings: Mapping[str, str] = BUBBLEWRAP
) -> AsyncGenerator[Killed]:
    """A place for one run, with a server that says what `model` says."""
    await anyio.Path(home).mkdir()

    def answer(request: Request) -> Reply:
        return Reply(model.reply(_messages(request)))

    async with OpenAIServer(answer) as server:
        yield Killed(home, server, settings)


def _messages(request: Request) -> Sequence[Message]:
    return [Message(each["role"], each["content"]) for each in request.body["messages"]]


def _fingerprint(request: Request) -> str:
    return rlm.fingerprint(_messages(request), MODEL)


def _fits(point: Point, event: dict[str, Any]) -> bool:
    return all(event.get(name) == value for name, value in point.items())


def _answered(events: Sequence[dict[str, Any]]) -> set[str]:
    """The requests whose replies are on record."""
    return {event["request"] for event in events if event["event"] == "model_replied"}
