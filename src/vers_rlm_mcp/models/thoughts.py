"""Takes a model's thoughts off its reply.

Thoughts hold drafts: code that must not run, answers that were rejected. Providers that return
them in fields of their own are handled where replies are read; this module handles those in the
text.

A tag counts as a tag only where no one would write it as data: not inside a code block, a quotation
or a code span, and not in a text that is a program or JSON as a whole. Inside thoughts the same
rules find the end, unless they find none.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Separated: TypeAlias = "tuple[str, str]"
"""A reply without its thoughts, and the thoughts."""

_ELEMENTS = {
    "think": "DeepSeek R1, Qwen3, GLM, MiniMax: vllm-project/vllm docs, reasoning outputs",
    "thinking": "QwenLM/qwen-code#10791",
    "thought": "EXAONE Deep; Gemma 4: NousResearch/hermes-agent#6149",
    "reasoning": "vectorize-io/hindsight#2195",
    "reflection": "Reflection 70B's own prompt",
    "antthinking": "openclaw/openclaw#688",
    "reasoning_scratchpad": "NousResearch/hermes-agent#6149",
    "seed:think": "Seed-OSS: vLLM's seed_oss parser",
}
"""Names of elements ``<name>…</name>`` that hold thoughts, with the reports on them."""

_NAMES_OF_ANSWERS = ("thinking", "thought", "reasoning", "reflection")
"""Elements that people also ask for. They are kept in the reply to a single question that names
them, since its answer is probably taken apart by them."""

_PAIRS = (
    # Magistral: mistral-common.
    (r"\[THINK\]", r"\[/THINK\]"),
    # Kimi: SGLang's kimi parser.
    (r"◁think▷", r"◁/think▷"),
    # OpenThoughts, Sky-T1: their system prompt.
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    # Cohere Command A: llama.cpp, COMMAND_R7B.
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    # Gemma 4: its chat template.
    (r"<\|channel>\s*thought", r"<channel\|>"),
    # Apertus: its chat template.
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    # vectorize-io/hindsight#2195.
    (r"\|startthink\|", r"\|endthink\|"),
)
"""Other marks at the beginning and the end of thoughts, as patterns."""

_PHRASES = (
    # Granite 3.2: vLLM's granite parser.
    re.compile(
        r"\A\s*Here(?:'s| is) my thought process:(?P<thoughts>.*?)"
        r"(?:\Z|Here(?:'s| is) my response:(?P<answer>.*))",
        re.DOTALL,
    ),
    # gpt-oss behind a server that drops the marks of its channels.
    re.compile(r"\A\s*analysis(?P<thoughts>.*?)(?:assistant)+final(?P<answer>.*)\Z", re.DOTALL),
)
"""Replies whose thoughts are marked by words alone."""

_WRAPPERS = re.compile(
    r"""\A\s*(?:
        <answer>(?P<hunyuan>.*)</answer>  # Hunyuan A13B, DeepSeek R1: vLLM's hunyuan parser
      | <\|START_RESPONSE\|>(?P<cohere>.*)<\|END_RESPONSE\|>
      | <\|begin_of_solution\|>(?P<open_thoughts>.*)<\|end_of_solution\|>
    )\s*\Z""",
    re.VERBOSE | re.DOTALL,
)
"""Marks around what follows thoughts."""

_LEADING = re.compile(r"(?:[\s\ufeff\u200b]|<\|im_start\|>assistant|<\|turn>model)*")
"""What may stand before a reply's first tag: white space and remains of a chat template."""

_TRAILING = (
    *("<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end|>", "<|return|>", "<turn|>"),
    *("<end_of_turn>", "<｜end▁of▁sentence｜>", "</s>"),  # noqa: RUF001 - DeepSeek's own bars
)
"""Marks at the end of a reply that a server has left in."""

_HINT = re.compile("think|thought|reasoning|reflection|inner_", re.IGNORECASE)
"""Part of every mark; texts without it are not looked at any further."""

_BEFORE_FENCE = re.compile(r"[ \t\ufeff\u200b]*(?:(?:[-*+>]|\d+[.)])[ \t]+)*")
"""What may stand before a fence on its line: indentation, and the marks of a list."""

_CODE_SPAN = re.compile(r"(?<!`)`{1,2}(?!`)")
_QUOTE_BEFORE = re.compile(r'(?:^|[\s(\[{=:,])"[^"]*$')
_QUOTE_AFTER = re.compile(r'^[^"]*"(?=[\s.,;:)\]}!?]|$)')
_NEAR = 200
"""Characters on either side of a mark that are looked at, at most."""
_LANGUAGE = re.compile(r"[ \t]*[\w+-]+[ \t]*")
_MAX_PROGRAM = 200_000
"""Characters of a text up to which it is tried as a program."""
_MAX_TOKENS = 5_000
"""Marks and fences that are looked at; a reply with more repeats itself without end."""


@dataclass(frozen=True, slots=True)
class _Token:
    """A fence of a code block, or a mark at the beginning or the end of thoughts."""

    kind: Literal["fence", "open", "close"]
    start: int
    end: int
    family: int = -1
    """Which spelling a mark belongs to."""
    begins_line: bool = True
    is_quoted: bool = False
    fence: str = ""
    info: str = ""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A part of the text that is left out, and where the thoughts in it begin and end."""

    start: int
    end: int
    thoughts: slice


def separate_thoughts(text: str, question: str | None = None) -> Separated:
    """Separate a reply from its thoughts. A text without thoughts is returned as it is.

    Thoughts without an end extend to the end of the text, thoughts without a beginning from its
    start: chat templates open them in the prompt.

    Args:
        text: A model's reply.
        question: The request, if it is a single question instead of a conversation.
    """
    answer, thoughts = (
        _separate_harmony(text) or _separate_phrases(text) or _separate_tags(text, question)
    )
    if thoughts and (wrapped := _WRAPPERS.match(answer)):
        answer = next(part for part in wrapped.groups() if part is not None).strip()
    return _without_trailing(answer), thoughts


def _without_trailing(text: str) -> str:
    rest = text.rstrip()
    while mark := next((mark for mark in _TRAILING if rest.endswith(mark)), None):
        rest = rest.removesuffix(mark).rstrip()
        text = rest or text  # a text of nothing but such marks is about them
    return text


def _separate_phrases(text: str) -> Separated | None:
    for phrase in _PHRASES:
        if found := phrase.match(text):
            return (found["answer"] or "").strip(), found["thoughts"].strip()
    return None


def _separate_tags(text: str, question: str | None) -> Separated:
    if not _HINT.search(text):
        return text, ""
    tokens = list(islice(_tokens(text, question), _MAX_TOKENS))
    if all(token.kind == "fence" for token in tokens) or _is_program(text):
        return text, ""
    cuts = _Scan(text, tokens).cuts()
    if not cuts:
        return text, ""
    answer, at = "", 0
    for cut in cuts:
        answer += text[at : cut.start]
        at = cut.end
        if answer[-1:] not in {"", "\n"} and "\n" in text[cut.start : cut.end]:
            answer += "\n"
    answer += text[at:]
    thoughts = (text[cut.thoughts].strip() for cut in cuts)
    return answer[_end_of_leading(answer) :], "\n\n".join(filter(None, thoughts))


def _tokens(text: str, question: str | None) -> Iterator[_Token]:
    asked = (question or "").lower()
    kept = frozenset(name for name in _NAMES_OF_ANSWERS if f"<{name}>" in asked)
    after_mark = 0
    for match in _pattern(kept).finditer(text):
        start, end = match.span()
        line = text[max(0, start - _NEAR) : start].rpartition("\n")[2]
        before = line[max(0, len(line) - (start - after_mark)) :]
        after = text[end : end + _NEAR].partition("\n")[0]
        if match["fence"]:
            # In the middle of a line, only one with a language opens a block.
            if _BEFORE_FENCE.fullmatch(before) or _LANGUAGE.fullmatch(after):
                yield _Token("fence", start, end, fence=match[0], info=after)
            continue
        kind, _, family = str(match.lastgroup).partition("_")
        after_mark = end
        yield _Token(
            "open" if kind == "open" else "close",
            start,
            end,
            family=int(family),
            begins_line=_end_of_leading(before) == len(before),
            is_quoted=_is_quoted(line, after),
        )


@cache
def _pattern(kept: frozenset[str]) -> re.Pattern[str]:
    """The pattern of a token. It begins with a set of characters, which makes it fast."""
    spellings = [
        (rf"<\s?{name}(?:[\s/][^<>\n]{{0,{_NEAR}}})?>", rf"<\s?/\s?{name}\s?>")
        for name in _ELEMENTS
        if name not in kept
    ]
    parts = [r"(?P<fence>(?<=`)``+|(?<=~)~~+)"]
    for family, (opening, closing) in enumerate([*spellings, *_PAIRS]):
        parts += [
            f"(?P<open_{family}>{_behind_first(opening)})",
            f"(?P<close_{family}>{_behind_first(closing)})",
        ]
    return re.compile(rf"[`~<\[◁|](?:{'|'.join(parts)})", re.IGNORECASE | re.MULTILINE)


def _behind_first(pattern: str) -> str:
    """A pattern whose first character has been consumed."""
    first = pattern[:2] if pattern.startswith("\\") else pattern[0]
    return f"(?<={first}){pattern[len(first) :]}"


class _Scan:
    """Finds what to leave out of a text, in time proportional to its tokens."""

    def __init__(self, text: str, tokens: Sequence[_Token]) -> None:
        self._text = text
        self._tokens = tokens
        self._length = len(text.rstrip())
        self._last_fence = text.rfind("```")
        self._last_close = max(
            (n for n, each in enumerate(tokens) if each.kind == "close" and not each.is_quoted),
            default=-1,
        )
        self._cuts: list[_Cut] = []

    def cuts(self) -> Sequence[_Cut]:
        fence: _Token | None = None
        number = 0
        while number < len(self._tokens):
            token = self._tokens[number]
            if token.kind == "fence":
                fence = _fence_after(fence, token)
            elif fence and self._ends_unclosed_block(number):
                fence = None
                self._cut_to(token)
            elif fence or token.is_quoted:
                pass
            elif token.kind == "close":
                self._cut_to(token)
            elif self._text.endswith("/>", token.start, token.end):
                self._cut(token.start, token.end)
            elif number < self._last_close:
                number = self._cut_thoughts(number)
            elif self._opens_the_rest(token):
                self._cut(token.start, len(self._text), token.end, len(self._text))
                break
            number += 1
        return self._cuts

    def _cut(self, start: int, end: int, thoughts: int = 0, end_of_thoughts: int = 0) -> None:
        self._cuts.append(_Cut(start, end, slice(thoughts, end_of_thoughts)))

    def _cut_thoughts(self, number: int) -> int:
        """Leave out the thoughts that this token opens. Returns the number of their end.

        A pair of marks inside one line of a sentence is mentioned, not used.
        """
        end = self._end_of_thoughts(number)
        opening, closing = self._tokens[number], self._tokens[end]
        if opening.begins_line or "\n" in self._text[opening.start : closing.end]:
            self._cut(opening.start, closing.end, opening.end, closing.start)
        return end

    def _cut_to(self, token: _Token) -> None:
        """Leave out what precedes a mark at the end of thoughts that nothing has opened.

        After thoughts that have been left out already, such a mark may be superfluous.
        """
        is_last = token.end >= self._length
        if self._cuts:
            has_block = self._text.find("```", self._cuts[-1].end, token.start) >= 0
            if is_last or (has_block and self._last_fence < token.end):
                self._cut(token.start, token.end)
                return
        self._cuts.clear()
        self._cut(0, token.end, 0, token.start)

    def _end_of_thoughts(self, number: int) -> int:
        """The number of the token that ends the thoughts opened by this one; there is one.

        Preferred is one of the same spelling outside of code blocks.
        """
        family = self._tokens[number].family
        depth, fence = 1, None
        outside = same = self._last_close
        for at in range(number + 1, self._last_close + 1):
            token = self._tokens[at]
            if token.kind == "fence":
                fence = _fence_after(fence, token)
            elif token.is_quoted or token.family != family:
                pass
            elif fence and not self._ends_unclosed_block(at):
                same = at if token.kind == "close" else same
            else:
                fence = None
                depth += 1 if token.kind == "open" else -1
                outside = at if token.kind == "close" else outside
                if depth == 0:
                    return at
        return outside if self._tokens[outside].family == family else same

    def _ends_unclosed_block(self, number: int) -> bool:
        """Whether a mark in a code block shows that the block was never closed.

        It does if it begins a line and the next fence opens a block.
        """
        token = self._tokens[number]
        following = self._tokens[number + 1 : number + 2]
        return (
            token.kind == "close"
            and token.begins_line
            and bool(following)
            and bool(_LANGUAGE.fullmatch(following[0].info))
        )

    def _opens_the_rest(self, token: _Token) -> bool:
        """Whether a mark without an end begins thoughts, instead of being mentioned.

        It does at the start of the text, alone on its line, or on a line before a code block.
        """
        if _end_of_leading(self._text) == token.start:
            return True
        rest_of_line = self._text[token.end : token.end + _NEAR].partition("\n")[0]
        stands_out = not rest_of_line.strip() or self._last_fence > token.end
        return token.begins_line and stands_out


def _fence_after(fence: _Token | None, token: _Token) -> _Token | None:
    """The open fence after this one, if any.

    A closing fence may have anything behind it but the name of a language.
    """
    if fence is None:
        return token
    closes = token.fence.startswith(fence.fence) and not _LANGUAGE.fullmatch(token.info)
    return None if closes else fence


def _end_of_leading(text: str) -> int:
    match = _LEADING.match(text)
    return match.end() if match else 0


def _is_quoted(before: str, after: str) -> bool:
    """Whether what is between two parts of a line is in a quotation or a code span."""
    return (
        (len(_CODE_SPAN.findall(before)) % 2 == 1 and bool(_CODE_SPAN.search(after)))
        or (before[-1:] == after[:1] and before[-1:] in {"'", '"'})
        or bool(_QUOTE_BEFORE.search(before) and _QUOTE_AFTER.search(after))
    )


def _is_program(text: str) -> bool:
    """Whether the text as a whole is Python or JSON, whose strings may hold anything."""
    if len(text) > _MAX_PROGRAM:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text.strip())
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return False
    return True


# Harmony, the format of gpt-oss: https://developers.openai.com/cookbook/articles/openai-harmony.
# Servers that do not parse it leave its marks in the text.

_HARMONY = re.compile(
    r"(?:<\|start\|>[^<]{0,200})?<\|channel\|>\s*(?P<channel>\w+)(?P<to>[^<]{0,200})"
    r"(?:<\|constrain\|>[^<]{0,200})?<\|message\|>"
)
_IS_HARMONY = re.compile(
    r"\A\s*(?:assistant)?<\|(?:channel|start)\|>|<\|end\|>\s*<\|start\|>assistant"
)
_ENDS_OF_HARMONY = re.compile(r"\s*<\|(?:end|return|call)\|>\s*\Z")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?(\S+)")


def _separate_harmony(text: str) -> Separated | None:
    heads = list(_HARMONY.finditer(text)) if _IS_HARMONY.search(text) else []
    if not heads:
        return None
    thoughts, answers = [text[: heads[0].start()]], list[str]()
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        is_final = head["channel"] == "final"
        end = following.start() if following and not is_final else len(text)
        said = _ENDS_OF_HARMONY.sub("", text[head.end() : end])
        recipient = _RECIPIENT.search(head["to"])
        if recipient:
            answers.append(render_tool_call(recipient[1], said))
        else:
            (thoughts if head["channel"] == "analysis" else answers).append(said)
        if is_final:
            break
    thoughts = [_ENDS_OF_HARMONY.sub("", part).strip() for part in thoughts]
    return "\n\n".join(answers).strip(), "\n\n".join(filter(None, thoughts))


def render_tool_call(name: str, arguments: str) -> str:
    """A tool call as text, as models write it that were trained on text alone (Hermes, Qwen).

    No tools are offered to models, but some call one; whoever reads the reply must see it.
    """
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        values = arguments
    call = json.dumps({"name": name, "arguments": values}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"
