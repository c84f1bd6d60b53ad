"""How durable state is kept: files and SQLite. What it means is up to the rooms above."""

from __future__ import annotations

from .files import (
    DAMAGED,
    lock_within,
    locked,
    make_directory,
    make_state_directory,
    open_lock,
    open_private,
    read_file,
    replace_file,
    set_aside,
)
from .journals import Journal, Journals, StoredJournal
from .ledger import CommitIntent, CommitRecord, Ledger, MachineRecord
from .output_files import copy_out, safe_names, written_whole
from .threads import in_thread, in_thread_anyway, locked_without_blocking

__all__ = [
    "DAMAGED",
    "CommitIntent",
    "CommitRecord",
    "Journal",
    "Journals",
    "Ledger",
    "MachineRecord",
    "StoredJournal",
    "copy_out",
    "in_thread",
    "in_thread_anyway",
    "lock_within",
    "locked",
    "locked_without_blocking",
    "make_directory",
    "make_state_directory",
    "open_lock",
    "open_private",
    "read_file",
    "replace_file",
    "safe_names",
    "set_aside",
    "written_whole",
]
