"""What the test host boots from: made once from Debian's and Python's packages, and kept."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .emulator import STORE, mended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import IO

ROOT: Final = Path(__file__).parents[2]
SUITE: Final = "bookworm"
"""Its Python, 3.11, is the oldest that the project supports."""

SYSTEM: Final = (
    *("linux-image-cloud-amd64", "kmod", "python3", "openssh-server", "iproute2", "procps"),
    *("ca-certificates", "e2fsprogs", "git"),
)
GUEST: Final = ("python3",)

TOOLS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "ssh-keygen": "openssh-client",
}
"""The programs that are needed, and the packages that have them."""

PLATFORMS: Final = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")
PACKAGES_BYTES: Final = 2 << 30
STATE_BYTES: Final = 16 << 30
"""Sizes of the disks; what is not written takes no room."""

SMALLER: Final = (
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=force-confold",
    # The whole system is the kernel's first file system: it needs none to find another.
    '--essential-hook=mkdir -p "$1/etc/initramfs-tools" && '
    'echo update_initramfs=no > "$1/etc/initramfs-tools/update-initramfs.conf"',
)

CPIO: Final = "070701"
"""The magic number of the format that Linux unpacks at boot (Documentation/driver-api/early-
userspace/buffer-format.rst)."""


def missing_tools() -> Sequence[str]:
    """The packages that have to be installed before anything can be made."""
    found = os.environ["PATH"] + ":/usr/sbin:/sbin"
    return [package for tool, package in TOOLS.items() if not shutil.which(tool, path=found)]


def cache_dir() -> Path:
    """Where all of it is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vers-rlm-mcp" / "microvm"


class Images:
    """The files of a test host; each is made when it is first asked for, or no longer right."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def emulator(self) -> Path:
        """QEMU, mended. It looks for its parts in the directories beside its own."""
        name = "qemu-system-x86_64"
        found = shutil.which(name)
        assert found is not None, missing_tools()
        program = Path(found).read_bytes()
        home = self._directory / "qemu"

        def make(path: Path) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(mended(program))
            path.chmod(0o755)
            for part in ("lib", "share"):
                (home / part).unlink(missing_ok=True)
                (home / part).symlink_to(Path(found).parents[1] / part)

        return self._kept(f"qemu/bin/{name}", found.encode() + program + STORE.pattern, make)

    def key(self) -> Path:
        """The private key that the host lets in."""
        return self._kept("key", b"ed25519", _make_key)

    def system(self) -> Path:
        """The host's system, as Debian's packages make it."""
        return self._kept("system.tar", repr((SUITE, SYSTEM)).encode(), _system_maker(SYSTEM))

    def kernel(self) -> Path:
        """The kernel of that system."""
        return self._kept("vmlinuz", _digest(self.system()), self._make_kernel)

    def root(self) -> Path:
        """The file system that the kernel unpacks into memory at boot."""
        init = Path(__file__).with_name("init.sh").read_bytes()
        return self._kept("root.cpio", _digest(self.system()) + init, self._make_root)

    def packages(self) -> Path:
        """The disk with what the project depends on, and the image that machines start from."""
        wanted = sorted(_dependencies())
        guest = self._kept("guest.tar", repr((SUITE, GUEST)).encode(), _system_maker(GUEST))

        def make(path: Path) -> None:
            tree = path.with_suffix(".tree")
            shutil.rmtree(tree, ignore_errors=True)
            _install(wanted, tree / "site")
            _write_docker_archive(guest, tree / "image.tar")
            _make_disk(path, PACKAGES_BYTES, "-d", str(tree))
            shutil.rmtree(tree)

        return self._kept("packages.ext4", repr(wanted).encode() + _digest(guest), make)

    def state(self, fill: Callable[[Path], None]) -> Path:
        """The disk for what the host writes, with what `fill` wrote to it: nothing else stays."""

        def make(path: Path) -> None:
            _make_disk(path, STATE_BYTES)
            fill(path)

        return self._kept("state.ext4", _digest(self.packages()), make)

    def _make_kernel(self, path: Path) -> None:
        with tarfile.open(self.system()) as system, path.open("wb") as file:
            (name,) = (name for name in system.getnames() if "boot/vmlinuz-" in name)
            shutil.copyfileobj(_content(system, system.getmember(name)), file)

    def _make_root(self, path: Path) -> None:
        key = self.key()
        extra = {
            "init": (0o755, Path(__file__).with_name("init.sh").read_bytes()),
            "root/.ssh/authorized_keys": (0o600, key.with_suffix(".pub").read_bytes()),
            "etc/ssh/ssh_host_ed25519_key": (0o600, key.read_bytes()),
            "etc/ssh/ssh_host_ed25519_key.pub": (0o644, key.with_suffix(".pub").read_bytes()),
        }
        with tarfile.open(self.system()) as system, path.open("wb") as file:
            _write_cpio(file, system, extra)

    def _kept(self, name: str, origin: bytes, make: Callable[[Path], None]) -> Path:
        """A file of the cache, made anew when what it is made of is another."""
        path = self._directory / name
        mark = self._directory / f"{name}.origin"
        wanted = hashlib.sha256(origin).hexdigest()
        if path.exists() and mark.exists() and mark.read_text() == wanted:
            return path
        print(f"making {path}", flush=True)
        mark.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        make(path)
        mark.write_text(wanted)
        return path


def _digest(path: Path) -> bytes:
    return path.with_name(f"{path.name}.origin").read_bytes()


def _run(*argv: str) -> None:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    subprocess.run(argv, check=True, env={**os.environ, "PATH": path})


def _make_key(path: Path) -> None:
    path.with_suffix(".pub").unlink(missing_ok=True)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))


def _system_maker(packages: Sequence[str]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        include = f"--include={','.join(packages)}"
        _run("mmdebstrap", "--quiet", "--variant=minbase", include, *SMALLER, SUITE, str(path))

    return make


def _make_disk(path: Path, size: int, *options: str) -> None:
    with path.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", *options, str(path))


def _dependencies() -> Iterable[str]:
    """What the project and its tests need, as its own file says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    yield from project["project"]["dependencies"]
    yield from project["project"]["optional-dependencies"]["microvm"]
    yield from (name for name in project["dependency-groups"]["dev"] if name.startswith(TESTING))


TESTING: Final = ("pytest", "hypothesis", "inline-snapshot")
"""Of the tools for developers those that run in the host."""


def _install(packages: Sequence[str], directory: Path) -> None:
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    _run(
        *(sys.executable, "-m", "pip", "install", "-qq", "--target", str(directory)),
        *("--python-version=3.11", "--only-binary=:all:", *platforms, *packages),
    )


def _write_docker_archive(layer: Path, path: Path) -> None:
    """Wrap a system as an image of one layer, as `docker save` writes it."""
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": ["vers-rlm/test:1"], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        for name, data in (("config.json", config), ("manifest.json", manifest)):
            info = tarfile.TarInfo(name)
            text = json.dumps(data).encode()
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
        archive.add(layer, "layer.tar")


def _write_cpio(
    file: IO[bytes], system: tarfile.TarFile, extra: dict[str, tuple[int, bytes]]
) -> None:
    """Write a system, and some files, as the kernel unpacks it. Devices it makes by itself."""
    for number, member in enumerate(system, start=1):
        name = member.name.removeprefix("./")
        if member.isdir():
            _write_entry(file, number, name, 0o040000 | member.mode)
        elif member.issym():
            _write_entry(file, number, name, 0o120777, member.linkname.encode())
        elif member.isreg() or member.islnk():  # a hard link becomes a copy
            data = _content(system, member).read()
            _write_entry(file, number, name, 0o100000 | member.mode, data)
    _write_entry(file, 0, "root/.ssh", 0o040700)
    for name, (mode, data) in extra.items():
        _write_entry(file, 0, name, 0o100000 | mode, data)
    _write_entry(file, 0, "TRAILER!!!", 0)


def _write_entry(file: IO[bytes], number: int, name: str, mode: int, data: bytes = b"") -> None:
    # Everything is root's: number, mode, user, group, links, time, size, four devices, name.
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name.encode()) + 1, 0)
    header = CPIO + "".join(f"{field:08x}" for field in fields)
    for part in (header.encode() + name.encode() + b"\0", data):
        file.write(part + b"\0" * (-len(part) % 4))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content is not None, member.name
    return content
