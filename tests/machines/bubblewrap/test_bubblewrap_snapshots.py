"""Freezing a machine while it runs: fast where that is safe, by copying where it is not."""

from __future__ import annotations

import hashlib
import json
import resource
from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.errors import MachineFull
from vers_rlm_mcp.machines import Machine, read_bytes
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend, running

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Shell

    from vers_rlm_mcp.machines import Process

TREE = """
mkdir -p a/b a/gone deep; echo 1 > a/b/f; ln a/b/f a/hard; ln -s b/f a/soft; mkfifo a/fifo
echo x > a/gone/f; chmod 4751 a/b/f; chmod 1777 a/b; truncate -s 3M a/sparse; printf x >> a/sparse
python3 -c "import os; os.setxattr('a/b/f', 'user.note', b'kept')"
touch -d 2001-02-03T04:05:06.789 a/b
"""

CHANGES = """
rm -r a/gone; mkdir a/gone; rm a/soft; mv deep shallow; echo 2 > shallow/f; rm a/fifo
"""

MANIFEST = """
cd /workspace && find . ! -type d -printf '%P %y %m %s %n %l %U\\n' | sort
find . -type d -printf '%P %m %U\\n' | sort
find . -type f ! -name open | sort | xargs -d '\\n' cksum
python3 -c "import os; print(os.getxattr('a/b/f', 'user.note'))"
stat -c %b a/sparse | awk '{print ($1 < 100)}'
stat -c %y a/b
"""


SERVER = """
import socket
listening = socket.socket(socket.AF_UNIX)
listening.bind("/workspace/socket")
listening.listen()
print("ready", flush=True)
listening.accept()[0].sendall(b"served")
"""

CLIENT = """
import socket
connection = socket.socket(socket.AF_UNIX)
connection.connect("/workspace/socket")
print(connection.recv(9).decode(), end="")
"""

WATCHER = """
import ctypes, os
libc = ctypes.CDLL(None)
descriptor = libc.inotify_init()
libc.inotify_add_watch(descriptor, b"/workspace", 0x100)  # IN_CREATE
print("ready", flush=True)
print(os.read(descriptor, 4096)[16:].rstrip(bytes(1)).decode(), end="")
"""


def layers_of(state: Path, commit_id: str) -> list[str]:
    """The layers of a commit, newest first."""
    return json.loads((state / f"bubblewrap/commits/{commit_id}.json").read_bytes())["layers"]


async def started(process: Process) -> None:
    with anyio.fail_after(10):
        assert await process.stdout.receive() == b"ready\n"


DEEP = """
import os
for level in range(50):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
open("first", "w").write("1")
os.link("first", "second")
"""

LINKED = """
import os
for level in range(50):
    os.chdir("d" * 200)
print(os.path.samefile("first", "second"), open("second").read())
"""


async def test_an_idle_machine_is_frozen_without_a_copy(machine: Machine) -> None:
    await machine.write("/workspace/file", b"1")
    assert (await machine.snapshot()).notes == ()


async def test_nothing_new_makes_no_layer(backend: BubblewrapBackend, state: object) -> None:
    machine = await backend.create()
    await machine.write("/workspace/file", b"1")
    first = await machine.snapshot()
    second = await machine.snapshot()
    for commit in (first, second):
        copy = await backend.restore(commit.id)
        assert await read_bytes(copy, "/workspace/file", length=9) == b"1"
        await copy.delete()
    await machine.delete()


async def test_a_process_outside_of_what_changed_lives_on_without_a_copy(
    machine: Machine,
) -> None:
    async with await machine.spawn(["sh", "-c", "echo ready; cat"], cwd="/") as process:
        await started(process)
        await machine.write("/workspace/file", b"1")
        assert (await machine.snapshot()).notes == ()
        await process.stdin.send(b"still here")
        with anyio.fail_after(10):
            assert await process.stdout.receive() == b"still here"


@pytest.mark.parametrize("script", [
    "exec 3> /workspace/open; echo ready; read x; echo late >&3",
    "cd /workspace; echo ready; read x; echo late > open",
    "echo old > /tmp/f; exec 3< /tmp/f; echo ready; read x; cat <&3 > /workspace/open",
    "exec 3<> /tmp/gone; rm /tmp/gone; echo ready; read x; echo late > /workspace/open",
    "echo data > /tmp/m; exec python3 -c \"import mmap; f = open('/tmp/m', 'r+b'); "
    "m = mmap.mmap(f.fileno(), 0); f.close(); print('ready', flush=True); input(); "
    "m[:4] = b'late'; "
    "m.flush(); open('/workspace/open', 'w').write(open('/tmp/m').read())\"",
])  # fmt: skip
async def test_what_is_in_use_is_copied_and_not_disturbed(
    backend: BubblewrapBackend, machine: Machine, sh: Shell, script: str
) -> None:
    await machine.write("/workspace/file", b"1")
    async with await machine.spawn(["sh", "-c", script], cwd="/") as process:
        await started(process)
        commit = await machine.snapshot()
        assert "had to be copied" in commit.notes[0]
        await process.stdin.send(b"go\n")
        with anyio.fail_after(10):
            assert (await process.wait()).ok
    assert await read_bytes(machine, "/workspace/open", length=9) in (b"late\n", b"old\n")
    copy = await backend.restore(commit.id)
    assert await sh(copy, "cat file; cat open 2>/dev/null") == "1"
    await copy.delete()


WITHOUT_A_MAIN_THREAD = """
import ctypes, os, sys, threading
def count():
    with open(sys.argv[1], "w", buffering=1) as file:
        for number in range(1 << 60):
            file.write(f"{number}\\n")
            if number == 100:
                print("ready", flush=True)
threading.Thread(target=count).start()
ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""


async def test_a_process_without_a_main_thread_is_stopped_and_loses_no_writes(
    machine: Machine, sh: Shell
) -> None:
    counted = ["python3", "-c", WITHOUT_A_MAIN_THREAD, "/workspace/numbers"]
    async with await machine.spawn(counted, cwd="/") as process:
        await started(process)
        commit = await machine.snapshot()
        assert "open" in commit.notes[0]
        at_commit = int(await sh(machine, "tail -n 1 numbers"))
        with anyio.fail_after(10):
            while int(await sh(machine, "tail -n 1 numbers | grep . || echo 0")) <= at_commit:
                pass


async def test_a_server_behind_a_socket_in_the_file_system_can_still_be_reached(
    machine: Machine, sh: Shell
) -> None:
    async with await machine.spawn(["python3", "-c", SERVER], cwd="/") as process:
        await started(process)
        commit = await machine.snapshot()
        assert "a socket is bound to '/workspace/socket'" in commit.notes[0]
        assert await sh(machine, f"python3 -c '{CLIENT}'") == "served"


async def test_who_watches_a_directory_still_sees_what_happens_there(machine: Machine) -> None:
    await machine.write("/workspace/file", b"1")
    async with await machine.spawn(["python3", "-c", WATCHER], cwd="/") as process:
        await started(process)
        await machine.snapshot()
        await (await machine.spawn(["sh", "-c", "echo 2 > /workspace/new"])).wait()
        with anyio.fail_after(10):
            assert await process.stdout.receive() == b"new"


async def test_what_a_frozen_layer_cannot_do_is_told(machine: Machine, sh: Shell) -> None:
    await sh(machine, "mkdir old; echo 1 > first; ln first second")
    await machine.snapshot()
    rename = "import os; os.rename('old', 'new')"
    assert "Errno 18" in await sh(machine, f'python3 -c "{rename}"')
    assert await sh(machine, "mv old new; ls -d new; echo 2 > first; cat first second") == (
        "new\n2\n1\n"
    )
    assert any("EXDEV" in note and "hard link" in note for note in machine.capabilities.notes)


async def test_a_copy_is_the_same_tree(
    backend: BubblewrapBackend, machine: Machine, sh: Shell
) -> None:
    await sh(machine, TREE)
    await machine.snapshot()
    await sh(machine, CHANGES)
    wanted = await sh(machine, MANIFEST)
    async with await machine.spawn(["sh", "-c", "exec 3> /tmp/o; echo ready; cat"]) as process:
        await started(process)
        commit = await machine.snapshot()
    assert commit.notes
    copy = await backend.restore(commit.id)
    assert await sh(copy, MANIFEST) == wanted
    await copy.delete()


async def test_a_copy_may_be_deeper_than_any_path(
    backend: BubblewrapBackend, machine: Machine, sh: Shell
) -> None:
    await sh(machine, f"python3 -c '{DEEP}'")
    async with await machine.spawn(["sleep", "1000"], cwd="/workspace"):
        commit = await machine.snapshot()
    assert commit.notes
    copy = await backend.restore(commit.id)
    assert await sh(copy, f"python3 -c '{LINKED}'") == "True 1\n"
    await copy.delete()


@pytest.mark.parametrize("held", [False, True])
async def test_many_layers_are_merged_into_one(
    backend: BubblewrapBackend,
    state: Path,
    sh: Shell,
    monkeypatch: pytest.MonkeyPatch,
    held: bool,
) -> None:
    machine = await backend.create()
    await sh(machine, TREE)
    first = await machine.snapshot()
    await sh(machine, CHANGES)
    second = await machine.snapshot()
    await sh(machine, "echo 3 > shallow/g; rm -r a/gone; mkdir a/new; rm -rf /var/log")
    wanted = await sh(machine, MANIFEST + "ls /var")
    monkeypatch.setattr(running, "MERGE_LAYERS", 2)
    async with await machine.spawn(["sh", "-c", "echo ready; cat"], cwd="/") as process:
        await started(process)
        async with await machine.spawn(["sleep", "1000"], cwd="/workspace" if held else "/"):
            third = await machine.snapshot()
        await process.stdin.send(b"alive")
        with anyio.fail_after(10):
            assert await process.stdout.receive() == b"alive"
    assert bool(third.notes) == held
    assert len(layers_of(state, third.id)) == 2
    for commit in (first, second):
        await backend.delete_commit(commit.id)
    assert await sh(machine, MANIFEST + "ls /var") == wanted
    copy = await backend.restore(third.id)
    assert await sh(copy, MANIFEST + "ls /var") == wanted
    await copy.delete()
    await machine.delete()


async def test_nothing_is_merged_when_nothing_has_changed(
    machine: Machine, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        await machine.write("/workspace/file", b"%d" % number)
        await machine.snapshot()
    before = layers_of(state, (await machine.snapshot()).id)
    monkeypatch.setattr(running, "MERGE_LAYERS", 2)
    assert layers_of(state, (await machine.snapshot()).id) == before


@pytest.mark.slow
async def test_as_many_layers_as_may_be_are_not_too_many(
    backend: BubblewrapBackend, machine: Machine, state: Path
) -> None:
    await machine.write("/workspace/file", b"0")
    commit = await machine.snapshot()
    (layer,) = layers_of(state, commit.id)
    store = state / "bubblewrap"
    layers = [f"{layer}x{number}" for number in range(running.MAX_LAYERS)]
    for number, name in enumerate(layers):
        place = store / "layers" / name / "system"
        place.mkdir(parents=True)
        await anyio.run_process(["cp", "-a", store / "layers" / layer / "system/u", place])
        (place / "u/workspace/file").write_text(str(number))
    path = store / "commits" / f"{commit.id}.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "layers": layers}))
    copy = await backend.restore(commit.id)
    assert await read_bytes(copy, "/workspace/file", length=9) == b"0"
    await copy.write("/workspace/new", b"1")
    assert len(layers_of(state, (await copy.snapshot()).id)) == 2
    assert await read_bytes(copy, "/workspace/file", length=9) == b"0"
    await copy.delete()


@pytest.mark.slow
async def test_fifty_commits_come_back_as_they_were(
    backend: BubblewrapBackend, machine: Machine
) -> None:
    hashes: dict[str, str] = {}
    for number in range(50):
        data = hashlib.sha512(b"%d" % number).digest() * (100 + number)
        await machine.write("/workspace/data", data)
        hashes[(await machine.snapshot()).id] = hashlib.sha256(data).hexdigest()
    await machine.write("/workspace/data", b"overwritten")
    for commit_id in list(hashes)[::7]:
        copy = await backend.restore(commit_id)
        data = await read_bytes(copy, "/workspace/data", length=1 << 20)
        assert hashlib.sha256(data).hexdigest() == hashes[commit_id]
        await copy.delete()


async def test_a_snapshot_during_heavy_writing_is_whole(
    backend: BubblewrapBackend, machine: Machine, sh: Shell
) -> None:
    script = "i=0; while :; do i=$((i+1)); echo $i > a; cp a b; mv b o; mv a n; "
    script += "test $i = 5 && echo ready; done"
    async with await machine.spawn(["sh", "-c", script]) as process:
        await started(process)
        commits = [await machine.snapshot() for _ in range(5)]
    last = 0
    for commit in commits:
        copy = await backend.restore(commit.id)
        numbers = [int(text) for text in (await sh(copy, "cat o n")).split()]
        assert last <= numbers[1] <= numbers[0] <= numbers[1] + 1
        last = numbers[1]
        await copy.delete()


async def test_no_room_for_a_copy_leaves_the_machine_alive(
    backend: BubblewrapBackend, sh: Shell
) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, unlimited[1]))
    try:  # Inherited by the machine's PID 1, which copies: for it a larger file does not fit.
        machine = await backend.create()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    await machine.write("/workspace/large", bytes(2 << 20))
    async with await machine.spawn(["sh", "-c", "exec 3> f; echo ready; cat"]) as process:
        await started(process)
        with pytest.raises(MachineFull, match=r"cannot be copied.*Make room"):
            await machine.snapshot()
        await process.stdin.send(b"alive")
        with anyio.fail_after(10):
            assert await process.stdout.receive() == b"alive"
    copy = await backend.restore((await machine.snapshot()).id)
    assert await sh(copy, "stat -c %s large") == f"{2 << 20}\n"
    await copy.delete()
    await machine.delete()
