"""Forms of replies other than fenced blocks that models are trained on.

A form is taken if its meaning is beyond doubt; otherwise it is named, so that the model is told
what to write instead. The tables at the end say which reports each entry answers to.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from . import python_text
from .fences import find_blocks
from .signature import FINALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_TOOLS = frozenset(
    {"python", "python3", "py", "ipython", "repl", "python_repl", "python_interpreter", "jupyter"}
    | {"code_interpreter", "execute_python", "run_python", "exec_python", "execute_python_code"}
    | {"execute_code", "run_code", "code_execution", "run_cell", "execute_ipython_cell", "cell"}
    | {"run_python_code", "python_code", "code"}
)
"""Names under which models call a Python tool."""
_CODE = ("code", "python_code", "source", "script", "python", "cell", "input", "command")
"""Names of its argument."""
_NAMES = ("name", "tool", "tool_name", "function", "recipient_name", "action")
_ARGUMENTS = ("arguments", "parameters", "args", "input", "tool_input", "kwargs", "action_input")
"""Where the protocols of providers keep the name and the arguments of a call."""
_THOUGHTS = frozenset(
    {"reasoning", "thought", "thoughts", "thinking", "plan", "explanation", "rationale", "analysis"}
)
_JSON_FENCES = ("json", "tool_call", "tool_use", "tool")
_MAX_JSON = 100
"""How many `{` and `[` of a reply are tried as the beginning of a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What was found in a reply."""

    code: tuple[str, ...] = ()
    """The code to run, in parts; empty if the meaning is in doubt."""
    closed: bool = True
    """Whether something says that the code ends where it does."""
    notes: tuple[str, ...] = ()
    found: str = ""
    example: str = ""


def read_form(text: str, *, is_whole: bool) -> Form | None:
    """The first form that a reply has: of those that it is as a whole, or that stand in it."""
    for read in _WHOLE if is_whole else _PARTS:
        if form := read(text):
            return form
    return None


def take_off_tags(code: str) -> str:
    """Code without the tags and tokens that stand around it inside a block."""
    inner = code.strip()
    opening = next((tag for tag in _OPENING_TAGS if inner.startswith(tag)), "")
    closing = next((tag for tag in _CLOSING_TAGS if inner.endswith(tag)), "")
    if not opening and not closing:
        return code
    return inner[len(opening) : len(inner) - len(closing)].strip("\n")


_OPENING_TAGS = ("<code>", "<python>", "<execute>", "<|python_tag|>")
_CLOSING_TAGS = ("</code>", "</python>", "</execute>", "<end_code>", "<|eom_id|>", "<|eot_id|>")


# As a whole.


def _bare_program(text: str) -> Form | None:
    """Python without any fence; also a call of FINAL alone, the paper's form of an answer."""
    code = text.strip("\n")
    if "```" in code or "~~~" in code or code.lstrip()[:1] in ("{", "["):
        return None
    if python_text.is_transcript(code):
        return Form(code=(code.strip(),), closed=False)
    code = python_text.repair(code)[0]
    return Form(code=(code,), closed=False) if python_text.is_program(code) else None


def _json_reply(text: str) -> Form | None:
    """A JSON value as a whole: calls of tools, or reasoning and code."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        language, _, body = text[3:-3].partition("\n")
        text = body.strip() if language.strip() in _JSON_FENCES else ""
    if text[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    if calls := list(_calls_in(value)):
        return _take_calls(calls)
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    named = [name for name in fields if name.lower() in ("code", "python")]
    if len(named) == 1 and isinstance(code := fields[named[0]], str):
        others = {name.lower() for name in fields if name != named[0]}
        return _code_in(code, "JSON with code in it") if others <= _THOUGHTS else None
    return None


# In part.


def _sections(text: str) -> Form | None:
    """The sections of DSPy's prompts."""
    _, opening, rest = text.partition("[[ ## code ## ]]")
    code, closing, _ = rest.partition("[[ ## ")
    return _code_in(code, "", closed=bool(closing)) if opening else None


def _python_tag(text: str) -> Form | None:
    """Llama's token before code."""
    match = re.search(r"<\|python_(?:tag|start)\|>", text)
    if not match:
        return None
    code, closing, _ = text[match.end() :].partition("<|")
    if code.lstrip()[:1] in ("{", "["):
        return _json_reply(code)
    return _code_in(code, "", closed=bool(closing))


def _tags(text: str) -> Form | None:
    """Code between tags that begin a line."""
    tagged = [match for match in _TAGGED.finditer(text) if match["code"].strip()]
    codes = tuple(match["code"].strip("\n") for match in tagged)
    if codes and all(python_text.parses(python_text.repair(code)[0]) for code in codes):
        return Form(code=codes, closed=all(match["closing"] for match in tagged))
    if match := _TAGGED_SHELL.search(text):
        command = match[1].strip()
        return Form(found="a shell command between tags", example=f"print(exec({command!r}))")
    return Form(found="tags around what is not Python") if codes else None


_TAGGED = re.compile(
    r"^[ \t]*(?:<pre[^>\n]*>)?<(?P<tag>code|python|python_code|execute|execute_python"
    r"|execute_ipython|ipython|repl|tool_code|run_python|pythoncode)(?:[ \t][^>\n]*)?>"
    r"(?P<code>[^<]*(?:<(?!/(?P=tag)>|end_code>)[^<]*)*)"
    r"(?:(?P<closing></(?P=tag)>|<end_code>)|\Z)",
    re.MULTILINE,
)
_TAGGED_SHELL = re.compile(r"<(?:execute_)?bash>(.*?)(?:</|\Z)", re.DOTALL)


def _json_blocks(text: str) -> Form | None:
    """Calls of tools in fenced JSON, with prose around it."""
    if not any(f"```{name}" in text for name in _JSON_FENCES):
        return None
    for block in find_blocks(text):
        if block.language in _JSON_FENCES:
            with suppress(ValueError, RecursionError):
                if calls := list(_calls_in(json.loads(block.code, strict=False))):
                    return _take_calls(calls)
    return None


def _react(text: str) -> Form | None:
    """The lines of ReAct's prompts. An observation that the model made up is left out."""
    match = re.search(r"^Action:([^\n]{1,60})\nAction Input:", text, re.MULTILINE)
    if not match:
        return None
    given = text[match.end() :].partition("\nObservation:")[0]
    return _take_calls([(match[1].strip().replace(" ", "_"), given.strip())])


def _tool_calls(text: str) -> Form | None:
    """Calls of tools, in any of the forms in which models write them down."""
    calls = list(_calls_in_markup(text))
    marker = _CALL_MARKER.search(text)
    if marker and not calls:
        calls = [call for value in _json_values(text, marker.end()) for call in _calls_in(value)]
    if calls:
        return _take_calls(calls)
    return Form(found="a tool call that cannot be read") if marker else None


_CALL_MARKER = re.compile(
    r"<\|?tool_?calls?(?:_start|_begin)?\|?>|<\|?function_?calls?\|?>|\[TOOL_CALLS?\]|functools\["
    r"|<\uff5ctool\u2581calls?\u2581begin\uff5c>|<\|tool_calls_section_begin\|>|\[Calling tool"
)
_INVOKE = re.compile(
    r"<(?:antml:)?invoke name=\"(?P<name>[^\"]+)\">(?P<body>.*?)(?:</(?:antml:)?invoke>|\Z)"
    r"|<function=(?P<name2>[\w.-]+)>(?P<body2>.*?)(?:</function>|\Z)",
    re.DOTALL,
)
_PARAMETER = re.compile(
    r"<(?:antml:)?parameter(?: name=\"(?P<name>[^\"]+)\"|=(?P<name2>[\w.-]+))>\n?(?P<value>.*?)\n?"
    r"(?:</(?:antml:)?parameter>|\Z)",
    re.DOTALL,
)
_GLM = re.compile(
    r"<tool_call>[ \t]*\n?(?P<name>[\w.-]+)[ \t]*\n?(?P<body><arg_key>.*?)(?:</tool_call>|\Z)",
    re.DOTALL,
)
_GLM_ARGUMENT = re.compile(
    r"<arg_key>(?P<name>[^<]*)</arg_key>[ \t]*\n?<arg_value>(?P<value>.*?)(?:</arg_value>|\Z)",
    re.DOTALL,
)
_HARMONY = re.compile(
    r"to=(?:functions\.)?(?P<name>[\w.-]+)[^<\n]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(?P<body>.*?)(?:<\|call\|>|<\|end\|>|<\|return\|>|\Z)",
    re.DOTALL,
)
_NAMED = re.compile(
    r"(?:tool\u2581sep\uff5c>|<\|tool_call_begin\|>(?:functions\.)?)(?P<name>[\w.-]+)(?::\d+)?"
    r"[ \t]*\n?(?:<\|tool_call_argument_begin\|>|```json)"
    r"|tool\u2581call\u2581begin\uff5c>(?P<name2>(?!function<)[\w.-]+)<\uff5ctool\u2581sep\uff5c>"
)


def _calls_in_markup(text: str) -> Iterator[tuple[str, Any]]:
    for match in _INVOKE.finditer(text):
        body = match["body"] or match["body2"] or ""
        given = {p["name"] or p["name2"]: p["value"] for p in _PARAMETER.finditer(body)}
        yield match["name"] or match["name2"], given or body.strip()
    for match in _GLM.finditer(text):
        yield match["name"], {a["name"]: a["value"] for a in _GLM_ARGUMENT.finditer(match["body"])}
    for match in _HARMONY.finditer(text):
        yield match["name"], match["body"].strip()
    for match in _NAMED.finditer(text):
        value = next(_json_values(text, match.end()), None)
        yield match["name"] or match["name2"], value


def _json_values(text: str, at: int) -> Iterator[Any]:
    decoder = json.JSONDecoder(strict=False)
    opening = re.compile(r"[{\[]")
    for _ in range(_MAX_JSON):
        match = opening.search(text, at)
        if not match:
            return
        try:
            value, at = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            at = match.end()
        else:
            yield value


def _calls_in(value: Any) -> Iterator[tuple[str, Any]]:
    """The calls that a JSON value is, in the shapes of the providers' protocols."""
    if isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _calls_in(item)
        return
    if not isinstance(value, dict):
        return
    fields = cast("dict[str, Any]", value)
    inner = fields.get("tool_calls") or fields.get("function")
    if isinstance(inner, list | dict):
        yield from _calls_in(inner)
        return
    names = [fields[each] for each in _NAMES if isinstance(fields.get(each), str)]
    given = [fields[each] for each in _ARGUMENTS if each in fields]
    if names and given:
        yield names[0], given[0]


def _take_calls(calls: Sequence[tuple[str, Any]]) -> Form:
    codes: list[str] = []
    for name, given in calls:
        code = _code_of_call(name, given)
        if code is None:
            return Form(found=f"a call of `{name[:80]}` as a tool, and there are no tools here,")
        codes.append(code)
    note = "A tool call was read as a cell: there are no tools here, only ```python blocks."
    return Form(code=tuple(codes), notes=(note,))


def _code_of_call(name: str, given: Any) -> str | None:
    """The Python that a call means; None if that is in doubt."""
    if isinstance(given, str):
        with suppress(ValueError, RecursionError):
            value: Any = json.loads(given, strict=False)
            given = cast("Any", value) if isinstance(value, dict) else given
    name = name.removeprefix("functions.")
    if name in FINALS and isinstance(given, dict):
        return f"{name}(**{given!r})"
    if name.lower().replace("-", "_") not in _TOOLS:
        return None
    if isinstance(given, dict):
        fields = cast("dict[str, Any]", given)
        texts = [fields[each] for each in _CODE if isinstance(fields.get(each), str)]
        given = texts[0] if len(texts) == 1 else None
    if not isinstance(given, str):
        return None
    form = _code_in(given, "")
    return "\n".join(form.code) if form else None


def _code_in(text: str, said: str, *, closed: bool = True) -> Form | None:
    """Code that may be fenced itself."""
    blocks = [block.code for block in find_blocks(text)]
    codes = tuple(code for code in blocks or [text.strip("\n")] if code.strip())
    notes = (f"{said} was read as a cell: write a ```python block instead.",) if said else ()
    return Form(code=codes, closed=closed, notes=notes) if codes else None


_WHOLE: Sequence[Callable[[str], Form | None]] = (
    _bare_program,  # huggingface/smolagents#201 and #860, alexzhang13/rlm#115
    _json_reply,  # DSPy's JSON adapter, QwenLM/qwen-code#8207, jundot/omlx#2565
)
_PARTS: Sequence[Callable[[str], Form | None]] = (
    _sections,  # stanfordnlp/dspy#9573
    _python_tag,  # huggingface/text-generation-inference#2480, meta-llama/llama-models#266
    _tool_calls,  # waybarrios/vllm-mlx#15, NousResearch/hermes-agent#84231
    _json_blocks,  # huggingface/smolagents#375
    _react,  # LangChain's prompts
    _tags,  # huggingface/smolagents#1251, and CodeAct's prompts
)
