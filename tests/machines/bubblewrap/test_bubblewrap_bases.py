"""Machines that start from a directory or an archive, and archives that mean harm."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.errors import SettingsError
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend, BubblewrapConfig, images
from vers_rlm_mcp.machines.bubblewrap.cache import Cache

if TYPE_CHECKING:
    from conftest import Shell

Entry = tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def file(name: str, content: bytes, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, size=len(content), mode=mode), content


def tar(*entries: Entry) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for item in entries:
            info, content = item if isinstance(item, tuple) else (item, b"")
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def image(path: Path, *layers: bytes, variables: tuple[str, ...] = ()) -> Path:
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    config = json.dumps({"config": {"Env": variables}}).encode()
    manifest = json.dumps([{"Config": "config.json", "Layers": names}]).encode()
    documents = [file("config.json", config), file("manifest.json", manifest)]
    content = [file(name, layer) for name, layer in zip(names, layers, strict=True)]
    path.write_bytes(tar(*content, *documents))
    return path


@pytest.fixture(scope="session")
def busybox() -> bytes:
    """The programs of a tiny system: a shell with what it links to."""
    found: list[Entry] = [entry(name, tarfile.DIRTYPE) for name in ("bin", "etc", "tmp", "lib64")]
    for name in ("sh", "cat", "ls", "id", "touch"):
        program = Path(shutil.which(name) or "").resolve()
        found.append(file(f"bin/{name}", program.read_bytes(), 0o755))
    maps = {
        line.split()[-1]
        for name in ("sh", "ls", "id")
        for line in _linked(shutil.which(name) or "")
    }
    found += [file(path.lstrip("/"), Path(path).read_bytes(), 0o755) for path in sorted(maps)]
    return tar(*found)


def _linked(program: str) -> list[str]:
    import subprocess

    listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    lines = [line.rsplit(" (", 1)[0] for line in listing.splitlines() if "/" in line]
    return [line.split("=> ")[-1].strip() for line in lines]


async def test_a_machine_starts_from_an_archive(tmp_path: Path, busybox: bytes, sh: Shell) -> None:
    changes = tar(
        file("etc/hello", b"from the second layer"),
        file("etc/gone", b""),
        entry("etc/link", tarfile.SYMTYPE, linkname="/etc/hello"),
    )
    more = tar(file("etc/.wh.gone", b""), entry("etc/.wh.nothing"))
    archive = image(tmp_path / "i.tar", busybox, changes, more, variables=("PATH=/bin", "X=y z"))
    async with BubblewrapBackend(tmp_path / "s", BubblewrapConfig(base=archive)) as backend:
        machine = await backend.create()
        assert await sh(machine, "cat /etc/link") == "from the second layer"
        assert (await sh(machine, "echo $PATH:$X")).startswith("/bin")
        assert "y z" in await sh(machine, "echo $X")
        assert await sh(machine, "ls /etc/gone 2>/dev/null; id -u") == "0\n"
        assert await sh(machine, "touch /bin/new /etc/new && echo written") == "written\n"
        await machine.snapshot()
        (branch,) = await machine.branch()
        assert await sh(branch, "ls /bin/new") == "/bin/new\n"
        await machine.delete()
        await branch.delete()


async def test_a_machine_starts_from_a_directory(tmp_path: Path, busybox: bytes, sh: Shell) -> None:
    root = tmp_path / "root"
    archive = image(tmp_path / "i.tar", busybox)
    images.unpack(archive, Cache(tmp_path), None).root.rename(root)
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    async with BubblewrapBackend(tmp_path / "s", BubblewrapConfig(base=root)) as backend:
        machine = await backend.create()
        assert await sh(machine, "cat /etc/passwd") == "root:x:0:0::/:/bin/sh\n"
        assert "workspace" in await sh(machine, "ls /")
        await sh(machine, "touch /etc/changed")
        await machine.delete()
    assert not (root / "etc/changed").exists()


@pytest.mark.parametrize("layer", [
    tar(file("../outside", b"x")),
    tar(file("a/../../outside", b"x")),
    tar(entry("out", tarfile.SYMTYPE, linkname="/"), file("out/tmp/vers-outside", b"x")),
    tar(entry("up", tarfile.SYMTYPE, linkname="../.."), file("up/outside", b"x")),
    tar(entry("hard", tarfile.LNKTYPE, linkname="../../../../../etc/passwd")),
    tar(entry("l", tarfile.SYMTYPE, linkname="/etc"), entry("h", tarfile.LNKTYPE,
                                                            linkname="l/passwd")),
    tar(file("..", b"x")),
    tar(file("a/..", b"x"), file("a/../..", b"x")),
    tar(file(".wh...", b"")),
    tar(entry("a", tarfile.DIRTYPE), file("a/.wh..", b"")),
    tar(entry("out", tarfile.SYMTYPE, linkname=".."), file("out/.wh.precious", b"")),
    tar(entry("out", tarfile.SYMTYPE, linkname=".."), file("out/.wh..wh..opq", b"")),
])  # fmt: skip
def test_an_archive_cannot_reach_out_of_its_directory(tmp_path: Path, layer: bytes) -> None:
    bases = tmp_path / "a" / "bases"
    bases.mkdir(parents=True)
    (bases / "precious").write_text("kept")
    (tmp_path / "outside").mkdir()
    with pytest.raises(SettingsError, match="cannot be used as a base"):
        images.unpack(image(tmp_path / "i.tar", layer), Cache(bases), None)
    assert (bases / "precious").read_text() == "kept"
    assert {path.name for path in bases.iterdir()} == {"lock", "precious"}
    assert not Path("/tmp/vers-outside").exists()


def test_names_may_begin_at_the_root_and_name_it(tmp_path: Path) -> None:
    layer = tar(entry("./", tarfile.DIRTYPE), file("./a", b"1"), file("/b", b"2"), file("//c", b""))
    root = images.unpack(image(tmp_path / "i.tar", layer), Cache(tmp_path), None).root
    assert {path.name: path.read_text() for path in root.iterdir()} == {"a": "1", "b": "2", "c": ""}


def test_devices_are_left_out_and_modes_kept(tmp_path: Path) -> None:
    layer = tar(
        entry("dev", tarfile.CHRTYPE, devmajor=1, devminor=1),
        entry("tmp", tarfile.DIRTYPE, mode=0o1777),
        file("su", b"", 0o4755),
    )
    root = images.unpack(image(tmp_path / "i.tar", layer), Cache(tmp_path), None).root
    assert sorted(path.name for path in root.iterdir()) == ["su", "tmp"]
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (root / "su").stat().st_mode & 0o7777 == 0o4755


@pytest.mark.parametrize("content", [b"", b"no tar", tar(file("manifest.json", b"{}")),
                                     tar(file("manifest.json", b"[]")), tar()])  # fmt: skip
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "i.tar").write_bytes(content)
    with pytest.raises(SettingsError, match="docker save"):
        images.unpack(tmp_path / "i.tar", Cache(tmp_path), None)
