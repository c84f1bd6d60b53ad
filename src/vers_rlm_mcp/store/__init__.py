"""How durable state is kept: files and SQLite. What it means is up to the rooms above."""

from __future__ import annotations

from .journals import Journal, Journals, StoredJournal
from .ledger import CommitIntent, CommitRecord, Ledger, MachineRecord

__all__ = [
    "CommitIntent",
    "CommitRecord",
    "Journal",
    "Journals",
    "Ledger",
    "MachineRecord",
    "StoredJournal",
]
