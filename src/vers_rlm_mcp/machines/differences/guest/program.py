"""The entry point of the programs that compare machines and merge their files.

The arguments after the loader's are ``compare`` or ``merge``, a command, and its options as JSON.
"""

from __future__ import annotations

import json
import os
import sys

from . import compare, merge


def main() -> None:
    """Run the command."""
    module, command, options = sys.argv[3:]
    try:
        (compare if module == "compare" else merge).perform(command, json.loads(options))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has ended, and can say why
        os._exit(0)
