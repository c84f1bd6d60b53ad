"""A reply in the course of being received, for all providers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from .stop_reasons import read_stop_reason
from .thoughts import render_tool_call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .stop_reasons import Meaning


@dataclass(slots=True)
class _ToolCall:
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class ReplyParts:
    """The parts of a reply, in the order in which they are received."""

    stop_reasons: Mapping[str, Meaning]
    """The provider's table."""
    stop_word: str | None = None
    """The provider's word for how the reply ended."""
    refused: bool = False
    _text: list[str] = field(default_factory=list[str])
    _thoughts: list[str] = field(default_factory=list[str])
    _tool_calls: dict[object, _ToolCall] = field(default_factory=dict[object, _ToolCall])

    @property
    def stop_reason(self) -> Meaning | None:
        """How the reply ended; None if it has not ended yet."""
        meaning = read_stop_reason(self.stop_reasons, self.stop_word)
        return "refusal" if meaning and self.refused else meaning

    @property
    def text(self) -> str:
        """The text, followed by the calls of tools that nobody offered."""
        calls = [render_tool_call(each.name, each.arguments) for each in self._tool_calls.values()]
        text = _joined(self._text)
        return "\n".join([*([text] if text else []), *calls])

    @property
    def thoughts(self) -> str:
        """The thoughts that the provider sent apart from the text."""
        return _joined(self._thoughts)

    @property
    def everything(self) -> str:
        """All that a provider charges for, as far as it sent it."""
        return self.text + self.thoughts

    def add_text(self, content: object) -> None:
        """Add text, or a list of parts as Mistral and some gateways send it."""
        self._add(content, self._text)

    def add_thoughts(self, content: object) -> None:
        """Add thoughts."""
        self._add(content, self._thoughts)

    def begin_block(self) -> None:
        """Begin another block of text; without a line break, a code fence would be hidden."""
        if self._text and not self._text[-1].endswith("\n"):
            self._text.append("\n")

    def add_tool_call(self, key: object, name: object, arguments: object) -> None:
        """Add a part of a call of a tool."""
        call = self._tool_calls.setdefault(key, _ToolCall())
        call.name += name if isinstance(name, str) else ""
        call.arguments += arguments if isinstance(arguments, str) else ""

    def _add(self, content: object, to: list[str]) -> None:
        if isinstance(content, str):
            if content:
                to.append(content)
        elif isinstance(content, list):
            for part in cast("list[object]", content):
                self._add_part(part, to)

    def _add_part(self, part: object, to: list[str]) -> None:
        if not isinstance(part, dict):
            self._add(part, to)
            return
        fields = cast("dict[str, object]", part)
        # {"type": "thinking", "thinking": [{"type": "text", "text": …}]}: Mistral.
        for name in ("thinking", "reasoning"):
            self._add(fields.get(name), self._thoughts)
        is_thought = fields.get("type") in {"thinking", "reasoning", "reasoning_text"}
        self._add(fields.get("text"), self._thoughts if is_thought else to)


def _joined(pieces: list[str]) -> str:
    """Pieces of a text, between which a server may have cut a character in two."""
    text = "".join(pieces)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
