"""What the model of the frozen runs says: the generator records it, the tests finish it.

A conversation takes the replies of the play that its opening (the task, or the plan of a branch)
names, in turn. A sub-call is answered in capitals.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from models.servers import Reply, Request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODEL: Final = "openai:frozen"

HANGS: Final = "never answered while the state was made"
"""A sub-call that asks this was under way when its run was cancelled or killed."""

LONG: Final = 20_000
"""Characters: a journal stores texts of this length in files of their own."""

SIGNATURES: Final[Mapping[str, str]] = {
    "finished": "text, notes: list[str] -> size: int, words: list[str], table: dict, said, lines",
    "branched": "-> winner, merged, child, scores: list[float]",
    "killed": "word -> said: list[str], kept, gone: bool",
    "killed_among_branches": "-> n: int",
    "killed_at_once": "word -> said",
    "cancelled": "-> said",
    "partial": "-> a: int, b: int",
    "resumed": "-> n: int",
    "of_a_client": "word -> said",
}

PLAYS: Final[Mapping[str, Sequence[str]]] = {
    "finished": [
        "print(text)\nwriteFile('report/words.txt', '\\n'.join(notes))",
        "exec('mkdir -p old && echo gone > old/file && echo kept > old/kept')\n"
        "table = {'é': [1, 2.5, None, True]}\nimport re\npattern = re.compile('fig+s')",
        "exec('rm old/file; echo \"$(cat files/data.csv)\" > copied.csv')\n"
        "said = llmQueryBatched([f'shout {note}' for note in notes])\n1 / 0",
        "FINAL(size=len(text), words=notes, table=table, said=' '.join(said),"
        " lines=readFile('copied.csv'))",
    ],
    "branched": [
        "writeFile('src/plan', 'none')\nbase = 5\nbefore = vmSnapshot()",
        "results = branches(['play slow.', 'play fast.'], outputs='n: int', score='n')",
        "child = rlmQuery('Write a file: play child.', merge=['src'])",
        "FINAL(readFile('src/plan'), readFile('src/merged'), child, [r.score for r in results])",
    ],
    "slow": ["writeFile('src/plan', 'slow')", "FINAL(base + 1)"],
    "fast": ["writeFile('src/plan', 'fast')\nFINAL(base + 2)"],
    "child": ["writeFile('src/merged', 'merged')\nFINAL('the child is done')"],
    "killed": [
        "writeFile('kept', 'kept'); writeFile('build/gone', 'gone')\n"
        "said = [llmQuery('first ' + word)]",
        "exec('rm -rf build')\nsaid.append(llmQuery('second ' + word))",
        f"said += [llmQuery('third ' + word), llmQuery({HANGS!r})]",
        "import os\nFINAL(said, readFile('kept'), not os.path.exists('build'))",
    ],
    "killed_among_branches": [
        "base = 5",
        "results = branches(['play fast.', 'play endless.'], outputs='n: int', score='n')",
        "FINAL(max(r.outputs['n'] for r in results))",
    ],
    "endless": ["seen = llmQuery('a branch')", f"llmQuery({HANGS!r})\nFINAL(base + 3)"],
    "killed_at_once": [
        "said = llmQuery('an ' + word)",
        f"said += llmQuery({HANGS!r})",
        "FINAL(said)",
    ],
    "cancelled": ["writeFile('a', 'a')", f"FINAL(llmQuery({HANGS!r}))"],
    "partial": ["FINAL(a=1, b='no number')"],
    "resumed": ["n = 20", f"n += len(llmQuery({HANGS!r}))", "FINAL(n)"],
    "of_a_client": ["FINAL(llmQuery('hello ' + word))"],
}

_PLAY = re.compile(r"play (\w+)\.")


class Stage:
    """Answers a model server's requests; while `hanging`, some are never answered."""

    def __init__(self, *, hanging: bool) -> None:
        self.hanging = hanging

    def answer(self, request: Request) -> Reply:
        messages: list[dict[str, Any]] = request.body["messages"]
        if (asked := asked_by_cell(request)) is None:
            return Reply(_next_reply(messages))
        return Reply(asked.upper(), hang=self.hanging and asked == HANGS)


def asked_by_cell(request: Request) -> str | None:
    """The prompt of a sub-call; None if the request belongs to a conversation."""
    messages: list[dict[str, Any]] = request.body["messages"]
    return messages[-1]["content"] if len(messages) == 1 else None


def _next_reply(messages: Sequence[Mapping[str, Any]]) -> str:
    named = {
        place: play
        for place, message in enumerate(messages)
        if (place == 1 or "# Branch " in message["content"])
        if (play := _PLAY.findall(message["content"]))
    }
    place = max(named)
    said = sum(message["role"] == "assistant" for message in messages[place:])
    replies = PLAYS[named[place][-1]]
    if said >= len(replies):
        return "I have nothing to add."
    return f"So.\n```python\n{replies[said]}\n```"
