"""Copies the files that a run handed over to a directory of the user."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vers_rlm_mcp.errors import PathRefused, UsageError
from vers_rlm_mcp.store import copy_out

from .exit_codes import EXIT_FAILED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import SimpleNamespace

    from vers_rlm_mcp.runs.events import OutputFile
    from vers_rlm_mcp.store import StoredJournal


def save_files(
    journal: StoredJournal, files: Sequence[OutputFile], options: SimpleNamespace
) -> int:
    """Copy files to ``--out``; one that cannot be copied stops no other. Returns the exit code."""
    status = 0
    for each in files:
        try:
            path = copy_out(journal.file(each.name), options.out, each.name, replace=options.force)
            print(f"saved {path} ({each.size:,} bytes)", file=sys.stderr)
        except (PathRefused, UsageError) as error:
            status = EXIT_FAILED
            print(
                f"vers-rlm-mcp: {error} It stays on record: `vers-rlm-mcp runs files "
                f"{journal.run_id} --out DIR` copies it.",
                file=sys.stderr,
            )
    return status
