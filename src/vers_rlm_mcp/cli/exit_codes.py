"""Exit codes of the command line, which scripts may rely on."""

from __future__ import annotations

from typing import Final

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INCOMPLETE: Final = 3
EXIT_DIVERGED: Final = 4

MEANINGS: Final = {
    "0": "Success.",
    "1": "The command failed.",
    "2": "The command, an option or a setting is wrong; nothing was done.",
    "3": "The run ended early: its outputs are incomplete, or a guess (`status` says which).",
    "4": "A replay: the machine answered differently.",
    "128 + N": "Ended by signal N: 130 by Ctrl-C, 143 by SIGTERM, 129 by a terminal that closed.",
}
"""Each code and its meaning. `machines exec` exits with the command's own code."""
