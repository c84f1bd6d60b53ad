"""The root file system that a machine starts from.

The default is the host's own system, of which machines see only the programs and libraries in /usr
and the entries of /etc in `SHOWN_ETC`. Everything else starts empty.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import network
from .identity import FIRST_ID, Attachment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .cache import Cache
    from .config import Network

HOST_TOP: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr")
"""The host's directories that are shown; on most systems all but /usr are links into it."""

EMPTY: Final[Mapping[str, int]] = {
    "app": 0o755,
    "data": 0o755,
    "home": 0o755,
    "media": 0o755,
    "mnt": 0o755,
    "opt": 0o755,
    "root": 0o700,
    "srv": 0o755,
    "tmp": 0o1777,
    "var": 0o755,
    "workspace": 0o755,
}
"""The writable directories that every machine has, whatever its base, and their modes."""

EMPTY_BELOW_VAR: Final[Mapping[str, int]] = {
    "backups": 0o755,
    "cache": 0o755,
    "lib": 0o755,
    "local": 0o755,
    "log": 0o755,
    "mail": 0o755,
    "opt": 0o755,
    "spool": 0o755,
    "tmp": 0o1777,
}

SHOWN_ETC: Final = (
    "alternatives",
    "apt",
    "bash.bashrc",
    "bash_completion.d",
    "ca-certificates",
    "ca-certificates.conf",
    "debconf.conf",
    "debian_version",
    "default/locale",
    "dpkg",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "issue",
    "java-17-openjdk",
    "java-21-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "locale.conf",
    "localtime",
    "lsb-release",
    "magic",
    "magic.mime",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "perl",
    "pki/ca-trust",
    "pki/tls/certs",
    "pki/tls/cert.pem",
    "pki/tls/openssl.cnf",
    "profile",
    "profile.d",
    "protocols",
    "python3",
    "python3.11",
    "python3.12",
    "python3.13",
    "redhat-release",
    "rpc",
    "services",
    "shells",
    "skel",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
    "vim",
    "wgetrc",
    "xattr.conf",
)
"""Entries of the host's /etc that programs need and that hold nothing private."""

PACKAGES: Final = Path("/var/lib/dpkg")
"""dpkg's database of what is in /usr. Without it, a machine's root could install nothing more."""

HIDDEN_NAMES: Final = ("auth.conf", "auth.conf.d")
"""Names inside those entries that are left out because they hold secrets: apt's passwords."""

SYSTEM_IDS: Final = 1000
"""Users and groups with lower ids belong to the system; the others are people."""

NOBODY: Final = 65534

KERNEL_DIRECTORIES: Final = frozenset({"dev", "proc", "run", "sys", ".vers"})
"""Made by PID 1, never taken from a base."""

PYTHON: Final = "/.python"
"""Where the host's Python is shown in machines whose base has none."""

VERSION: Final = 2
"""The version of the directories made here; increase it when they change."""

HOSTS: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


@dataclass(frozen=True, slots=True)
class Slot:
    """One writable file system."""

    name: str
    """Its name on disk."""
    base: str
    """The directories below it, relative to PID 1's hidden directory."""
    views: Mapping[str, str]
    """The directories in it that the machine sees (``""`` is all of it), and where."""


@dataclass(frozen=True, slots=True)
class Rootfs:
    """Everything about a base that booting needs."""

    attachments: tuple[Attachment, ...]
    slots: tuple[Slot, ...]
    links: Mapping[str, str] = field(default_factory=dict[str, str])
    """Symlinks in the machine's root directory."""
    binds: Mapping[str, str] = field(default_factory=dict[str, str])
    """Read-only directories outside of the slots, and their place in the machine."""
    writable: bool = True
    """Whether the machine's root user owns the system directories."""


def host_rootfs(cache: Cache, wanted: Network, *, mapped: bool) -> Rootfs:
    """The host's own system, shown selectively. Raises OSError.

    Args:
        cache: Where generated directories are kept.
        wanted: The network that machines have.
        mapped: Whether machines have their own range of ids.
    """
    tops = [path for name in HOST_TOP if (path := Path("/", name)).exists()]
    shown = [path.name for path in tops if not path.is_symlink()]
    system = _system_directory(cache, wanted, mapped=mapped, with_etc=True)
    attachments = [Attachment(Path("/", name), f"base/{name}", mapped=mapped) for name in shown]
    return Rootfs(
        attachments=(*attachments, Attachment(system, "base/system")),
        slots=(
            *(Slot(name, f"base/{name}", {"": f"/{name}"}) for name in shown),
            Slot("system", "base/system", _views(system.iterdir())),
        ),
        links=_links(tops),
        writable=mapped,
    )


def directory_rootfs(
    cache: Cache, root: Path, wanted: Network, *, mapped: bool, shifted: bool = False
) -> Rootfs:
    """A root directory that the user has chosen, unchanged. Raises OSError.

    `shifted` says that its files already belong to the machines' own ids. The host's Python is
    shown where the directory has none.
    """
    entries = [path for path in root.iterdir() if path.name not in KERNEL_DIRECTORIES]
    system = _system_directory(cache, wanted, mapped=mapped, with_etc=False)
    taken = {path.name for path in entries}
    made = [path for path in system.iterdir() if path.name not in taken]
    python = _python_for(root)
    return Rootfs(
        attachments=(
            Attachment(root, "base/root", mapped=mapped and not shifted),
            Attachment(system, "base/system"),
            *([Attachment(python, "base/python", mapped=mapped)] if python else []),
        ),
        slots=(Slot("system", "base/root:base/system", _views([*entries, *made])),),
        links=_links(entries),
        binds={"base/python": PYTHON} if python else {},
        writable=mapped or root.stat().st_uid == os.getuid(),
    )


def _python_for(root: Path) -> Path | None:
    """The host's Python installation, if the directory has none and it can be shown alone."""
    prefix = Path(sys.base_prefix)
    own = any(os.path.lexists(root / name / "python3") for name in ("usr/bin", "usr/local/bin"))
    return None if own or prefix.is_relative_to("/usr") else prefix


def _views(entries: Iterable[Path]) -> dict[str, str]:
    shown = sorted(path.name for path in entries if path.is_dir() and not path.is_symlink())
    return {name: f"/{name}" for name in shown}


def _links(entries: Iterable[Path]) -> dict[str, str]:
    return {f"/{path.name}": str(path.readlink()) for path in entries if path.is_symlink()}


def _system_directory(cache: Cache, wanted: Network, *, mapped: bool, with_etc: bool) -> Path:
    """The directories that are generated, not shown: made once, and again when /etc changes."""
    resolver = _resolver(wanted)
    content = (VERSION, resolver, sorted(_fingerprint()) if with_etc else [])

    def make(root: Path) -> None:
        _make_system_directory(root, resolver, with_etc=with_etc)
        if mapped:
            if with_etc and PACKAGES.is_dir():
                shutil.copytree(PACKAGES, root / "var/lib/dpkg", symlinks=True)
            _shift_owners(root)

    return cache.provide("system", (wanted, mapped, with_etc), content, make)


def _resolver(wanted: Network) -> str:
    """The content of /etc/resolv.conf."""
    if wanted == "on":
        return f"nameserver {network.NAMESERVER}\n"
    if wanted == "host":
        return Path("/etc/resolv.conf").read_text()
    return ""


def _fingerprint() -> Iterable[tuple[str, int, int]]:
    for name in (*SHOWN_ETC, "passwd", "group", PACKAGES / "status"):
        place = Path("/etc") / name
        paths = [place, *place.rglob("*")] if place.is_dir() else [place]
        for path in paths:
            if path.exists():
                info = path.stat()
                yield str(path), info.st_size, info.st_mtime_ns


def _make_system_directory(root: Path, resolver: str, *, with_etc: bool) -> None:
    below_var = {f"var/{name}": mode for name, mode in EMPTY_BELOW_VAR.items()}
    for name, mode in {**EMPTY, **below_var}.items():
        (root / name).mkdir(parents=True)
        (root / name).chmod(mode)
    (root / "var/run").symlink_to("/run")
    (root / "var/lock").symlink_to("/run/lock")
    etc = root / "etc"
    etc.mkdir()
    (etc / "hosts").write_text(HOSTS)
    (etc / "resolv.conf").write_text(resolver)
    if with_etc:
        _make_etc(etc)


def _make_etc(etc: Path) -> None:
    for name in SHOWN_ETC:
        _copy_readable(Path("/etc") / name, etc / name)
    (etc / "passwd").write_text(_accounts(Path("/etc/passwd")))
    (etc / "group").write_text(_accounts(Path("/etc/group")))
    (etc / "mtab").symlink_to("/proc/self/mounts")
    for name in ("hostname", "fstab"):
        (etc / name).touch()


def _copy_readable(source: Path, target: Path) -> None:
    """Copy the parts of an entry of /etc that everyone may read."""
    if source.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.readlink())
    elif source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for entry in source.iterdir():
            if entry.name not in HIDDEN_NAMES:
                _copy_readable(entry, target / entry.name)
    elif source.is_file() and source.stat().st_mode & 0o004:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _accounts(path: Path) -> str:
    """The lines of passwd or group that belong to the system, without people or passwords."""
    kept: list[str] = []
    for line in path.read_text(errors="replace").splitlines():
        parts = line.split(":")
        number = int(parts[2]) if len(parts) > 2 and parts[2].isdecimal() else SYSTEM_IDS
        if number < SYSTEM_IDS or number == NOBODY:
            kept.append(":".join([parts[0], "x", *parts[2:]]))
    return "\n".join(kept) + "\n"


def _shift_owners(root: Path) -> None:
    """Give everything to the machines' root user."""
    for directory, names, files in os.walk(root):
        for name in (".", *names, *files):
            os.chown(Path(directory) / name, FIRST_ID, FIRST_ID, follow_symlinks=False)
