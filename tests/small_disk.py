"""A disk for a state directory, which can be made to be full."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MOST: Final = 1 << 30
"""More bytes and more files than a state directory takes here."""

PAGE: Final = 4096

REMOUNTS: Final = 20
"""Attempts to limit a disk that is being written to."""


class Disk:
    """A file system of its own, which can be made to hold just a little more than it does."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._mount("-t", "tmpfs", "-o", f"size={MOST},nr_inodes={MOST},mode=755")

    def leave(self, kind: str, count: int) -> None:
        """Let so many files be made, or so many pages be filled, and no more."""
        for _ in range(REMOUNTS):
            now = os.statvfs(self.place)
            if kind == "files":
                option = f"nr_inodes={now.f_files - now.f_ffree + count}"
            else:
                option = f"size={(now.f_blocks - now.f_bfree + count) * PAGE}"
            # It fails when more than that has been written in the meantime.
            with suppress(subprocess.CalledProcessError):
                self._mount("-o", f"remount,{option}")
                return
        raise AssertionError(f"{self.place} is written to faster than it can be limited")

    def release(self) -> None:
        """Let it grow again."""
        self._mount("-o", f"remount,size={MOST},nr_inodes={MOST}")

    def garbage(self) -> set[str]:
        """What of the store nobody needs."""
        store = self.place / "bubblewrap"
        records = [*store.glob("machines/*/machine.json"), *store.glob("commits/*.json")]
        needed = {name for path in records for name in json.loads(path.read_bytes())["layers"]}
        layers = {path.name for path in (store / "layers").iterdir()}
        return layers - needed | {path.name for path in (store / "trash").iterdir()}

    def unmount(self) -> None:
        """Let it go, whoever still holds something there."""
        subprocess.run(["umount", "--lazy", self.place], check=True)

    def _mount(self, *options: str) -> None:
        subprocess.run(["mount", *options, "tmpfs", self.place], check=True)
