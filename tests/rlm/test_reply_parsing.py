"""What is run of a model's reply, and what JSON is found in it."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from vers_rlm_mcp.rlm.extraction import parse_objects
from vers_rlm_mcp.rlm.replies import parse_reply


def code(text: str) -> str:
    return parse_reply(text).code


@pytest.mark.parametrize(
    "tag", ["python", "py", "Python", "python3", "repl", "", 'python title="x"']
)
def test_a_block_of_python_is_code(tag: str) -> None:
    parsed = parse_reply(f"I look first.\n```{tag}\nprint(1)\n```\nThen more.")
    assert (parsed.code, parsed.reasoning) == ("print(1)", "I look first.\n\nThen more.")


@pytest.mark.parametrize(
    "text", ["", "The answer is 42.", "```bash\nls\n```", "```python\n\n```", "`FINAL(1)`"]
)
def test_a_reply_without_python_holds_no_code(text: str) -> None:
    assert code(text) == ""
    assert parse_reply(text).reasoning == text.strip()


def test_several_blocks_are_one_cell_in_their_order() -> None:
    assert code("```python\na = 1\n```\nand\n```py\nprint(a)\n```") == "a = 1\nprint(a)"


def test_blocks_that_are_not_python_are_left_alone() -> None:
    parsed = parse_reply("```json\n{}\n```\n```python\nx\n```\n```\noutput\n```")
    assert parsed.code == "x"
    assert "output" in parsed.reasoning


def test_a_later_block_that_answers_is_not_run_with_what_it_has_not_seen() -> None:
    text = "```python\nprint(n)\n```\nOutput: 3\n```python\nFINAL(answer=3)\n```\n```python\nx\n```"
    parsed = parse_reply(text)
    assert (parsed.code, parsed.left_out) == ("print(n)", 2)


def test_a_single_block_may_answer() -> None:
    assert parse_reply("```python\nx = 3\nFINAL(answer=x)\n```").left_out == 0


@pytest.mark.parametrize("quote", ['"""', "'''"])
def test_a_fence_inside_a_string_does_not_end_the_block(quote: str) -> None:
    inner = f"text = {quote}\n```\ncode\n```\n{quote}\nprint(text)"
    assert code(f"```python\n{inner}\n```\nDone.") == inner


def test_quotes_in_comments_and_strings_open_nothing() -> None:
    inner = 'a = "\'\'\'"  # don\'t say """\nb = \'\\\'"""\''
    assert code(f"```python\n{inner}\n```\n'''\n```python\nb\n```") == f"{inner}\nb"


def test_a_string_that_never_ends_does_not_swallow_the_reply() -> None:
    parsed = parse_reply('```python\nx = """abc\n```\nThat was it.')
    assert (parsed.code, parsed.reasoning) == ('x = """abc', "That was it.")


def test_a_longer_fence_holds_shorter_ones() -> None:
    assert code("````python\n```\nx\n```\n````") == "```\nx\n```"
    assert code("~~~python\n```\n~~~") == "```"


def test_a_block_without_an_end_is_code_to_the_end_and_says_so() -> None:
    parsed = parse_reply("```python\nprint(1)\nprint(2)")
    assert (parsed.code, parsed.closed) == ("print(1)\nprint(2)", False)


def test_an_indented_block_is_dedented() -> None:
    assert code("1. first\n   ```python\n   if a:\n       b\n   ```") == "if a:\n    b"


def test_windows_line_ends_are_line_ends() -> None:
    assert code("```python\r\na\r\nb\r\n```\r\n") == "a\nb"


@pytest.mark.parametrize(
    "part",
    [
        '"""\n```\n',
        "'\\",
        "'",
        '"""\\',
        '\\"""\n',
        "'''x\\'''\n",
        "```\n",
        "```a\n",
        " \t",
        "`",
        "{",
    ],
)
@pytest.mark.timeout(10)
def test_reading_takes_linear_time_whatever_is_written(part: str) -> None:
    text = "```python\n" + part * 50_000
    parse_reply(text)
    list(parse_objects(text))


@given(
    st.text(alphabet="ab'\"\\#\n \t`") | st.text(),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="`~\r")),
)
def test_every_reply_is_read_without_an_error(noise: str, prose: str) -> None:
    parse_reply(noise)
    assert parse_reply(f"{prose}\n```python\nx = 1\n```\n").code == "x = 1"


def test_objects_are_found_in_prose_and_in_fences() -> None:
    text = 'So {this} is it:\n```json\n{"a": {"b": 1}}\n```\nor {"c": "line\nbreak"}.'
    assert list(parse_objects(text)) == [{"a": {"b": 1}}, {"c": "line\nbreak"}]
