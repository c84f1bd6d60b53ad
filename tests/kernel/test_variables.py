from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from repl import FUNCTIONS, Host, Repl, end_kernel

from assumptions import CARRY_MEMORY, MACHINES
from vers_rlm_mcp.kernel import Carried, Kernel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from pydantic import JsonValue

    from vers_rlm_mcp.kernel import HostCall
    from vers_rlm_mcp.testing import FakeMachine


def writable_files(pid: int) -> set[str]:
    """What a process has open for writing: paths, or kinds of what has none."""
    found: set[str] = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        flags = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().split()[3]
        if int(flags, 8) & (os.O_WRONLY | os.O_RDWR):
            found.add(str(entry.readlink()).partition(":")[0])
    return found


@contextlib.asynccontextmanager
async def copy_of(machine: FakeMachine) -> AsyncGenerator[Repl]:
    """The kernel of a copy of a machine's disk, with the variables that were carried."""
    [copy] = await machine.branch()
    if MACHINES in CARRY_MEMORY:
        await end_kernel(copy)
    kernel = await Kernel.connect(
        copy, home_id=copy.id, functions=FUNCTIONS, restore_variables=True
    )
    try:
        yield Repl(kernel, Host())
    finally:
        await kernel.aclose()
        await copy.delete()


async def test_data_functions_classes_and_modules_go_along(
    machine: FakeMachine, repl: Repl
) -> None:
    await repl.output(
        "import json, dataclasses\n"
        "n = 1\n"
        "text = 'a' * 100_000\n"
        "def up():\n    global n\n    n += 1\n    return json.dumps(n)\n"
        "@dataclasses.dataclass\nclass P:\n    x: int\n    def double(self): return 2 * self.x\n"
        "p = P(4)\n"
        "square = lambda v: v * v\n"
        "out = exec('echo hi; exit 2')"
    )
    carried = await repl.kernel.save_variables()
    names = ("json", "dataclasses", "n", "text", "up", "P", "p", "square", "out")
    assert carried == Carried(names, {})
    async with copy_of(machine) as copy:
        assert copy.kernel.carried == carried
        assert await copy.output("up(), up(), n") == "('2', '3', 3)\n"
        assert await copy.output("p.double(), P(1), isinstance(p, P), square(3)") == (
            "(8, P(x=1), True, 9)\n"
        )
        assert await copy.output("len(text), out.exit_code, out.stdout") == "(100000, 2, 'hi\\n')\n"


async def test_functions_of_cells_use_the_variables_of_later_cells(
    machine: FakeMachine, repl: Repl
) -> None:
    await repl.output(
        "rate = 1\ndef cost(n): return n * rate\n"
        "def outer():\n    def inner(n): return cost(n) if n else inner(1)\n    return inner\n"
        "inner = outer()"
    )
    await repl.kernel.save_variables()
    async with copy_of(machine) as copy:
        assert await copy.output("rate = 5\ncost(2), inner(0)") == "(10, 5)\n"


async def test_what_variables_share_stays_shared(machine: FakeMachine, repl: Repl) -> None:
    await repl.output("a = [1]\nb = {'a': a}\nb['self'] = b\nbroken = (i for i in a)")
    await repl.kernel.save_variables()
    async with copy_of(machine) as copy:
        assert await copy.output("a.append(2); b['a'], b['self'] is b") == "([1, 2], True)\n"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("open('/etc/hostname')", "an open file cannot be saved"),
        ("open('/etc/hostname', 'rb')", "cannot"),
        ("__import__('socket').socket()", "cannot pickle 'socket' object"),
        ("(i for i in [])", "cannot pickle 'generator' object"),
        ("__import__('threading').Lock()", "cannot pickle '_thread.lock' object"),
        ("__import__('sqlite3').connect(':memory:')", "cannot pickle 'sqlite3.Connection' object"),
        ("type('Bad', (), {'__reduce__': lambda self: 1 / 0})()", "ZeroDivisionError"),
    ],
)
async def test_what_cannot_go_along_is_named_with_the_reason(
    machine: FakeMachine, repl: Repl, value: str, reason: str
) -> None:
    await repl.output(f"bad = {value}\nholder = [bad]\ngood = 1")
    carried = await repl.kernel.save_variables()
    assert carried.kept == ("good",)
    assert list(carried.lost) == ["bad", "holder"]
    assert reason in carried.lost["bad"]
    async with copy_of(machine) as copy:
        assert copy.kernel.carried == carried
        assert await copy.output("good") == "1\n"


async def test_a_variable_that_does_not_load_takes_no_other_with_it(
    machine: FakeMachine, repl: Repl
) -> None:
    await repl.output(
        "import os\nwriteFile('here.py', 'class C: pass')\nimport here\nbad = here.C()\ngood = [1]"
    )
    await repl.kernel.save_variables()
    await repl.output("os.unlink('here.py')")
    async with copy_of(machine) as copy:
        # The copy of this kind of machine comes back to the directory of the original.
        assert copy.kernel.carried
        assert set(copy.kernel.carried.kept) == {"os", "good"}
        assert set(copy.kernel.carried.lost) == {"here", "bad"}
        assert "No module named 'here'" in copy.kernel.carried.lost["bad"]
        assert await copy.output("good") == "[1]\n"


async def test_unchanged_inputs_are_read_from_their_files_again(
    machine: FakeMachine, repl: Repl
) -> None:
    size = 20_000_000
    await machine.write("/workspace/in", b"x" * size)
    await machine.write("/workspace/other", b"y" * size)
    await repl.kernel.load("kept", "/workspace/in", "text")
    await repl.kernel.load("changed", "/workspace/other", "text")
    await repl.output("changed += '!'")
    carried = await repl.kernel.save_variables()
    assert set(carried.kept) == {"kept", "changed"}
    saved = sum(path.stat().st_size for path in await saved_files(repl))
    assert size < saved < 1.1 * size
    async with copy_of(machine) as copy:
        assert await copy.output("len(kept), changed[-2:]") == "(20000000, 'y!')\n"
        again = await copy.kernel.save_variables()
        assert set(again.kept) == {"kept", "changed"}


async def saved_files(repl: Repl) -> list[Path]:
    """Where the variables of a fake machine were saved."""
    workspace = Path((await repl.output("print(__import__('os').getcwd())")).strip())
    return [path for path in (workspace / ".vers-rlm").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "value", ["'a' * size", "'\\u20ac' * size", "'\\ud800' * size", "bytes(size)"]
)
async def test_a_long_text_is_written_once_and_gone_with_its_variable(
    machine: FakeMachine, repl: Repl, value: str
) -> None:
    await repl.output(f"size = 3_000_000; text = {value}; check = hash(text); same = [text]")
    first = await repl.kernel.save_variables()
    assert set(first.kept) == {"size", "text", "check", "same"}
    [file] = [path for path in await saved_files(repl) if ".texts" in str(path)]
    made = file.stat().st_mtime_ns
    async with copy_of(machine) as copy:
        assert await copy.output(f"text == {value}, same[0] == text") == "(True, True)\n"
    await repl.output("n = 1")
    await repl.kernel.save_variables()
    assert file.stat().st_mtime_ns == made
    await repl.output("text += text[:1]")
    await repl.kernel.save_variables()
    assert not file.exists()
    await repl.output("del text")
    await repl.kernel.save_variables()
    assert not [path for path in await saved_files(repl) if ".texts" in str(path)]


@pytest.mark.parametrize(
    "change",
    ["x[0]['b'] = 3", "y = x[1]['b']; y.append(1)", "x.append(1)", "x[0] = True", "x = list(x)"],
)
async def test_a_json_input_is_saved_itself_once_it_has_changed(
    machine: FakeMachine, repl: Repl, change: str
) -> None:
    await machine.write("/workspace/in", b'[{"b": 1}, {"b": []}, ' + b'"text", ' * 100_000 + b"1]")
    await repl.kernel.load("x", "/workspace/in", "json")
    await repl.output("n = len(x)")
    await repl.kernel.save_variables()
    unchanged = sum(path.stat().st_size for path in await saved_files(repl))
    assert unchanged < 1000
    await repl.output(change)
    await repl.kernel.save_variables()
    assert sum(path.stat().st_size for path in await saved_files(repl)) > 100_000
    shown = await repl.output("x[:2], len(x)")
    async with copy_of(machine) as copy:
        assert await copy.output("x[:2], len(x)") == shown


@pytest.mark.parametrize("most", [None, 100_000_000])
@pytest.mark.parametrize("value", ["big", "[big]", "{'key': (big,)}"])
async def test_saving_takes_less_memory_than_there_is(
    machine: FakeMachine, value: str, most: int | None
) -> None:
    kernel = await Kernel.connect(
        machine, home_id=machine.id, functions=FUNCTIONS, memory=512 << 20
    )
    repl = Repl(kernel, Host())
    await repl.output(f"small = 1; big = 'a' * 300_000_000; x = {value}; del big")
    carried = await kernel.save_variables(most)
    assert "small" in carried.kept
    if most or value != "big":
        (reason,) = carried.lost.values()
        assert reason.startswith(("OverflowError", "MemoryError"))
    else:
        assert set(carried.kept) == {"small", "x"}
    assert await repl.output("small") == "1\n"
    await kernel.aclose()


async def test_an_input_whose_file_was_changed_is_saved_itself(
    machine: FakeMachine, repl: Repl
) -> None:
    await machine.write("/workspace/in", b"before")
    await repl.kernel.load("text", "/workspace/in", "text")
    await repl.output("writeFile('in', 'after it')")
    await repl.kernel.save_variables()
    async with copy_of(machine) as copy:
        assert await copy.output("text") == "'before'\n"


@pytest.mark.parametrize("call", ["vmSnapshot()", "vm_branch(2)"])
async def test_a_cell_that_copies_its_machine_saves_the_variables_first(
    machine: FakeMachine, repl: Repl, call: str
) -> None:
    await repl.output(f"x = 1\nbad = (i for i in [])\n{call}\nx = 2")
    [made] = repl.host.calls
    assert made.carried
    assert made.carried.kept == ("x",)
    assert list(made.carried.lost) == ["bad"]
    async with copy_of(machine) as copy:
        assert await copy.output("x") == "1\n"


async def test_copying_another_machine_saves_nothing(repl: Repl) -> None:
    await repl.kernel.set_current("other")
    await repl.output("x = 1\nvmSnapshot()")
    assert repl.host.calls[0].carried is None


async def test_where_copies_carry_memory_nothing_is_saved(machine: FakeMachine) -> None:
    kernel = await Kernel.connect(machine, home_id="home", functions=FUNCTIONS, save_on_copy=False)
    repl = Repl(kernel, Host())
    await repl.output("x = 1\nvmSnapshot()")
    assert repl.host.calls[0].carried is None
    await kernel.aclose()


@pytest.mark.assumes("host")
async def test_no_file_is_open_for_writing_while_a_copy_is_made(repl: Repl) -> None:
    pid = await repl.output("import os; os.getpid()")
    writable: set[str] = set()

    async def look(call: HostCall) -> JsonValue:
        writable.update(writable_files(int(pid)))
        return "commit"

    assert (await repl.kernel.run("vmSnapshot()", timeout=10, handler=look)).status == "ok"
    assert writable <= {"pipe", "socket", "/dev/null"}


async def test_a_full_disk_loses_the_variables_by_name_and_leaves_no_old_ones(
    machine: FakeMachine, repl: Repl
) -> None:
    await repl.output("x = 1")
    await repl.kernel.save_variables()
    await repl.output(
        "import resource\nx = bytes(3_000_000)\n"
        "limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit))\n"
        "import signal; _ = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    )
    carried = await repl.kernel.save_variables()
    assert "x" not in carried.kept
    assert "File too large" in carried.lost["x"]
    async with copy_of(machine) as copy:
        assert "NameError" in await copy.error("x")


async def test_restoring_where_nothing_was_saved_is_no_error(machine: FakeMachine) -> None:
    kernel = await Kernel.connect(
        machine, home_id="home", functions=FUNCTIONS, restore_variables=True
    )
    assert kernel.carried == Carried((), {})
    await kernel.aclose()


async def test_a_file_that_holds_something_else_is_a_reason_and_no_crash(
    machine: FakeMachine,
) -> None:
    await machine.write("/workspace/.vers-rlm/variables", b"not a pickle")
    kernel = await Kernel.connect(
        machine, home_id="home", functions=FUNCTIONS, restore_variables=True
    )
    assert kernel.carried
    assert list(kernel.carried.lost) == ["(all variables)"]
    await kernel.aclose()


async def test_of_more_than_may_be_saved_what_is_too_large_is_named(repl: Repl):
    await repl.output("small = [1]; large = [bytes(600_000), bytes(600_001)]; last = 'x'")
    carried = await repl.kernel.save_variables(1_000_000)
    assert carried.kept == ("small", "last")
    assert "too large" in carried.lost["large"]
