"""Compiles modules to bytecode that its file's name vouches for: what a ``.pyc`` file holds.

Also run as a program, by another Python than ours: modules come in and bytecode goes out over its
standard streams. Standard library only, Python 3.8 and newer.
"""

from __future__ import annotations

import importlib.util
import marshal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_UNCHECKED = (1).to_bytes(4, "little")
"""Flags of a bytecode file that is valid for its source without a look at it (PEP 552)."""

_PLAIN = 2
"""The last version of marshal whose output does not depend on what else refers to an object."""


def compile_all(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """The bytecode of modules, by their names."""
    compiled: dict[str, bytes] = {}
    for name, source in sources.items():
        code = compile(source, name, "exec", dont_inherit=True)
        header = importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(source)
        compiled[name] = header + marshal.dumps(code, _PLAIN)
    return compiled


if __name__ == "__main__":
    marshal.dump(compile_all(marshal.load(sys.stdin.buffer)), sys.stdout.buffer)  # noqa: S302 - we sent it
