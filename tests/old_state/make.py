"""Makes the frozen states. See README.md for how to run it with the version that is to be frozen.

Everything is done through the doors that users have: the command, and servers that MCP clients talk
to. What that version answers about its own state is frozen, too, for tests to hold ours against.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
from clouds import ENTRY, KERNEL, PROGRAMS, QUEUE, freeze
from doors import COMMAND, TOKEN, WAIT_SECONDS, Doors, call
from freezer import CLOUD, FACTS, HOME, pack, traces
from plays import HANGS, LONG, SIGNATURES, Stage, asked_by_cell

from models.servers import OpenAIServer
from vers_emulator import Options, VersEmulator, kernels

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from anyio.abc import Process

IMAGE: Final = "base.tar"
"""A docker-archive that one machine starts from."""

TELLING: Final = 5
"""Characters of a host's name that does not stand in any other word."""

POLL_SECONDS: Final = 0.005

CHANGES: Final = """
cd /workspace
mkdir -p tree/deep && echo deep > tree/deep/file && ln -s deep/file tree/link
echo twice > tree/one && ln tree/one tree/two && chmod 751 tree/one && touch -d @1000000000 tree/one
mkfifo tree/pipe
mkdir replaced && echo old > replaced/old
echo to be deleted > deleted
"""
"""Files that the first commit holds."""

LATER: Final = """
cd /workspace
rm deleted && rm -r replaced && mkdir replaced && echo new > replaced/new
echo appended >> tree/deep/file
"""
"""What was changed after it: a whiteout, an opaque directory, a copy-up."""

VARIABLES: Final = """
import threading
words = {'é': [1, 2.5, None], 'long': 'x' * 100_000}
lock = threading.Lock()
class Point:
    def __init__(self, x): self.x = x
point = Point(41)
def double(n): return 2 * n
"""


class Maker(Doors):
    """Makes one state directory below `home`; `settings` are what its processes get besides."""

    def __init__(self, home: Path, server: OpenAIServer, settings: Mapping[str, str]) -> None:
        super().__init__(home=home, model_url=server.url, settings=settings)
        self.facts: dict[str, Any] = {"machines": {}, "commits": {}, "runs": {}, "paid": {}}
        """Ids by what they are, and what was paid for in each run that was killed."""
        self._server = server

    async def run(self, play: str, *arguments: str) -> None:
        """Perform a play from the command line."""
        result = json.loads(await self.command(*_run(play), "--json", *arguments))
        self.facts["runs"][play] = result["run_id"]

    # What is made

    async def machines_by_hand(self) -> None:
        """Machines and commits as a client's own model makes them."""
        machines, commits = self.facts["machines"], self.facts["commits"]
        async with self.client() as client:
            vm = machines["fresh"] = (await call(client, "vmCreate", keepVM=True))["vm_id"]
            await call(client, "exec", command=CHANGES)
            await call(client, "writeFile", path="/workspace/text", content="text\n")
            await call(client, "python", code=VARIABLES)
            commits["first"] = (await call(client, "vmSnapshot"))["commit_id"]
            await call(client, "exec", command=LATER)
            await call(client, "python", code="later = point.x + 1")
            (machines["branched"],) = (await call(client, "vmBranch"))["vm_ids"]
            await call(client, "python", code="of_the_parent = 1; later = 0")
            restore = await call(client, "vmRestore", commitId=commits["first"])
            machines["restored"] = restore["vm_id"]
            await call(client, "writeFile", path="/workspace/own", content="restored\n")
            commits["second"] = (await call(client, "vmSnapshot"))["commit_id"]
            await self.keep(machines["branched"], machines["restored"])
            machines["deleted"] = (await call(client, "vmCreate"))["vm_id"]
            await call(client, "vmDelete", vmId=machines["deleted"])
            assert vm

    async def keep(self, *machine_ids: str) -> None:
        """Let machines outlive the server that made them, which no tool does for copies."""
        code = (
            "import sys, anyio\nfrom vers_rlm_mcp import runs\n"
            "from vers_rlm_mcp.settings import Settings\n"
            "async def main():\n"
            "    async with runs.open_fleet(Settings()) as fleet:\n"
            "        for each in sys.argv[1:]: await fleet.keep(each)\n"
            "anyio.run(main)"
        )
        await anyio.run_process([sys.executable, "-c", code, *machine_ids], env=self.environment)

    async def machine_of_an_image(self) -> None:
        """A machine that starts from an image; it has no programs, but files."""
        _write_image(self.home / IMAGE)
        async with self.client(VERS_RLM_BASE=str(self.home / IMAGE)) as client:
            made = await call(client, "vmCreate", keepVM=True)
            await call(client, "writeFile", path="/workspace/own", content="on an image\n")
            self.facts["machines"]["of_an_image"] = made["vm_id"]

    async def runs(self) -> None:
        """Runs of every kind that came to an end."""
        (self.home / "data.csv").write_text("1,2,3\n")
        text = "figures " * (LONG // 8)
        await self.run(
            "finished", "--input", f"text={text}", "--input", 'notes=["one", "two"]',
            "--file", "data.csv", "--keep-vm",
        )  # fmt: skip
        await self.run("branched")
        await self.command(*_run("partial"), "--max-iterations", "2", fails=True)
        self.facts["runs"]["partial"] = self.newest_run()
        await self.command("runs", "replay", self.facts["runs"]["finished"], "--json")
        self.facts["runs"]["replayed"] = self.newest_run()
        async with self.killed_in_the_end("resumed"):
            pass
        STAGE.hanging = False
        await self.command("runs", "resume", self.facts["runs"]["resumed"], "--json")
        STAGE.hanging = True
        await self.cancelled()
        await self.of_a_client()

    def newest_run(self) -> str:
        """The id of the run that was begun last."""
        known = set(self.facts["runs"].values())
        (new,) = (
            path.name for path in (self.state / "runs").glob("run-*") if path.name not in known
        )
        return new

    async def cancelled(self) -> None:
        """A run that its client cancels."""
        async with self.client(VERS_RLM_WAIT_SECONDS="1") as client:
            task = {"signature": SIGNATURES["cancelled"], "instructions": "play cancelled."}
            begun = await call(client, "vers_rlm", **task)
            self.facts["runs"]["cancelled"] = begun["run_id"]
            await self.until(self.hangs)
            await call(client, "rlmCancel", runId=begun["run_id"])

    async def of_a_client(self) -> None:
        """The machine, commit and run of a client over HTTP, which is told by its token."""
        async with self.http_client(TOKEN) as client:
            made = await call(client, "vmCreate", keepVM=True)
            vm_id = self.facts["machines"]["of_a_client"] = made["vm_id"]
            await call(client, "writeFile", path="/workspace/own", content="1", vmId=vm_id)
            commit = await call(client, "vmSnapshot", vmId=vm_id)
            self.facts["commits"]["of_a_client"] = commit["commit_id"]
            task = {"signature": SIGNATURES["of_a_client"], "instructions": "play of_a_client."}
            run = await call(client, "vers_rlm", inputs={"word": "ann"}, **task)
            self.facts["runs"]["of_a_client"] = run["run_id"]

    async def killed(self) -> None:
        """Processes that are killed while they are at work: the last thing that happens here.

        Any later one would sweep what they leave, and that is to be frozen.
        """
        async with (
            self.killed_in_the_end(),
            self.killed_in_the_end(KILLED[0], VERS_RLM_CHECKPOINTS="destructive"),
            self.killed_in_the_end(KILLED[1], VERS_RLM_CHECKPOINTS="off"),
            self.killed_in_the_end(KILLED[2]),
        ):
            # Its other branch ends in the meantime.
            await self.until(lambda: '"step_finished"' in self.journal(KILLED[2], '"in": "1"'))
        for play in KILLED:
            self.facts["paid"][play] = self.paid(play)

    @asynccontextmanager
    async def killed_in_the_end(self, play: str = "", **settings: str) -> AsyncGenerator[None]:
        """Begin a run, and wait until a sub-call of it hangs; without one, a server's machine."""
        self._server.requests.clear()
        process = await anyio.open_process(
            [COMMAND, *(_run(play) if play else ())],
            env=self.environment | settings,
            cwd=self.home,
            stderr=subprocess.DEVNULL,
        )
        try:
            if play:
                await self.until(self.hangs)
                self.facts["runs"][play] = self.newest_run()
            else:
                self.facts["machines"]["left_over"] = await _make_machine(process)
            yield
        finally:
            process.kill()
            await process.wait()
            await process.aclose()

    def hangs(self) -> bool:
        """Whether a sub-call that is never answered was asked."""
        return any(asked_by_cell(request) == HANGS for request in self._server.requests)

    def journal(self, play: str, having: str = "") -> str:
        """The lines of a run's journal that have this in them."""
        (path,) = self.state.glob(f"runs/**/{self.facts['runs'][play]}/events.jsonl")
        return "\n".join(line for line in path.read_text().splitlines() if having in line)

    def paid(self, play: str) -> int:
        """How many replies to a run are in its journal."""
        events = [json.loads(line) for line in self.journal(play).splitlines()]
        kinds = ("model_replied", "sub_call_finished")
        return sum(event["event"] in kinds and not event.get("recorded") for event in events)

    @staticmethod
    async def until(condition: Callable[[], bool]) -> None:
        with anyio.fail_after(WAIT_SECONDS):
            while not condition():  # noqa: ASYNC110 - other processes change it
                await anyio.sleep(POLL_SECONDS)

    async def answers(self) -> None:
        """What this version says of its own state, for tests to compare."""
        told: dict[str, Any] = {"runs": {}, "trees": {}}
        self.facts["told"] = told
        async with self.client() as client:
            for play, run_id in self.facts["runs"].items():
                told["runs"][play] = await call(client, "rlmResult", runId=run_id)
                told["trees"][play] = (await call(client, "vmTree", runId=run_id))["nodes"]
            told["list"] = (await call(client, "rlmRuns"))["runs"]
            told["machines"] = await call(client, "vmList")


STAGE: Final = Stage(hanging=True)

KILLED: Final = ("killed", "killed_at_once", "killed_among_branches")


def _run(play: str) -> list[str]:
    signature = SIGNATURES[play]
    given = ["--input", "word=word"] if signature.startswith("word") else []
    return ["run", signature, "--instructions", f"play {play}.", *given]


async def _make_machine(server: Process) -> str:
    """A machine of a server that is to be killed, without a client that would mind."""
    assert server.stdin
    assert server.stdout
    info = {"name": "maker", "version": "1"}
    start = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}
    messages: Sequence[dict[str, Any]] = (
        {"id": 1, "method": "initialize", "params": start},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": {"name": "vmCreate", "arguments": {}}},
    )
    for message in messages:
        await server.stdin.send(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
    said = b""
    with anyio.fail_after(WAIT_SECONDS):
        while True:
            said += await server.stdout.receive()
            for line in said.splitlines(keepends=True):
                if line.endswith(b"\n") and (answer := json.loads(line)).get("id") == 2:
                    return answer["result"]["structuredContent"]["vm_id"]


def _save_programs(directory: Path) -> None:
    """Keep what this version starts a kernel with, which tests do from outside of it."""
    kernel: Any = importlib.import_module("vers_rlm_mcp.kernel.archive")
    directory.mkdir()
    (directory / KERNEL).write_bytes(kernel.guest_archive()[1])
    (directory / ENTRY).write_text(kernel.ENTRY)
    (directory / QUEUE).write_bytes(kernels.GUEST)


def _write_image(path: Path) -> None:
    """Write a docker-archive of one file, which weighs next to nothing."""
    layer = BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _add(tar, "greeting/hello", b"hello from the image\n")
    config = {"config": {"Env": ["GREETING=hello"]}}
    manifest = [{"Config": "config.json", "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        _add(tar, "manifest.json", json.dumps(manifest).encode())
        _add(tar, "config.json", json.dumps(config).encode())
        _add(tar, "layer.tar", layer.getvalue())
    os.utime(path, (1_000_000_000, 1_000_000_000))  # whole seconds, as it is told by them, too


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


async def on_bubblewrap(home: Path) -> dict[str, Any]:
    """The state of machines that are namespaces."""
    async with OpenAIServer(STAGE.answer) as server:
        maker = Maker(home, server, {"VERS_RLM_BACKEND": "bubblewrap"})
        await maker.machine_of_an_image()
        await make(maker)
    return maker.facts


async def on_vers(home: Path) -> dict[str, Any]:
    """The state of machines of the emulated service, with what the service has of them."""
    async with (
        OpenAIServer(STAGE.answer) as server,
        VersEmulator(home / CLOUD, Options(fork_kernels=True)) as emulator,
    ):
        maker = Maker(home, server, emulator.facts()["environment"])
        await make(maker)
        maker.facts["cloud"] = await freeze(emulator.cloud)
        _save_programs(home / PROGRAMS)
        emulator.cloud.vms = {}  # What it does not know, it does not remove in the end.
        emulator.cloud.commits = {}
    return maker.facts


async def make(maker: Maker) -> None:
    """Make what every backend has."""
    await maker.machines_by_hand()
    await maker.runs()
    await maker.answers()
    await maker.killed()


STATES: Final = {"bubblewrap": on_bubblewrap, "vers": on_vers}


def main() -> None:
    """Make the states that are named, and pack each beside the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archives", type=Path, help="the directory for the archives")
    parser.add_argument("states", nargs="*", choices=STATES, default=list(STATES))
    arguments = parser.parse_args()
    for name in arguments.states:
        pack_state(name, arguments.archives / f"{name}.tar.xz")


def pack_state(name: str, archive: Path) -> None:
    """Make a state and pack it."""
    home = Path(HOME)
    if home.exists():
        sys.exit(f"{home} is in the way.")
    home.mkdir(parents=True)
    try:
        facts = anyio.run(STATES[name], home)
        (home / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False))
        pack(home, archive)
    finally:
        shutil.rmtree(home)
    places = [sys.prefix, str(Path.cwd()), str(Path(__file__).parents[2])]
    if len(socket.gethostname()) >= TELLING:
        places.append(socket.gethostname())
    if told := traces(archive, places):
        sys.exit(f"The archive tells about this computer: {told}")


if __name__ == "__main__":
    main()
