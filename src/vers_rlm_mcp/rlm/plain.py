"""A task for a model without a REPL: one question, one reply, outputs of the same types."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .transcript import framed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from .signature import Signature


def plain_prompt(
    task: str, inputs: Mapping[str, JsonValue], signature: Signature, mark: str = ""
) -> str:
    """The question. With the mark of a run, its inputs cannot be taken for parts of it."""
    given = [f"# {name}\n{_given(value, mark)}" for name, value in inputs.items()]
    shape = ", ".join(f"{json.dumps(f.name)}: <{f.type.text}>" for f in signature.outputs)
    return "\n\n".join([task, *given, f"Reply with one JSON object only:\n{{{shape}}}"])


def _given(value: JsonValue, mark: str) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return framed("data", text, mark) if mark else text
