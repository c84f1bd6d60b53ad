"""How much code a step runs through: `python -m benchmarks.trace [--list]`.

A task of one step, which asks the sub-model once and calls FINAL, is run twice; the functions of
the package that the second run enters on the host are counted, by room and by file. What runs in
the machine is another process and is not counted.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

import vers_rlm_mcp
from vers_rlm_mcp import RLM
from vers_rlm_mcp.testing import FakeBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

PACKAGE = Path(vers_rlm_mcp.__file__).parent

SCRIPT = """
--- reply when="^Is it"
yes
--- reply
```python
FINAL(answer=llmQuery("Is it so? " + task))
```
"""

SIGNATURE = "task -> answer"


class Trace:
    """Collects the functions of the package that are entered inside the ``with``."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str, int]] = set()
        """Each as file, name and first line."""

    def __enter__(self) -> Trace:
        threading.setprofile(self._enter)
        sys.setprofile(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType] - None ends it

    def _enter(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        path = Path(code.co_filename)
        # Comprehensions and class bodies are no functions to a reader.
        if event == "call" and not code.co_name.startswith("<") and path.is_relative_to(PACKAGE):
            self.functions.add((str(path.relative_to(PACKAGE)), code.co_name, code.co_firstlineno))

    def described(self, what: str) -> str:
        rooms = Counter(file.partition("/")[0] for file, _, _ in self.functions)
        files = {file for file, _, _ in self.functions}
        named = ", ".join(f"{room} {count}" for room, count in rooms.most_common())
        return f"{what}: {len(self.functions)} functions in {len(files)} files ({named})"


async def second_of(run: Callable[[], Awaitable[object]]) -> Trace:
    """The trace of a second run; the first one imports and connects."""
    await run()
    with Trace() as trace:
        await run()
    return trace


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "script.txt"
        script.write_text(SCRIPT)
        state = Path(directory) / "state"
        fake = FakeBackend(Path(directory) / "machines")
        for what, backend in {"fake machine": fake, "bubblewrap": "bubblewrap"}.items():
            async with RLM(f"scripted:{script}", backend=backend, state_dir=state) as rlm:
                trace = await second_of(partial(rlm, SIGNATURE, task="x"))
            print(trace.described(what))
            if "--list" in sys.argv:
                for file, name, line in sorted(trace.functions):
                    print(f"  {file}:{line} {name}")


if __name__ == "__main__":
    anyio.run(main)
