"""Functions of the REPL return plain values, can be awaited, and run at once where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from repl import FUNCTIONS, Host, Repl

from vers_rlm_mcp.kernel import Kernel

if TYPE_CHECKING:
    from pydantic import JsonValue

    from vers_rlm_mcp.kernel import HostCall
    from vers_rlm_mcp.testing import FakeMachine

WIDTH = 6


class Together(Host):
    """Answers no call before all are there."""

    def __init__(self) -> None:
        super().__init__()
        self.all_there = anyio.Event()

    async def __call__(self, call: HostCall) -> JsonValue:
        self.calls.append(call)
        if len(self.calls) == WIDTH:
            self.all_there.set()
        with anyio.fail_after(10):
            await self.all_there.wait()
        return call.arguments.get("prompt", call.name)


PS = f"ps = [f'p{{i % 3}}' for i in range({WIDTH})]\nimport asyncio\n"
ANSWERS = "['p0', 'p0', 'p1', 'p1', 'p2', 'p2']\n"

AT_ONCE = {
    "gather": "r = await asyncio.gather(*[llmQuery(p) for p in ps])",
    "gather of a generator": "r = await asyncio.gather(*(llm_query(p) for p in ps))",
    "gather of a map": "r = await asyncio.gather(*map(llmQuery, ps))",
    "gather of a variable": "tasks = [llmQuery(p) for p in ps]\nr = await asyncio.gather(*tasks)",
    "gather of what was appended": "tasks = []\nfor p in ps:\n    tasks.append(llmQuery(p))\n"
    "r = await asyncio.gather(*tasks)",
    "gather by its own name": "from asyncio import gather\n"
    "r = await gather(*[llmQuery(p) for p in ps])",
    "gather of functions": "async def ask(p):\n    return await llmQuery(p)\n"
    "r = await asyncio.gather(*[ask(p) for p in ps])",
    "gather in a function": "async def main():\n"
    "    return await asyncio.gather(*[llmQuery(p) for p in ps])\nr = await main()",
    "asyncio.run": "async def main():\n"
    "    return await asyncio.gather(*[llmQuery(p) for p in ps])\nr = asyncio.run(main())",
    "as_completed": "r = []\nfor each in asyncio.as_completed([llmQuery(p) for p in ps]):\n"
    "    r.append(await each)",
    "as_completed of a set": "r = []\ntasks = set()\nfor p in ps:\n    tasks.add(llmQuery(p))\n"
    "for each in asyncio.as_completed(tasks):\n    r.append(await each)",
    "wait": "done, _ = await asyncio.wait([llmQuery(p) for p in ps])\n"
    "r = [each.result() for each in done]",
    "create_task": "tasks = [asyncio.create_task(llmQuery(p)) for p in ps]\n"
    "r = [await task for task in tasks]",
    "ensure_future": "tasks = [asyncio.ensure_future(llmQuery(p)) for p in ps]\n"
    "r = await asyncio.gather(*tasks)",
    "create_task of a function": "async def ask(p):\n    return await llmQuery(p)\n"
    "tasks = [asyncio.create_task(ask(p)) for p in ps]\nr = [await task for task in tasks]",
    "awaited one by one": "tasks = [llmQuery(p) for p in ps]\nr = []\n"
    "for task in tasks:\n    r.append(await task)",
    "a dict of them": "tasks = {i: llmQuery(p) for i, p in enumerate(ps)}\n"
    "r = await asyncio.gather(*tasks.values())",
    "wait_for": "r = await asyncio.gather(*[asyncio.wait_for(llmQuery(p), 30) for p in ps])",
    "threads": "from concurrent.futures import ThreadPoolExecutor\n"
    "with ThreadPoolExecutor(6) as pool: r = list(pool.map(llmQuery, ps))",
    "TaskGroup": "if hasattr(asyncio, 'TaskGroup'):\n    async with asyncio.TaskGroup() as group:\n"
    "        tasks = [group.create_task(llmQuery(p)) for p in ps]\n"
    "    r = [task.result() for task in tasks]\n"
    "else:\n    r = await asyncio.gather(*[llmQuery(p) for p in ps])",
}


@pytest.mark.parametrize("name", AT_ONCE)
async def test_calls_run_at_once_however_they_are_awaited(machine: FakeMachine, name: str) -> None:
    kernel = await Kernel.connect(machine, home_id="home", functions=FUNCTIONS)
    try:
        assert await Repl(kernel, Together()).output(f"{PS}{AT_ONCE[name]}\nsorted(r)") == ANSWERS
    finally:
        await kernel.aclose()


@pytest.mark.parametrize(
    "code",
    [
        "type(llmQuery('a')), llmQuery('a') == 'a'",
        "type(await llmQuery('a')), (await llmQuery('a')) == 'a'",
        "x = llmQuery('a')\ntype(x), (await x) == 'a'",
        "x = llmQuery('a')\ny = await llmQuery(x)\ntype(y), y == 'a'",
        "import json\ntype(json.loads(json.dumps(llmQuery('a')))), llmQuery('a') is not None",
        "import asyncio\nx = asyncio.run(llmQuery('a'))\ntype(x), x == 'a'",
        "async def f(): return llmQuery('a')\nx = await f()\ntype(x), x == 'a'",
        "import asyncio\nf = lambda: llmQuery('a')\n"
        "type(f()), (await asyncio.gather(f())) == ['a']",
    ],
)
async def test_results_are_plain_values(repl: Repl, code: str) -> None:
    assert await repl.output(code) == "(<class 'str'>, True)\n"


async def test_values_of_an_earlier_cell_are_awaited_one_by_one(repl: Repl) -> None:
    await repl.output("tasks = [llmQuery(p) for p in ('a', 'a', 'b')]")
    code = "import asyncio\nprint(await asyncio.gather(*tasks))\n"
    code += "r = [await each for each in asyncio.as_completed(tasks)]\nsorted(r)"
    assert await repl.output(code) == "['a', 'a', 'b']\n['a', 'a', 'b']\n"
    assert len(repl.host.calls) == 3


@pytest.mark.parametrize(
    "code",
    [
        "import asyncio\nawait asyncio.gather(vmRestore('x'), llmQuery('a'))",
        "await vmRestore('x')",
        "import asyncio\nasync with asyncio.timeout(9):\n    await vmRestore('x')",
    ],
)
async def test_what_the_host_refuses_is_raised_where_it_is_awaited(repl: Repl, code: str) -> None:
    if "timeout" in code:
        await repl.output("import asyncio\nasyncio.timeout = getattr(asyncio, 'timeout', None)")
        if await repl.output("asyncio.timeout is None") == "True\n":
            return
    error = await repl.error(code)
    assert "There is no such commit" in error
    assert "__concurrent__" not in error


async def test_a_name_of_the_repl_that_a_cell_uses_for_its_own_is_left_alone(repl: Repl) -> None:
    code = "async def f(budget):\n    return await budget('a')\nasync def g(x): return x * 2\n"
    assert await repl.output(f"{code}await f(g)") == "'aa'\n"


async def test_functions_that_await_are_saved_with_the_variables(repl: Repl) -> None:
    await repl.output("async def ask(p):\n    return await llmQuery(p)\nawait ask('a')")
    carried = await repl.kernel.save_variables()
    assert "ask" in carried.kept


async def test_a_command_that_nothing_waits_for_any_more_is_killed(repl: Repl) -> None:
    code = "import asyncio, os, time\ntry:\n"
    code += "    await asyncio.wait_for(exec('echo $$ > pid; exec sleep 60'), 0.5)\n"
    code += "except asyncio.TimeoutError:\n    print('late')\n"
    code += "while os.path.exists('/proc/' + open('pid').read().strip()): time.sleep(0.01)"
    assert await repl.output(code) == "late\n"
