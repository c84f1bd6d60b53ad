from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.kernel.wire import MAX_PAYLOAD
from vers_rlm_mcp.values import Final

if TYPE_CHECKING:
    from repl import Repl


async def final(repl: Repl, code: str) -> Final:
    result = await repl(code)
    assert result.status == "final", result
    assert result.final
    return result.final


async def test_final_ends_the_cell_with_its_values(repl: Repl) -> None:
    result = await repl("print('before')\nFINAL(answer='a', score=1.5)\nprint('after')")
    assert (result.status, result.output, result.error) == ("final", "before\n", None)
    assert result.final == Final([], {"answer": "a", "score": 1.5})
    assert await final(repl, "FINAL(1, 'b')") == Final([1, "b"], {})


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    FINAL(x=1)\nexcept Exception:\n    pass",
        "try:\n    FINAL(x=1)\nexcept:\n    pass\nprint('went on')",
        "try:\n    FINAL(x=1)\nexcept:\n    FINAL(x='failed')",
        "try:\n    FINAL(x=1)\nfinally:\n    1 / 0",
        "import threading\nt = threading.Thread(target=lambda: FINAL(x=1))\nt.start()\nt.join()",
        "import asyncio\nasync def f(): FINAL(x=1)\nawait asyncio.gather(f())",
        "async def f(): FINAL(x=1)\nf()",
    ],
)
async def test_final_cannot_be_swallowed(repl: Repl, code: str) -> None:
    assert await final(repl, code) == Final([], {"x": 1})


async def test_after_a_final_the_kernel_continues_as_before(repl: Repl) -> None:
    await final(repl, "x = 1\nFINAL(x=x)")
    assert await repl.output("x") == "1\n"


async def test_values_of_every_common_kind_become_json(repl: Repl) -> None:
    value = await final(
        repl,
        "import dataclasses, datetime, pathlib, collections, enum, uuid, decimal\n"
        "@dataclasses.dataclass\n"
        "class P:\n    x: int\n    y: tuple\n"
        "class Color(enum.Enum):\n    RED = 'red'\n"
        "N = collections.namedtuple('N', 'a b')\n"
        "FINAL(p=P(1, (2, 3)), s={3, 1, 2}, d=datetime.date(2026, 1, 2), f=pathlib.Path('/a'),\n"
        "      n=N(1, None), k={1: True, None: 2.5}, e=Color.RED, r=range(3),\n"
        "      q=collections.deque([1]), u=uuid.UUID(int=5), c=decimal.Decimal('1.5'),\n"
        "      keys={'a': 1}.keys(), out=exec('echo hi'))",
    )
    assert value.kwargs == {
        "p": {"x": 1, "y": [2, 3]},
        "s": [1, 2, 3],
        "d": "2026-01-02",
        "f": "/a",
        "n": {"a": 1, "b": None},
        "k": {"1": True, "None": 2.5},
        "e": "red",
        "r": [0, 1, 2],
        "q": [1],
        "u": "00000000-0000-0000-0000-000000000005",
        "c": 1.5,
        "keys": ["a"],
        "out": "hi",
    }


async def test_objects_that_say_how_become_json(repl: Repl) -> None:
    value = await final(
        repl,
        "class Array:\n    def tolist(self): return [[1.0], [2.0]]\n"
        "class Model:\n    def model_dump(self): return {'a': Array()}\n"
        "class DataFrame:\n    def to_dict(self, orient): return [{'x': orient}]\n"
        "FINAL(m=Model(), d=DataFrame())",
    )
    assert value.kwargs == {"m": {"a": [[1.0], [2.0]]}, "d": [{"x": "records"}]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("float('nan')", "FINAL: x is nan, which JSON cannot hold; use None"),
        ("{'a': [1, float('inf')]}", "FINAL: x['a'][1] is inf"),
        ("b'bytes'", "FINAL: x is a bytes, which cannot be handed over as JSON; decode it"),
        ("(i for i in [1])", "make a list of it"),
        ("object()", "FINAL: x is a object, which cannot be handed over as JSON"),
        ("{(1, 2): 3}", "has the key (1, 2) of type tuple"),
        ("1 << 100_000", "a number too large for JSON"),
        ("[0] * 600_000", "more than 500000 values"),
        ("[0] * 600_000", "write it to a file and hand in the path"),
        ("'x' * 40_000_000", "over the limit"),
    ],
)
async def test_a_value_that_cannot_be_json_is_an_error_at_the_call(
    repl: Repl, value: str, message: str
) -> None:
    error = await repl.error(f"value = {value}\nFINAL(x=value)")
    assert message in error
    assert "Cell 1, line 2" in error


async def test_a_value_that_only_just_fits_does_no_harm(repl: Repl) -> None:
    await repl.output("a = 1\nimport json")
    result = await repl(f"FINAL(x='x' * ({MAX_PAYLOAD} - 40))")
    assert result.status in {"final", "error"}
    assert result.final or "too large to hand over" in (result.error or "")
    assert await repl.output("a") == "1\n"


async def test_a_value_that_contains_itself_is_an_error(repl: Repl) -> None:
    assert "nested deeper" in await repl.error("x = []\nx.append(x)\nFINAL(x)")


async def test_text_that_utf8_cannot_carry_is_cleaned(repl: Repl) -> None:
    value = await final(repl, "FINAL(x='a\\udcff', y={'\\ud800': 1})")
    assert value.kwargs == {"x": "a?", "y": {"?": 1}}


async def test_final_without_values_says_what_it_needs(repl: Repl) -> None:
    assert "FINAL(answer=value)" in await repl.error("FINAL()")


async def test_final_var_hands_in_variables_by_name(repl: Repl) -> None:
    await repl.output("a, b = 1, 2")
    assert await final(repl, "FINAL_VAR('a')") == Final([1], {})
    assert await final(repl, "FINAL_VAR('a', 'b')") == Final([], {"a": 1, "b": 2})
    assert await final(repl, "FINAL_VAR(answer='b')") == Final([], {"answer": 2})
    assert "no variable 'c'" in await repl.error("FINAL_VAR('c')")
    assert "FINAL_VAR takes names" in await repl.error("FINAL_VAR(b)")
