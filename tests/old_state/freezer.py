"""Packs a home directory with a state directory into an archive, and unpacks it for tests.

The archive holds what the layers of machines consist of and plain tools lose: overlayfs's
whiteouts (character devices) and extended attributes, owners that no account has, and times.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from io import BytesIO
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

HOME: Final = "/home/ann"
"""Where states are made, so that no path of the maker's computer is in them."""

FACTS: Final = "facts.json"
"""What lies in the home besides: which id is what, and what the frozen version said of it."""

CLOUD: Final = "cloud"
"""And the emulated service's machines."""

XATTR: Final = "SCHILY.xattr."
"""What names of extended attributes begin with in a pax header, as GNU tar writes them."""

OF_THE_HOST: Final = re.compile(r"(.*/bases/system-\w+-)[0-9a-f]{16}(/.*)?")
"""Bases made of the host's /etc. They are kept without its files, and under a digest that no /etc
has: on the maker's computer the emptied one would be used otherwise."""

EMPTIED: Final = re.compile("/(etc|var/lib/dpkg)/.+")


def pack(home: Path, archive: Path) -> None:
    """Pack everything below `home`."""
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(home.rglob("*")):
            name = str(path.relative_to(home))
            if host := OF_THE_HOST.fullmatch(name):
                if EMPTIED.match(host[2] or ""):
                    continue
                name = f"{host[1]}{'0' * 16}{host[2] or ''}"
            if stat.S_ISSOCK(path.lstat().st_mode):
                continue
            member = tar.gettarinfo(path, name)
            member.uname = member.gname = ""
            member.pax_headers = {f"{XATTR}{key}": value for key, value in _attributes(path)}
            tar.addfile(member, BytesIO(path.read_bytes()) if member.isreg() else None)


def unpack(archive: Path, home: Path) -> None:
    """Unpack into `home`, which takes the place of the one where the state was made.

    For root, owners are what they were; for anyone else everything is their own, as it is in
    states that they make.
    """
    modes: list[tuple[Path, tarfile.TarInfo]] = []
    with tarfile.open(archive) as tar:
        tar.extraction_filter = lambda member, _: member  # The argument came with Python 3.11.4.
        for member in tar:
            path = home / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if member.ischr():
                os.mknod(path, stat.S_IFCHR, os.makedev(member.devmajor, member.devminor))
            else:
                tar.extract(member, home, set_attrs=False)
            modes.append((path, member))
    for path, member in reversed(modes):
        _set_attributes(path, member)
    for record in _records(home / "state"):
        times = record.stat()
        record.write_text(record.read_text().replace(f'"{HOME}/', f'"{home}/'))
        os.utime(record, ns=(times.st_atime_ns, times.st_mtime_ns))


def _set_attributes(path: Path, member: tarfile.TarInfo) -> None:
    if os.geteuid() == 0:
        os.lchown(path, member.uid, member.gid)
    if member.issym():
        return
    for key, value in member.pax_headers.items():
        if key.startswith(XATTR):
            os.setxattr(path, key.removeprefix(XATTR), value.encode("latin-1"))
    path.chmod(member.mode)
    os.utime(path, (member.mtime, member.mtime))


def _records(state: Path) -> Iterator[Path]:
    """The records of machines and commits, which name the base by its path."""
    yield from state.glob("bubblewrap/machines/*/machine.json")
    yield from state.glob("bubblewrap/commits/*.json")


def _attributes(path: Path) -> Iterator[tuple[str, str]]:
    for key in os.listxattr(path, follow_symlinks=False):
        yield key, os.getxattr(path, key, follow_symlinks=False).decode("latin-1")


def traces(archive: Path, secrets: Sequence[str]) -> list[str]:
    """Which of `secrets` an archive tells, and where: in names or in contents."""
    found: list[str] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            content = file.read() if file else b""
            found += [
                f"{secret!r} in {member.name}"
                for secret in secrets
                if secret.encode() in content or secret in member.name
            ]
    return found
