from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from repl import Host, Repl

from vers_rlm_mcp.errors import InputError, KernelBusy

if TYPE_CHECKING:
    from vers_rlm_mcp.kernel import Kernel
    from vers_rlm_mcp.testing import FakeMachine


async def test_variables_persist_from_cell_to_cell(repl: Repl) -> None:
    await repl.output("x = 20")
    assert await repl.output("x + 1") == "21\n"


async def test_the_last_expression_is_echoed_and_bound_to_underscore(repl: Repl) -> None:
    assert await repl.output("x = 'a'\nx * 3") == "'aaa'\n"
    assert await repl.output("_ + 'b'") == "'aaab'\n"


async def test_none_is_not_echoed_and_leaves_underscore_alone(repl: Repl) -> None:
    assert await repl.output("1\nNone") == ""
    assert await repl.output("5") == "5\n"
    assert await repl.output("None") == ""
    assert await repl.output("_") == "5\n"


@pytest.mark.parametrize("code", ["", "\n", "# a comment", "pass", '""""""; x = 1'])
async def test_a_cell_without_a_value_writes_nothing(repl: Repl, code: str) -> None:
    assert await repl.output(code) == ""


async def test_output_of_python_children_and_descriptors_keeps_its_order(repl: Repl) -> None:
    output = await repl.output(
        "import os, subprocess, sys\n"
        "print('one')\n"
        "subprocess.run(['echo', 'two'])\n"
        "print('three', file=sys.stderr)\n"
        "os.write(1, b'four\\n')\n"
        "os.system('echo five >&2')\n"
        "print('six', end='')"
    )
    assert output == "one\ntwo\nthree\nfour\nfive\nsix"


async def test_order_is_kept_after_much_output_too(repl: Repl) -> None:
    output = await repl.output(
        "import os, subprocess, sys, time\n"
        "for n in range(300_000): print(n)\n"
        "print('before')\n"
        "subprocess.run(['echo', 'child'])\n"
        "print('after')\n"
        "os.system('echo shell')\n"
        "print('end')"
    )
    assert output.endswith("299999\nbefore\nchild\nafter\nshell\nend\n")


async def test_output_is_streamed_while_the_cell_runs(repl: Repl) -> None:
    seen: list[str] = []
    arrived = anyio.Event()

    def on_output(text: str) -> None:
        seen.append(text)
        arrived.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            lambda: repl(
                "import os, time\nprint('early')\nwhile not os.path.exists('go'): time.sleep(0.01)",
                on_output=on_output,
            )
        )
        with anyio.fail_after(10):
            await arrived.wait()
        assert "".join(seen) == "early\n"
        tasks.cancel_scope.cancel()


async def test_characters_are_whole_even_where_pieces_split_them(repl: Repl) -> None:
    result = await repl(
        "import os, time\nfor byte in 'é€😀'.encode(): os.write(1, bytes([byte])); time.sleep(0.02)"
    )
    assert result.output == "é€😀"


async def test_bytes_that_are_no_text_are_shown_as_replacements(repl: Repl) -> None:
    assert await repl.output("import os; _ = os.write(1, b'a\\xff\\xfe b \\xe2\\x82')") == "a�� b �"


async def test_names_that_are_not_utf8_can_be_printed(repl: Repl) -> None:
    assert await repl.output("print('caf\\udce9')") == "caf\\udce9\n"


async def test_top_level_await_works_and_tasks_live_on_between_cells(repl: Repl) -> None:
    await repl.output(
        "import asyncio\n"
        "async def tick():\n"
        "    await asyncio.sleep(0.01)\n"
        "    return 'tock'\n"
        "task = asyncio.create_task(tick())\n"
        "await asyncio.sleep(0)"
    )
    assert await repl.output("await task") == "'tock'\n"


async def test_await_in_a_loop_and_asynchronous_comprehensions_work(repl: Repl) -> None:
    output = await repl.output(
        "import asyncio\n"
        "async def numbers():\n"
        "    for i in range(3):\n"
        "        await asyncio.sleep(0)\n"
        "        yield i\n"
        "async for i in numbers(): print(i)\n"
        "[i async for i in numbers()]"
    )
    assert output == "0\n1\n2\n[0, 1, 2]\n"


async def test_a_coroutine_that_was_not_awaited_is(repl: Repl) -> None:
    assert await repl.output("async def main():\n    return 42\nmain()") == "42\n"


async def test_asyncio_run_works_in_a_cell(repl: Repl) -> None:
    code = "import asyncio\nasync def main(): return 1\nasyncio.run(main())"
    assert await repl.output(code) == "1\n"
    assert await repl.output("await asyncio.sleep(0, 2)") == "2\n"


async def test_an_error_shows_the_line_of_the_cell_and_only_its_frames(repl: Repl) -> None:
    error = await repl.error(
        "import json\n\ndef read(text):\n    return json.loads(text)\n\nread('{')"
    )
    assert "Cell 1, line 6, in <module>\n    read('{')\n" in error
    assert "Cell 1, line 4, in read\n    return json.loads(text)\n" in error
    assert error.endswith("(char 1)")
    assert "decoder.py" not in error
    assert "cells.py" not in error


async def test_an_error_in_an_earlier_cells_function_shows_that_cells_line(repl: Repl) -> None:
    await repl.output("def f(x):\n    return 1 / x")
    error = await repl.error("f(0)")
    assert "Cell 1, line 2, in f\n    return 1 / x\n" in error
    assert "Cell 2, line 1, in <module>" in error


async def test_the_cause_of_an_error_is_shown_with_its_frames(repl: Repl) -> None:
    error = await repl.error(
        "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('no a') from e"
    )
    assert "KeyError: 'a'" in error
    assert "direct cause" in error
    assert error.endswith("ValueError: no a")


async def test_a_syntax_error_shows_the_line(repl: Repl) -> None:
    error = await repl.error("x = 1\ny = (")
    assert error.startswith("  Cell 1, line 2\n    y = (")
    assert "SyntaxError: '(' was never closed" in error
    assert await repl.error("\0") != ""


async def test_an_error_with_a_huge_message_is_cut(repl: Repl) -> None:
    error = await repl.error("raise ValueError('x' * 10_000_000)")
    assert len(error) < 20_000
    assert "characters left out" in error


async def test_an_error_that_cannot_be_printed_is_still_an_error(repl: Repl) -> None:
    error = await repl.error(
        "class Bad(Exception):\n    def __str__(self): raise RuntimeError('no')\nraise Bad"
    )
    assert "Bad" in error


async def test_a_representation_that_fails_is_an_error_of_the_cell(repl: Repl) -> None:
    error = await repl.error("class Bad:\n    def __repr__(self): return 1 / 0\nBad()")
    assert "Cell 1, line 2, in __repr__" in error


@pytest.mark.parametrize(
    "call", ["exit()", "quit()", "import sys; sys.exit(3)", "raise SystemExit"]
)
async def test_exit_ends_the_cell_and_not_the_kernel(repl: Repl, call: str) -> None:
    await repl.output("x = 1")
    assert "exit() ends the cell" in await repl.output(f"print('a')\n{call}\nprint('b')")
    assert await repl.output("x") == "1\n"


async def test_exit_with_a_text_says_it(repl: Repl) -> None:
    assert (await repl.output("import sys; sys.exit('no data')")).startswith("no data\n[exit()")


async def test_whatever_a_cell_does_to_the_standard_streams_ends_with_it(repl: Repl) -> None:
    await repl.output("import sys, io, os\nsys.stdout = io.StringIO()\nprint('hidden')")
    assert await repl.output("print('seen')") == "seen\n"
    await repl("os.close(1); os.close(2)")
    assert await repl.output("print('seen')") == "seen\n"
    await repl("sys.stdout.close(); sys.stderr.close()")
    assert await repl.output("print('seen')") == "seen\n"


async def test_reading_standard_input_fails_instead_of_waiting(repl: Repl) -> None:
    assert "EOFError" in await repl.error("input('name? ')")


async def test_what_background_threads_print_is_shown_with_the_next_cell(repl: Repl) -> None:
    await repl.output(
        "import threading, os\n"
        "go = threading.Event()\n"
        "def later():\n"
        "    go.wait()\n"
        "    os.write(1, b'from a thread\\n')\n"
        "thread = threading.Thread(target=later)\n"
        "thread.start()"
    )
    assert await repl.output("go.set(); thread.join()") == "from a thread\n"


async def test_modules_written_into_the_working_directory_can_be_imported(repl: Repl) -> None:
    await repl.output("_ = open('mine.py', 'w').write('def f(): return 1 / 0')")
    error = await repl.error("import mine\nmine.f()")
    assert "mine.py" in error
    assert "def f(): return 1 / 0" in error


async def test_installed_packages_can_be_imported(repl: Repl) -> None:
    code = "import site, sys\nset(site.getsitepackages()) & set(sys.path) != set()"
    assert await repl.output(code) == "True\n"


async def test_code_that_looks_itself_up_finds_the_cells(repl: Repl) -> None:
    output = await repl.output(
        "import inspect, pickle, dataclasses, typing\n"
        "@dataclasses.dataclass\n"
        "class P:\n"
        "    x: int\n"
        "def f(p: 'P') -> None:\n"
        "    pass\n"
        "print(inspect.getsource(f).strip(), __name__, typing.get_type_hints(f)['p'] is P)\n"
        "pickle.loads(pickle.dumps(P(3)))"
    )
    assert output == "def f(p: 'P') -> None:\n    pass __main__ True\nP(x=3)\n"


async def test_a_fork_that_a_cell_does_not_end_ends_with_the_cell(repl: Repl) -> None:
    output = await repl.output(
        "import os, sys\n"
        "pid = os.fork()\n"
        "if pid: os.waitpid(pid, 0); print('parent', flush=True)\n"
        "else: print('child', flush=True)"
    )
    assert output == "child\nparent\n"
    assert await repl.output("1") == "1\n"


async def test_multiprocessing_works_in_a_cell(repl: Repl) -> None:
    output = await repl.output(
        "import multiprocessing\n"
        "def square(n): return n * n\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    print(pool.map(square, range(5)))"
    )
    assert output == "[0, 1, 4, 9, 16]\n"
    assert await repl.output("1") == "1\n"


async def test_a_second_cell_is_refused_while_one_runs(kernel: Kernel) -> None:
    host = Host()
    started = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            lambda: kernel.run(
                "print(1)\nwhile True: pass",
                timeout=20,
                handler=host,
                on_output=lambda _: started.set(),
            )
        )
        with anyio.fail_after(10):
            await started.wait()
        with pytest.raises(KernelBusy):
            await kernel.run("1", timeout=20, handler=host)
        with pytest.raises(KernelBusy):
            await kernel.variables()
        tasks.cancel_scope.cancel()
    assert (await kernel.run("1", timeout=20, handler=host)).output == "1\n"


async def test_files_become_variables_once(machine: FakeMachine, repl: Repl) -> None:
    await machine.write("/workspace/text", "hällo\r\n".encode())
    await machine.write("/workspace/json", b'{"a": [1, null]}')
    await machine.write("/workspace/raw", b"\x00\xff")
    await machine.write("/workspace/empty", b"")
    await repl.kernel.load("text", "/workspace/text", "text")
    await repl.kernel.load("data", "/workspace/json", "json")
    await repl.kernel.load("raw", "/workspace/raw", "bytes")
    await repl.kernel.load("empty", "/workspace/empty", "text")
    output = await repl.output("text, data, raw, empty")
    assert output == "('hällo\\r\\n', {'a': [1, None]}, b'\\x00\\xff', '')\n"


@pytest.mark.parametrize(
    ("content", "kind"), [(b"\xff", "text"), (b"{", "json"), (b"", "json"), (None, "text")]
)
async def test_a_file_that_is_not_what_it_should_be_is_refused_with_the_reason(
    machine: FakeMachine, repl: Repl, content: bytes | None, kind: str
) -> None:
    if content is not None:
        await machine.write("/workspace/file", content)
    with pytest.raises(InputError, match="'x' cannot be loaded"):
        await repl.kernel.load("x", "/workspace/file", kind)  # type: ignore[arg-type]
    assert await repl.output("'x' in globals()") == "False\n"


async def test_variables_are_listed_without_the_functions(repl: Repl) -> None:
    await repl.output(
        "import json\nbig = 'a' * 10_000_000\nn = 3\n_hidden = 1\n"
        "class Odd:\n    def __repr__(self): return 1 / 0\n    def __len__(self): return -1\n"
        "odd = Odd()"
    )
    with anyio.fail_after(5):
        listed = {variable.name: variable for variable in await repl.kernel.variables()}
    assert list(listed) == ["json", "big", "n", "Odd", "odd"]
    assert (listed["big"].type, listed["big"].length) == ("str", 10_000_000)
    assert len(listed["big"].preview) <= 200
    assert listed["n"].preview == "3"
    assert listed["odd"].length is None
    assert "Odd instance" in listed["odd"].preview


async def test_names_that_are_no_text_do_no_harm(repl: Repl) -> None:
    await repl.output("globals()[5] = 1\nglobals()['x' * 5000] = 2")
    assert await repl.output("1") == "1\n"
    assert [len(variable.name) for variable in await repl.kernel.variables()] == [80]


@pytest.mark.parametrize("breaks", ["'\u2028'", "'\x0c'", "'\x1c\x85'", "1 #\x0b"])
async def test_an_error_shows_the_line_that_python_means(repl: Repl, breaks: str) -> None:
    error = await repl.error(f"x = {breaks}\ny = 1\nassert y == 2, 'no'")
    assert "Cell 1, line 3, in <module>\n    assert y == 2, 'no'" in error


async def test_the_source_of_classes_is_found(repl: Repl) -> None:
    await repl.output("class A:\n    def f(self):\n        return 1\nclass B:\n    x = 1")
    await repl.output("class C(A):\n    'Another.'")
    code = "import inspect\nprint(inspect.getsource(A), inspect.getsource(B), inspect.getsource(C))"
    output = await repl.output(code)
    assert "def f(self):\n        return 1" in output
    assert "class B:\n    x = 1" in output
    assert "class C(A):\n    'Another.'" in output
    assert "def loads" in await repl.output("import inspect, json; inspect.getsource(json)")
