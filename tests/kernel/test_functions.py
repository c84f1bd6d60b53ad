from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated

import pytest
from pydantic import Field
from repl import FUNCTIONS, NAMES, Host, Repl, ended

from vers_rlm_mcp.kernel import Carried, HostCall, Kernel
from vers_rlm_mcp.rlm import system_prompt
from vers_rlm_mcp.runs import declarations

if TYPE_CHECKING:
    from vers_rlm_mcp.testing import FakeMachine


async def test_cells_have_what_is_declared_under_both_names_and_no_more(repl: Repl) -> None:
    output = await repl.output("sorted(n for n in globals() if n[0] != '_')")
    assert output == f"{sorted({*NAMES, 'FINAL', 'FINAL_VAR'})!r}\n"


async def test_a_kernel_that_runs_learns_what_a_later_host_declares(machine: FakeMachine) -> None:
    first = await Kernel.connect(machine, home_id="home", functions=FUNCTIONS[:3])
    assert await Repl(first, Host()).output("budget = 5; len(globals()['exec']('echo'))") == "0\n"
    assert "NameError" in await Repl(first, Host()).error("vmSwitch('m1')")
    await first.aclose()
    later = await Kernel.connect(machine, home_id="home", functions=FUNCTIONS)
    output = await Repl(later, Host()).output("print(budget, vmSwitch('m1'))")
    assert output.startswith("5 vmSwitch\n[budget is a function of this REPL and was put back")
    await later.aclose()


async def test_one_method_declares_what_models_are_shown_and_cells_can_call(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declarations, "_DECLARED", {})

    @declarations.repl_function("greet someone; returns the greeting")
    async def say_hello(
        self: object,
        id: str,  # noqa: A002 - has aliases
        count: Annotated[int, Field(ge=1)] = 1,
        carried: object = None,
    ) -> None:
        """Answered by the test's own host."""

    functions = declarations.repl_functions()
    assert "\n- `sayHello(id, count=1)`: greet someone; returns the greeting\n" in system_prompt(
        functions
    )
    assert declarations.reserved_names() == {"sayHello", "say_hello"}
    kernel = await Kernel.connect(machine, home_id="home", functions=functions)
    repl = Repl(kernel, Host())
    assert await repl.output("x = 1; print(await say_hello(vm='m1', n=2))") == "sayHello\n"
    [call] = repl.host.calls
    assert (call.name, call.arguments) == ("sayHello", {"id": "m1", "count": 2})
    assert call.carried == Carried(("x",), {})
    assert "sayHello: id must be a str, not int" in await repl.error("sayHello(5)")
    assert "call sayHello(id, count=1)" in await repl.error("sayHello('m1', 2, 3)")
    await kernel.aclose()


async def test_functions_stay_the_same_objects_while_hosts_declare_the_same(
    machine: FakeMachine,
) -> None:
    for code in ("run = exec", "assert run is exec"):
        kernel = await Kernel.connect(machine, home_id="home", functions=FUNCTIONS)
        await Repl(kernel, Host()).output(code)
        await kernel.aclose()


@pytest.mark.parametrize("call", ["exec('{}')", "await exec('{}')", "exec(cmd='{}')"])
async def test_a_command_returns_what_it_printed(repl: Repl, call: str) -> None:
    code = call.format("echo out; echo err >&2; exit 3")
    assert await repl.output(f"print({code})") == "out\nerr\n[exit code: 3]\n"
    await repl.output(f"r = {code}")
    assert await repl.output("r.stdout, r.stderr, r.exit_code") == "('out\\n', 'err\\n', 3)\n"


async def test_the_echo_of_a_command_is_what_it_printed(repl: Repl) -> None:
    assert await repl.output("exec('printf \"a\\nb\"')") == "a\nb\n"


async def test_output_of_commands_that_is_no_text_is_replaced(repl: Repl) -> None:
    assert await repl.output(r"exec('printf \"\\xff\"')") == "�\n"


@pytest.mark.assumes("host")
async def test_a_command_over_its_time_is_killed_in_whatever_session_it_runs(repl: Repl) -> None:
    text = await repl.output(
        "r = exec('setsid -w sh -c \"echo $$; sleep 99; true\"', timeout=0.5)\n"
        "import os, time\n"
        "while os.path.exists(f'/proc/{int(r.stdout)}'): time.sleep(0.01)\n"
        "print(r.exit_code)"
    )
    assert text == "None\n"


async def test_a_command_over_its_time_is_killed_with_its_children(repl: Repl) -> None:
    output = await repl.output(
        "r = exec('sleep 99 & echo $!; wait', timeout=0.2)\nprint(r, r.exit_code)"
    )
    pid, text = output.split("\n", 1)
    assert text == "[timed out and was killed] None\n"
    await ended(int(pid))


async def test_a_background_process_does_not_keep_a_command_from_returning(repl: Repl) -> None:
    output = await repl.output(
        "import os, time\n"
        "print(exec('(until [ -e go ]; do sleep 0.01; done; echo late; touch done) & echo now'))\n"
        "writeFile('go', '')\n"
        "while not os.path.exists('done'): time.sleep(0.01)"
    )
    assert output == "now\n"


async def test_output_of_commands_is_kept_within_bounds(repl: Repl) -> None:
    output = await repl.output(
        "import resource\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "r = exec('head -c 200000000 /dev/zero | tr \"\\\\0\" x; echo end')\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "len(r) < 9_000_000, r[-10:], 'bytes left out' in r, grown < 60_000"
    )
    assert output == "(True, 'xxxxxxxend', True, True)\n"


async def test_text_and_bytes_are_written_and_read_back(repl: Repl) -> None:
    output = await repl.output(
        "n = await writeFile('a b/$(x)/ü.txt', 'hällo')\n"
        "write_file(filename='raw', contents=b'\\xff')\n"
        "n, read_file('a b/$(x)/ü.txt'), await readFile(path='raw', binary=True)"
    )
    assert output == "(6, 'hällo', b'\\xff')\n"


async def test_reading_what_is_no_text_says_how_to_get_the_bytes(repl: Repl) -> None:
    error = await repl.error("writeFile('raw', b'\\xff')\nreadFile('raw')")
    assert "readFile(path, binary=True)" in error


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("readFile('missing')", "No such file or directory: 'missing'"),
        ("readFile('/')", "'/'"),
        ("import os; os.mkfifo('pipe'); readFile('pipe')", "not a regular file"),
        ("readFile('/dev/zero')", "not a regular file"),
        ("readFile(5.5)", "a path must be a str, not float"),
        ("writeFile('x', 5)", "content must be a str or bytes, not int"),
        ("exec(['ls'])", "command must be a str, not list"),
        ("exec('ls', timeout='soon')", "timeout must be a number of seconds"),
        ("exec()", "call exec(command, timeout=None)"),
        ("exec('ls', 1, 2)", "call exec(command, timeout=None)"),
        ("exec('ls', shell=True)", "shell= does not fit: call exec(command, timeout=None)"),
        ("exec('ls', command='x')", "command= does not fit"),
        ("llmQuery(['a', 'b'])", "llmQueryBatched(prompts)"),
        ("llmQuery(5)", "must be a str, not int"),
        ("llmQueryBatched('a')", "takes a list of prompts"),
        ("llmQueryBatched(['a', 5])", "llmQueryBatched(prompts[1]) must be a str"),
        ("vmBranch('two')", "count must be an int"),
    ],
)
async def test_wrong_arguments_are_answered_with_what_is_right(
    repl: Repl, code: str, message: str
) -> None:
    assert message in await repl.error(code)
    assert repl.host.calls == []


@pytest.mark.parametrize(
    "code",
    [
        "llmQueryBatched(['a', 'b'])",
        "llm_query_batched(queries=['a', 'b'])",
        "await llm_query_batched(prompts=('a', 'b'))",
        "llmQueryBatched(x for x in 'ab')",
    ],
)
async def test_batched_queries_are_one_call_whatever_the_argument_is_named(
    repl: Repl, code: str
) -> None:
    assert await repl.output(code) == "['re: a', 're: b']\n"
    assert repl.host.calls == [HostCall("llmQueryBatched", {"prompts": ["a", "b"]})]


async def test_no_prompts_are_no_call(repl: Repl) -> None:
    assert await repl.output("llmQueryBatched([])") == "[]\n"
    assert repl.host.calls == []


async def test_queries_can_be_gathered_as_if_they_were_asynchronous(repl: Repl) -> None:
    output = await repl.output(
        "import asyncio\nawait asyncio.gather(llmQuery('a'), llm_query(prompt='b'))"
    )
    assert output == "['a', 'b']\n"


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("currentVmId()", HostCall("currentVmId", {})),
        ("vm_switch(vm_id='m1')", HostCall("vmSwitch", {"id": "m1"})),
        ("budget()", HostCall("budget", {})),
    ],
)
async def test_functions_of_the_host_are_calls(repl: Repl, code: str, call: HostCall) -> None:
    assert await repl.output(f"print(await {code})") == f"{call.name}\n"
    assert repl.host.calls == [call]


async def test_a_refused_call_is_an_exception_with_the_hosts_text(repl: Repl) -> None:
    error = await repl.error("vmRestore('c3')")
    assert error.endswith("There is no such commit; the valid ones are c1 and c2.")
    assert await repl.output("try:\n    vmRestore('c3')\nexcept Exception as e: print('caught')")


async def test_on_another_machine_commands_and_files_go_through_the_host(repl: Repl) -> None:
    answers = {
        "exec": {"stdout": "there\n", "stderr": "", "exit_code": 1},
        "readFile": base64.b64encode(b"text").decode(),
        "writeFile": 3,
    }

    async def handler(call: HostCall) -> object:
        repl.host.calls.append(call)
        return answers[call.name]

    await repl.kernel.set_current("other")
    result = await repl.kernel.run(
        "print(exec('ls'), readFile('a\\udcff'), readFile('b', binary=True), writeFile('c', 'ab'))",
        timeout=10,
        handler=handler,  # type: ignore[arg-type]
    )
    assert result.output == "there\n[exit code: 1] text b'text' 3\n"
    assert repl.host.calls == [
        HostCall("exec", {"command": "ls", "timeout": None}),
        HostCall("readFile", {"path": "a\udcff"}),
        HostCall("readFile", {"path": "b"}),
        HostCall("writeFile", {"path": "c", "base64": "YWI="}),
    ]


async def test_switching_in_the_midst_of_a_cell_acts_at_once(repl: Repl) -> None:
    async def handler(call: HostCall) -> object:
        if call.name == "vmSwitch":
            await repl.kernel.set_current(str(call.arguments["id"]))
            return None
        return {"stdout": "other", "stderr": "", "exit_code": 0}

    result = await repl.kernel.run(
        "print(exec('echo home'))\nvmSwitch('other')\nprint(exec('echo home'))",
        timeout=10,
        handler=handler,  # type: ignore[arg-type]
    )
    assert result.output == "home\nother\n"


async def test_a_function_that_a_cell_overwrites_is_put_back_with_a_note(repl: Repl) -> None:
    assert "exec is a function of this REPL and was put back" in await repl.output("exec = 5")
    assert "budget is a function" in await repl.output("del budget")
    assert await repl.output("print(exec('echo hi'), budget())") == "hi budget\n"


async def test_a_wrong_call_can_be_looked_up(repl: Repl) -> None:
    output = await repl.output("help(llm_query_batched)")
    assert "llmQueryBatched(prompts" in output
    assert "ask many at once; returns their texts, in order" in output


async def test_prompts_that_utf8_cannot_carry_are_cleaned(repl: Repl) -> None:
    assert await repl.output("llmQuery('a\\udcffb')") == "'a?b'\n"


async def test_a_prompt_too_large_to_send_is_an_error_in_the_cell(repl: Repl) -> None:
    assert "over the limit" in await repl.error("llmQuery('x' * 40_000_000)")
    assert "more than 10000 values" in await repl.error("llmQueryBatched(['x'] * 20_000)")
    assert await repl.output("llmQuery('still here')") == "'still here'\n"


async def test_a_command_that_cannot_be_started_says_what_to_do(repl: Repl) -> None:
    await repl.output("import os, resource\nos.environ['BIG'] = 'x' * 200_000")
    assert "put what is long into a file" in await repl.error("exec('true')")
    await repl.output("del os.environ['BIG']\nfiles = []")
    code = "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
    code += "try:\n    while True: files.append(open('/dev/null'))\nexcept OSError: pass\n"
    assert "close some" in await repl.error(f"{code}exec('true')")
    assert await repl.output("del files\nexec('echo again')") == "again\n"


@pytest.mark.parametrize(
    "call",
    [
        "exec('y = 10')",
        "exec('y=10')",
        "exec('print(1)')",
        "exec('import os')",
        "exec('for i in range(3):\\n    print(i)')",
        "exec('x += 1', globals())",
        "exec('ls', {})",
        "exec(compile('1', 'f', 'exec'))",
        "exec('def f(): return 1')",
        "exec('y = 10', timeout=5)",
        "exec(code='y = 10')",
        "exec('# set it\\ny = 10')",
        "exec('x: int = 1')",
    ],
)
async def test_python_is_not_run_as_a_command(repl: Repl, call: str) -> None:
    error = await repl.error(call)
    assert "exec runs a shell command here, and this is Python" in error
    assert "builtins.exec(code, globals())" in error


@pytest.mark.parametrize(
    "command",
    [
        *("ls", "ls -l", "true", "cd / && ls", "pwd", "x=1; echo $x", "echo 1", "set -e"),
        *("cat /dev/null", "DEBUG=1 true", "python3 -c 'print(1)'", "ls\\npwd", "no_such_program"),
        *("f() { true; }; f", "x=1\\nls", "test 1 -eq 1", ": nothing"),
    ],
)
async def test_a_command_is_run_though_it_may_be_python_too(repl: Repl, command: str) -> None:
    assert await repl.output(f'r = exec("{command}"); r.returncode == r.exit_code') == "True\n"


async def test_python_runs_code_by_its_own_function(repl: Repl) -> None:
    assert await repl.output("import builtins; builtins.exec('y = 10', globals()); y") == "10\n"


async def test_reading_a_directory_says_what_it_is(repl: Repl) -> None:
    error = await repl.error("exec('mkdir -p d')\nreadFile('d')")
    assert "'d' is a directory; os.listdir('d') lists it" in error


async def test_threads_that_leave_the_workplace_at_once_come_back_to_it(repl: Repl) -> None:
    code = (
        "import os, threading\nbefore = os.getcwd()\n"
        "ts = [threading.Thread(target=rlmQuery, args=('a',)) for _ in range(8)]\n"
        "for t in ts: t.start()\nfor t in ts: t.join()\nos.getcwd() == before, before != '/'"
    )
    assert await repl.output(code) == "(True, True)\n"
