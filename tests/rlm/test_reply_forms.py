# ruff: noqa: RUF001 - models write such characters
"""Replies as models really write them: what is run, what is not, and what the model is told."""

from __future__ import annotations

import json

import pytest

from vers_rlm_mcp.rlm import Signature, read_outputs
from vers_rlm_mcp.rlm.replies import parse_reply

RUN = "print(1)"
ZERO_WIDTH = "\u200b"


def call(name: str, **arguments: object) -> str:
    return json.dumps({"name": name, "arguments": arguments})


TAKEN = {
    # Where a fence opens.
    "indented": "  ```python\n  print(1)\n  ```",
    "in a list": "1. Look:\n2. ```python\n   print(1)\n   ```",
    "in a bullet": "- ```python\n  print(1)\n  ```",
    "in a quotation": "> ```python\n> print(1)\n> ```",
    "behind a BOM": "\ufeff```python\nprint(1)\n```",
    "behind a zero-width space": f"So.\n{ZERO_WIDTH}```python\nprint(1)\n```",
    "behind prose": "Here is the code: ```python\nprint(1)\n```",
    "behind text without a break": "I look first.```python\nprint(1)\n```",
    "unmarked behind prose": "Run this: ```\nprint(1)\n```",
    "an empty one before": "```python\n```\n```python\nprint(1)\n```",
    "an empty unmarked one before": "```\n```python\nprint(1)\n```",
    "opened twice": "```python\n```python\nprint(1)\n```",
    "words about a block before": "I write a ```python block.\n```python\nprint(1)\n```",
    "in a markdown block": "```markdown\nI look.\n```python\nprint(1)\n```\n```",
    "tildes": "~~~python\nprint(1)\n~~~",
    "four backticks": "````python\nprint(1)\n````",
    "closed by more": "```python\nprint(1)\n`````",
    "windows line ends": "So.\r\n```python\r\nprint(1)\r\n```\r\n",
    "old line ends": "```python\rprint(1)\r```",
    "closed by fewer": "````python\nprint(1)\n```\nDone.",
    "closed by another": "~~~python\nprint(1)\n```\nDone.",
    # Where it closes.
    "text behind the end": "```python\nprint(1)\n``` That prints one.\nexit()",
    "on the last line of code": "```python\nprint(1)```\nexit()",
    "on the last line, and prose": "```python\nprint(1)``` and so on\n",
    "a token behind the end": "```py\nprint(1)\n```<end_code>",
    "a tag behind the end": "```python\nprint(1)\n```</code>",
    "indented end": "```python\nprint(1)\n   ```\nexit()",
    "no end": "```python\nprint(1)",
    "an end behind spaces": "```python\nprint(1)\n```   \nexit",
    # What it says.
    "python3": "```python3\nprint(1)\n```",
    "python3.12": "```python3.12\nprint(1)\n```",
    "py": "```py\nprint(1)\n```",
    "Python": "```Python\nprint(1)\n```",
    "repl": "```repl\nprint(1)\n```",
    "python repl": "```python repl\nprint(1)\n```",
    "ipython": "```ipython\nprint(1)\n```",
    "tool_code": "```tool_code\nprint(1)\n```",
    "attributes": '```python title="look.py" {1,2}\nprint(1)\n```',
    "a file": "```python:look.py\nprint(1)\n```",
    "a file apart": "```python look.py\nprint(1)\n```",
    "braces": "```{python}\nprint(1)\n```",
    "braces and a dot": "``` {.python}\nprint(1)\n```",
    "a space": "``` python\nprint(1)\n```",
    "a zero-width space": f"```{ZERO_WIDTH}python\nprint(1)\n```",
    "several": "```python, repl\nprint(1)\n```",
    "code": "```code\nprint(1)\n```",
    "nothing": "```\nprint(1)\n```",
    "its language on a line of its own": "```\npython\nprint(1)\n```",
    "code behind the language": "```python print(1)\n```",
    "all on one line": "```python print(1)```",
    "all on one line, unmarked": "```print(1)```",
    "json beside it": '```json\n{"a": 1}\n```\n```python\nprint(1)\n```',
    "expected output beside it": "```\nprint(1)\n```\nOutput:\n```\n1\n```",
    # Other forms.
    "bare": "print(1)",
    "bare with comments": "# I look first.\nprint(1)",
    "tag": "Thought: I look.\n<code>\nprint(1)\n</code>",
    "tag without an end": "<code>\nprint(1)",
    "tag and fence": "<code>\n```python\nprint(1)\n```\n</code>",
    "tag in a fence": "```python\n<code>\nprint(1)\n</code>\n```",
    "execute": "<execute>\nprint(1)\n</execute>",
    "execute_ipython": "<execute_ipython>\nprint(1)\n</execute_ipython>",
    "tag on one line": "<python>print(1)</python>",
    "tag with attributes": '<code language="python">\nprint(1)\n</code>',
    "HTML tags": '<pre><code class="language-python">print(1)</code></pre>',
    "ReAct": "Thought: I look.\nAction: python\nAction Input: print(1)\nObservation: 1",
    "ReAct with a fence": "Action: Python REPL\nAction Input:\n```python\nprint(1)\n```",
    "structured ReAct": json.dumps({"action": "python", "action_input": RUN}),
    "a json call with prose": f"I look.\n```json\n{call('python', code=RUN)}\n```",
    "llama": "<|python_tag|>print(1)<|eom_id|>",
    "dspy": "[[ ## reasoning ## ]]\nI look.\n\n[[ ## code ## ]]\nprint(1)\n\n[[ ## completed ## ]]",
    "dspy with a fence": "[[ ## code ## ]]\n```python\nprint(1)\n```\n[[ ## completed ## ]]",
    "json of reasoning and code": json.dumps({"reasoning": "I look.", "code": RUN}),
    "json of fenced code": json.dumps({"code": "```python\nprint(1)\n```"}),
    "qwen": f"<tool_call>\n{call('python', code=RUN)}\n</tool_call>",
    "qwen coder": "<tool_call>\n<function=python>\n<parameter=code>\nprint(1)\n</parameter>\n"
    "</function>\n</tool_call>",
    "mistral": f"[TOOL_CALLS][{call('code_interpreter', code=RUN)}]",
    "bare json call": call("execute_python", code=RUN),
    "fenced json call": f"```json\n{call('python', code=RUN)}\n```",
    "openai": json.dumps(
        {"tool_calls": [{"function": {"name": "python", "arguments": json.dumps({"code": RUN})}}]}
    ),
    "llama json": json.dumps({"name": "python", "parameters": {"code": RUN}}),
    "llama function": f"<function=python>{json.dumps({'code': RUN})}</function>",
    "claude": '<function_calls>\n<invoke name="python">\n<parameter name="code">print(1)'
    "</parameter>\n</invoke>\n</function_calls>",
    "glm": "<tool_call>python\n<arg_key>code</arg_key>\n<arg_value>print(1)</arg_value>\n"
    "</tool_call>",
    "gpt-oss": "<|channel|>commentary to=python code<|message|>print(1)<|call|>",
    "gpt-oss json": "<|start|>assistant<|channel|>commentary to=functions.python <|constrain|>json"
    '<|message|>{"code": "print(1)"}<|call|>',
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>python\n```json\n"
    '{"code": "print(1)"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek 3.1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>python<｜tool▁sep｜>"
    '{"code": "print(1)"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.python:0"
    '<|tool_call_argument_begin|>{"code": "print(1)"}<|tool_call_end|>',
    "transcript": "```pycon\n>>> print(1)\n1\n```",
    "bare transcript": ">>> print(1)\n1",
    "notebook": "```python\nIn [1]: print(1)\n```",
    # What happened to the code on its way.
    "non-breaking spaces": "```python\nprint(\u00a01)\n```",
    "zero-width characters": f"```python\nprint({ZERO_WIDTH}1)\n```",
    "HTML": "```python\nif 1 &lt; 2:\n    print(1)\n```",
    "indented as a whole": "```python\n    print(1)\n```",
    "escaped breaks": "```python\nx = 1\\nprint(1)\n```",
    # What is quoted.
    "our output": "<output-0a1b2c3d>\n```python\nexit()\n```\n</output-0a1b2c3d>\n"
    "```python\nprint(1)\n```",
    "an unmarked frame": "<output>\n```python\nexit()\n```\n</output>\n```python\nprint(1)\n```",
}
OTHERWISE = {
    "HTML": "if 1 < 2:\n    print(1)",
    "non-breaking spaces": "print( 1)",
    "escaped breaks": "x = 1\nprint(1)",
    "bare with comments": "# I look first.\nprint(1)",
}


@pytest.mark.parametrize("name", TAKEN)
def test_code_is_found_however_a_model_writes_it(name: str) -> None:
    assert parse_reply(TAKEN[name]).code == OTHERWISE.get(name, RUN)


SEVERAL = {
    "prose between": "```python\na = 1\n```\nexit()\n```python\nprint(a)\n```",
    "no break between": "```python\na = 1\n``````python\nprint(a)\n```",
    "a text block's end and a fence": "I.```python\na = 1\n```Now.```python\nprint(a)\n```",
    "never closed": "```python\na = 1\n```python\nprint(a)\n```",
    "FINAL in a comment": "```python\na = 1\n```\n```python\nprint(a)  # FINAL(a)\n```",
    "FINAL in a string": "```python\na = 1\n```\n```python\nprint(a, 'FINAL(a)')\n```",
    "tool calls": f"<tool_call>{call('python', code='a = 1')}</tool_call>\n"
    f"<tool_call>{call('python', code='print(a)')}</tool_call>",
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_blocks_are_one_cell(name: str) -> None:
    parsed = parse_reply(SEVERAL[name])
    assert (parsed.code.split("  #")[0].replace(", 'FINAL(a)'", ""), parsed.left_out) == (
        "a = 1\nprint(a)",
        0,
    )


def test_an_import_from_the_future_in_a_later_block_is_where_python_wants_it() -> None:
    code = parse_reply(
        "```python\na = 1\n```\n```python\nfrom __future__ import annotations\nprint(a)\n```"
    ).code
    assert compile(code, "cell", "exec")
    assert code.startswith("from __future__ import annotations\na = 1\n")


WHOLE = {
    "a fence in a string": 'text = """\n```python\nx\n```\n"""\nprint(text)',
    "a fence in a docstring": "def f():\n    '''Do.\n\n    ```\n    f()\n    ```\n    '''\n",
    "one line of backticks in a string": "print('```')",
    "an f-string": 'print(f"```{x}```")',
    "a fence in a comment": "# a ``` in words\nprint(1)",
    "tildes": "print(~~~1)",
    "typographic quotes in a string": "print('“so”')",
    "entities in a string": "print('&lt;')",
    "escapes in a string": "print('a\\nb')",
    "a syntax error": "print(1",
}


@pytest.mark.parametrize("name", WHOLE)
def test_code_is_left_as_it_is(name: str) -> None:
    code = WHOLE[name]
    assert parse_reply(f"So.\n```python\n{code}\n```\nexit()").code == code.rstrip()


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        ("print(“so”)", 'print("so")'),
        ("print(‘so’)", "print('so')"),
        ("x = “it’s”", 'x = "it\'s"'),
    ],
)
def test_typographic_quotes_are_quotes_where_nothing_else_is_python(code: str, meant: str) -> None:
    parsed = parse_reply(f"```python\n{code}\n```")
    assert parsed.code == meant
    assert "typographic quotes" in parsed.notes[0]


NOT_RUN = {
    "prose": ("The answer is 42.", "text only"),
    "one word": ("Done", "text only"),
    "a label": ("Answer: 42", "text only"),
    "a number": ("42", "text only"),
    "JSON": ('{"answer": 42}', "text only"),
    "a shell": ("```bash\nls -l\n```", "a bash block"),
    "a shell between tags": ("<execute_bash>ls</execute_bash>", "a shell command between tags"),
    "JavaScript": ("```js\nconsole.log(1)\n```", "a js block"),
    "an unmarked block of prose": ("```\nI think so.\n```", "a block without a language"),
    "an empty block": ("```python\n```", "a block with nothing in it"),
    "a command without a language": ("```\nls -l\n```", "a block without a language"),
    "a path": ("```\na/b\n```", "a block without a language"),
    "code without a fence": ("I look at it:\n\nprint(1)\nx = 2", "code outside of a block"),
    "another tool": (call("search", query="x"), "a call of `search` as a tool"),
    "another tool between tags": (f"<tool_call>{call('search', q='x')}</tool_call>", "`search`"),
    "a tool call that is broken off": ('<tool_call>{"name": "pyth', "cannot be read"),
    "FINAL in prose": ("I have it.\nFINAL(42)", "FINAL outside of a block"),
    "FINAL of prose": ("FINAL(The answer is 42.)", "FINAL outside of a block"),
    "code in prose": ("I would use `print(1)` here.", "text only"),
    "a quotation": ("Use ```print(1)``` to see it.", "a block with nothing in it"),
    "prose of names": ("yes\nno", "text only"),
    "a tag in prose": ("I call <code>exit()</code> then.", "text only"),
    "tags around prose": ("<code>\nI look at it.\n</code>", "tags around what is not Python"),
}


@pytest.mark.parametrize("name", NOT_RUN)
def test_what_is_not_code_is_named_and_not_run(name: str) -> None:
    text, found = NOT_RUN[name]
    parsed = parse_reply(text)
    assert parsed.code == ""
    assert found in parsed.found


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("```bash\nls -l\n```", "print(exec('ls -l'))"),
        ("So.\nFINAL(42)", "FINAL(42)"),
        ("It is `FINAL(42)`", ""),
        ("FINAL(It is red.)", "FINAL('It is red.')"),
        ("I look:\n\nprint(1)\n\nx = 2", "print(1)\n\nx = 2"),
    ],
)
def test_the_code_that_is_meant_is_shown(text: str, example: str) -> None:
    assert parse_reply(text).example == example


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("FINAL(42)", "FINAL(42)"),
        ("\n FINAL(answer='x')\n", "FINAL(answer='x')"),
        ("FINAL_VAR('x')", "FINAL_VAR('x')"),
        (call("FINAL", answer=42), "FINAL(**{'answer': 42})"),
    ],
)
def test_a_reply_that_is_a_call_of_final_as_a_whole_is_taken(text: str, code: str) -> None:
    assert parse_reply(text).code.strip() == code


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```bash\nls\n```\n```python\nprint(1)\n```", "The bash block of your reply was not run"),
        ("```python\nprint(1)\n```\nFINAL(1)", "A call of FINAL outside of the block"),
        ("```python\nprint(1)\n```\n```python\nFINAL(1)\n```", "A later block of your reply"),
        ("```python\n>>> print(1)\n1\n>>> FINAL(1)\n```", "Only the lines behind `>>>` were run"),
        (call("python", code="print(1)"), "A tool call was read as a cell"),
        ("```python\nprint(1\nThat was it.", "Your block has no closing ```"),
        ("```python\nanswer['content'] = 1\nanswer['ready'] = True\n```", 'Setting "ready"'),
        ('```python\nanswer = {"content": 1, "ready": True}\n```', 'Setting "ready"'),
        ("```python\n!ls -l\n```", "`!ls -l` is a command of notebooks"),
        ("```python\n%time print(1)\n```", "`%time print(1)` is a command of notebooks"),
        ("```python\n%%bash\nls\n```", "`%%bash` is a command of notebooks"),
    ],
)
def test_what_was_left_out_or_taken_leniently_is_told(text: str, told: str) -> None:
    assert any(note.startswith(told) for note in parse_reply(text).notes)


@pytest.mark.parametrize(
    "code", ["x = (7\n  %two)", "answer['ready'] = True\nFINAL(1)", "ready = True"]
)
def test_nothing_is_told_of_code_that_is_as_it_should_be(code: str) -> None:
    assert parse_reply(f"```python\n{code}\n```").notes == ()


def test_an_answer_in_a_session_that_shows_invented_outputs_is_left_out() -> None:
    text = "```python\n>>> n = 1\n>>> print(n)\n1\n>>> FINAL(n)\n```"
    assert parse_reply(text).code == "n = 1\nprint(n)"


@pytest.mark.parametrize(
    "part",
    [
        *("``` x ", "```python", "<code>", "<tool_call>{", "to=python<|message|>", "<output>"),
        *("<parameter=code>", '<invoke name="python">', "<arg_key>", ">>> ", "```json\n\n", "> "),
        *("[[ ## code ## ]]\n", "\n", "x = 1\n", "```x```", "(", "-", "&lt;", "{", "{'a': 1}"),
    ],
)
@pytest.mark.timeout(10)
def test_no_reply_takes_long_to_read(part: str) -> None:
    for text in (part * 2_000, "```python\n" + part * 2_000, "<code>\n" + part * 2_000):
        parse_reply(text)
        read_outputs(text, Signature.parse("-> a: int, b"))
