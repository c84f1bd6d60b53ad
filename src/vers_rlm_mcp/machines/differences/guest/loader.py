"""Runs a module of this package in a machine, of which it leaves no file behind.

    python3 -I -S -c THIS COUNT (NAME SOURCE)… COMMAND OPTIONS

Each source becomes a module of the package ``guest``; the last one's `main` is called with the
command and the options, which are JSON.
"""

from __future__ import annotations

import json
import os
import sys
import types


def load(name: str, source: str) -> types.ModuleType:
    """Make a module, so that those after it can import it."""
    module = types.ModuleType("guest." + name)
    module.__package__ = "guest"
    sys.modules[module.__name__] = module
    exec(compile(source, name + ".py", "exec", dont_inherit=True), module.__dict__)
    return module


def main() -> None:
    """Load everything and go."""
    package = sys.modules["guest"] = types.ModuleType("guest")
    package.__path__ = []
    count = int(sys.argv[1])
    sources, (command, options) = sys.argv[2 : 2 + 2 * count], sys.argv[2 + 2 * count :]
    modules = [load(*pair) for pair in zip(sources[::2], sources[1::2])]
    try:
        modules[-1].main(command, json.loads(options))
        sys.stdout.flush()
    except BrokenPipeError:  # who listened has ended, and can say why
        os._exit(0)


if __name__ == "__main__":
    main()
