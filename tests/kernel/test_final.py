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
    assert "call FINAL('c')" in await repl.error("FINAL_VAR('c')")


@pytest.mark.parametrize(
    ("code", "handed_in"),
    [
        ("FINAL_VAR(b)", Final([2], {})),
        ("FINAL_VAR(text)", Final(["a"], {})),
        ("FINAL_VAR(answer=text)", Final([], {"answer": "a"})),
        ("FINAL_VAR('text')", Final(["a"], {})),
        ("FINAL_VAR(f'{text}')", Final(["a"], {})),
        ("FINAL_VAR(text.upper())", Final(["A"], {})),
        ("FINAL_VAR(text, b)", Final(["a", 2], {})),
        ("FINAL_VAR([text])", Final([["a"]], {})),
        ("FINAL_VAR('It is red.')", Final(["It is red."], {})),
        ("FINAL_VAR(42)", Final([42], {})),
        ("def f():\n    a = 5\n    FINAL_VAR('a')\nf()", Final([5], {})),
        ("def f():\n    a = 5\n    FINAL_VAR(a)\nf()", Final([5], {})),
    ],
)
async def test_final_var_takes_values_too(repl: Repl, code: str, handed_in: Final) -> None:
    await repl.output("a, b, text = 1, 2, 'a'")
    assert await final(repl, code) == handed_in


async def test_an_error_of_final_var_quotes_little_of_a_long_name(repl: Repl) -> None:
    assert "NameError: FINAL_VAR: there is no variable 'xxx" in (
        error := await repl.error(f"FINAL_VAR('{'x' * 5_000}')")
    )
    assert error.count("x") < 5_000 + 300


LOSSY = [
    ("{1: 'x', '1': 'y'}", "several keys that are '1' in JSON"),
    ("{None: 1, 'None': 2}", "several keys that are 'None'"),
    ("{True: 1, 'True': 2}", "several keys that are 'True'"),
    ("[{'a': {1.5: 1, '1.5': 2}}]", "FINAL: x[0]['a'] has several keys"),
    ("decimal.Decimal('0.1234567890123456789')", "a Decimal that no float equals"),
    ("decimal.Decimal('1e-400')", "a Decimal that no float equals"),
    ("decimal.Decimal('NaN')", "is nan"),
    ("memoryview(b'ab')", "decode it"),
    ("Series([1, 2], ['a', 'b'])", "a Series whose labels a list would lose"),
    ("DataFrame(Index('a'), ['x'])", "a DataFrame whose labels its records would lose"),
    ("DataFrame(RangeIndex(), ['x', 'x'])", "columns of the same name"),
    ("Named()", "an array with named fields"),
    ("NaTType()", "is NaT"),
    ("fractions.Fraction(1, 3)", "is a Fraction, which cannot be handed over"),
    ("datetime.timedelta(1)", "is a timedelta, which cannot be handed over"),
    ("1j", "is a complex, which cannot be handed over"),
]
KEPT = [
    ("decimal.Decimal('0.1')", 0.1),
    ("decimal.Decimal('2')", 2),
    ("decimal.Decimal('123456789012345678901234567890')", 123456789012345678901234567890),
    ("Series([1, 2], None)", [1, 2]),
    ("DataFrame(RangeIndex(), ['x'])", [{"x": 1}]),
    ("Dates()", ["2026-01-02T03:04:05.000000006"]),
    ("Shout('quiet')", "quiet"),
    ("2**70", 2**70),
]
KINDS = """
import decimal, fractions, datetime
class RangeIndex: pass
class Index:
    def __init__(self, label): pass
class Series:
    iloc = None
    def __init__(self, values, labels):
        self.values, self.index = values, Index('') if labels else RangeIndex()
    def tolist(self): return self.values
class DataFrame:
    iloc = None
    def __init__(self, index, columns): self.index, self.columns = index, columns
    def to_dict(self, orient): return [dict.fromkeys(self.columns, 1)]
class NaTType:
    def isoformat(self): return 'NaT'
class Shout(str):
    def __str__(self): return self.upper()
class Type:
    kind, names = 'V', ('a',)
class Named:
    dtype = Type
    def tolist(self): return [(1,)]
class DateType:
    kind, names = 'M', None
class Texts:
    def tolist(self): return ['2026-01-02T03:04:05.000000006']
class Dates:
    dtype = DateType
    def astype(self, kind): return Texts()
    def tolist(self): return [1767323045000000006]
"""


@pytest.mark.parametrize(("value", "message"), LOSSY)
async def test_nothing_of_a_value_is_lost_in_silence(repl: Repl, value: str, message: str) -> None:
    assert message in await repl.error(f"{KINDS}FINAL(x={value})")


@pytest.mark.parametrize(("value", "kept"), KEPT)
async def test_a_value_that_json_can_hold_is_kept(repl: Repl, value: str, kept: object) -> None:
    assert (await final(repl, f"{KINDS}FINAL(x={value})")).kwargs == {"x": kept}


WORKER = "def work(n):\n    FINAL(x=n)\n"
LATER = "import asyncio\nasync def f():\n    FINAL(x=1)\n"


@pytest.mark.parametrize(
    "code",
    [
        "import multiprocessing as m\nwith m.get_context('fork').Pool(2) as pool:\n"
        "    pool.map(work, [1, 2])",
        "import concurrent.futures as c, multiprocessing as m\n"
        "with c.ProcessPoolExecutor(1, m.get_context('fork')) as pool:\n"
        "    pool.submit(work, 1).result()",
        "import multiprocessing as m\nwith m.get_context('fork').Pool(1) as pool:\n"
        "    pool.map(FINAL, [1])",
    ],
)
async def test_a_forked_worker_cannot_answer_and_is_told_what_to_do(repl: Repl, code: str) -> None:
    error = await repl.error(WORKER + code)
    assert "FINAL: return the outputs from the worker, and call FINAL outside of it" in error
    assert await final(repl, "FINAL(x=2)") == Final([], {"x": 2})


async def test_a_forked_worker_cannot_call_the_host_and_is_told_what_to_do(repl: Repl) -> None:
    code = "import multiprocessing as m\nwith m.get_context('fork').Pool(1) as pool:\n"
    error = await repl.error(code + "    pool.map(llmQuery, ['a'])")
    assert "PicklingError" not in error
    assert "llmQuery cannot be called in a forked process: use threads" in error
    assert await repl.output("llmQuery('a')") == "'a'\n"


@pytest.mark.parametrize(
    "code",
    [
        "import concurrent.futures as c\nwith c.ThreadPoolExecutor(1) as pool:\n"
        "    pool.submit(lambda: FINAL(x=1)).result()",
        LATER + "task = asyncio.create_task(f())\nawait task",
        LATER + "await asyncio.gather(f(), return_exceptions=True)",
        "try:\n    FINAL(x=1)\nexcept BaseException as error:\n    kept = error\nraise kept",
    ],
)
async def test_an_answer_of_another_thread_or_task_is_an_answer(repl: Repl, code: str) -> None:
    assert await final(repl, code) == Final([], {"x": 1})


async def test_an_answer_that_is_raised_again_in_a_later_cell_is_that_answer(repl: Repl) -> None:
    code = "try:\n    FINAL(x=1)\nexcept BaseException as error:\n    kept = error"
    assert await final(repl, code) == Final([], {"x": 1})
    assert await final(repl, "raise kept") == Final([], {"x": 1})
    assert await repl.output("1") == "1\n"
