"""The entry point of what runs in machines to compare them and to merge files.

Its arguments, after those of what has loaded it, are ``compare`` or ``merge``, a command, and that
one's options as JSON.
"""

from __future__ import annotations

import json
import os
import sys

from . import compare, merge


def main() -> None:
    """Carry out the command."""
    module, command, options = sys.argv[3:]
    try:
        (compare if module == "compare" else merge).perform(command, json.loads(options))
        sys.stdout.flush()
    except BrokenPipeError:  # what listened has ended, and can say why
        os._exit(0)
