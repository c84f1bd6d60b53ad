"""Models that say nothing, or nonsense, or write code that does not end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import users

if TYPE_CHECKING:
    from users import User

IGNORES_INTERRUPTS = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
while True:
    pass
"""

CATCHES_ALL = """
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
"""

HOLDS_THE_INTERPRETER = """
import re
re.match("(a+)+$", "a" * 40 + "b")
"""


@pytest.mark.parametrize(
    "reply",
    ["--- reply\nIt is 42, I think.", "--- reply\n```\n```"],
)
async def test_a_reply_without_code_is_answered_with_what_to_do_and_the_run_continues(
    user: User, reply: str
):
    result = await user.run(reply, "FINAL(42)")
    assert result["outputs"] == {"answer": 42}
    assert "```python" in result["trajectory"][0]["output"]


@pytest.mark.parametrize("reply", ["--- reply", "--- reply\n   \n\t"])
async def test_an_empty_reply_is_no_step(user: User, reply: str):
    result = await user.run(reply, "FINAL(42)", maxIterations=1)
    assert (result["outputs"], result["steps"]) == ({"answer": 42}, 1)


async def test_a_model_that_never_writes_code_ends_at_the_last_iteration(user: User):
    silent = ["--- reply\nI think."] * 5
    result = await user.run(*silent, signature="-> answer: int", maxIterations=3)
    assert result["status"] == "partial"
    assert result["steps"] == 3
    assert await user.vm_ids() == []


@pytest.mark.parametrize(
    "code",
    ["while True: pass", IGNORES_INTERRUPTS, CATCHES_ALL, HOLDS_THE_INTERPRETER],
    ids=["loop", "ignores interrupts", "catches everything", "holds the interpreter"],
)
async def test_code_that_never_ends_is_stopped_and_the_model_told(user: User, code: str):
    started = time.monotonic()
    told = users.cell("FINAL('told')").replace("reply", r"reply when='(?s)lost.*\bkept\b'", 1)
    result = await user.run("kept = 1", code, told, "FINAL('kept' in globals())")
    assert time.monotonic() - started < 20
    assert result["outputs"]["answer"] in (True, "told"), result
    assert "2 s" in result["trajectory"][1]["output"], result


async def test_a_command_that_never_ends_is_stopped_with_all_that_it_started(user: User):
    command = "trap '' TERM INT; sleep 86399 & while :; do sleep 1; done"
    result = await user.call("exec", command=command, timeout=1)
    assert result["timed_out"], result
    assert await user.exec("pgrep -f '^sleep 86399' || true") == ""
    await user.call("vmDelete", vmId=result["vm_id"])


async def test_a_cell_of_the_repl_that_never_ends_is_stopped(user: User):
    result = await user.call("python", code="while True: pass")
    assert result["status"] == "timeout", result
    assert (await user.call("python", code="6 * 7"))["output"].strip() == "42"
    await user.call("vmDelete", vmId=result["vm_id"])


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(3)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
        "import os; os.close(0); os.close(1); os.close(2); [os.close(n) for n in range(3, 30)]",
    ],
    ids=["exits", "kills itself", "overflows the stack", "closes its descriptors"],
)
async def test_code_that_ends_its_own_kernel_is_reported_and_the_run_continues(
    user: User, code: str
):
    result = await user.run("kept = 1", code, "FINAL(exec('echo alive').stdout)")
    assert result["outputs"] == {"answer": "alive\n"}, result
    assert result["trajectory"][1]["output"], result


async def test_text_that_has_no_utf_8_passes_through_a_run(user: User):
    code = "print('\\udcff \\ud800'); writeFile('f', b'\\xff'); FINAL(answer='\\udcff')"
    result = await user.run(code)
    assert result["status"] == "finished"
    assert await user.vm_ids() == []


async def test_an_error_that_names_what_has_no_utf_8_passes_through_a_run(user: User):
    result = await user.run(
        "raise ValueError('\\udcff')", "readFile('\\udcff')", "llmQuery('\\udcff')", "FINAL(1)"
    )
    assert result["outputs"] == {"answer": 1}
