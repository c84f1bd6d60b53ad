import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from vers_rlm_mcp.errors import InputError, PathRefused
from vers_rlm_mcp.runs import opened_files
from vers_rlm_mcp.runs.file_selection import MAX_FILES


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    directory = tmp_path / "allowed"
    directory.mkdir()
    return directory


def refused(files: Sequence[str] | dict[str, str], allowed: Sequence[Path]) -> str:
    with pytest.raises(PathRefused) as caught, opened_files(files, allowed):
        pass
    return str(caught.value)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_listed_file_is_known_by_its_file_name(allowed: Path):
    (allowed / "a b.txt").write_bytes(b"data")
    with opened_files([str(allowed / "a b.txt")], [allowed]) as files:
        assert {name: path.read_bytes() for name, path in files.items()} == {"a b.txt": b"data"}


def test_a_mapping_names_files_freely_and_takes_them_from_any_depth(allowed: Path):
    deep = allowed / "x" / "y"
    deep.mkdir(parents=True)
    (deep / "one").write_bytes(b"1")
    with opened_files({"first": str(deep / "one")}, [allowed]) as files:
        assert files["first"].read_bytes() == b"1"


def test_a_path_outside_is_refused_alike_whether_it_exists_or_not(allowed: Path):
    there, not_there = refused(["/etc/passwd"], [allowed]), refused(["/etc/nothing"], [allowed])
    assert there.replace("passwd", "nothing") == not_there
    assert str(allowed) in there


def test_dots_do_not_lead_out(allowed: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    assert "outside" in refused([f"{allowed}/../secret"], [allowed])


def test_a_directory_whose_name_merely_starts_alike_is_outside(allowed: Path, tmp_path: Path):
    sibling = tmp_path / "allowed-not"
    sibling.mkdir()
    (sibling / "file").write_text("x")
    assert "outside" in refused([str(sibling / "file")], [allowed])


def test_a_symlink_that_leads_out_is_refused_and_one_that_stays_inside_is_followed(
    allowed: Path, tmp_path: Path
):
    (tmp_path / "secret").write_text("secret")
    (allowed / "out").symlink_to(tmp_path / "secret")
    (allowed / "real").write_text("real")
    (allowed / "in").symlink_to("real")
    assert "outside" in refused([str(allowed / "out")], [allowed])
    with opened_files([str(allowed / "in")], [allowed]) as files:
        assert files["in"].read_text() == "real"


def test_an_allowed_directory_that_is_itself_a_symlink_is_allowed(allowed: Path, tmp_path: Path):
    (allowed / "file").write_text("x")
    link = tmp_path / "link"
    link.symlink_to(allowed)
    with opened_files([str(link / "file")], [link]) as files:
        assert files["file"].read_text() == "x"


def test_what_is_swapped_in_after_the_check_is_not_read(allowed: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    file = allowed / "file"
    file.write_text("mine")
    with opened_files([str(file)], [allowed]) as files:
        file.unlink()
        file.symlink_to(tmp_path / "secret")
        assert files["file"].read_text() == "mine"


@pytest.mark.parametrize("kind", ["fifo", "missing"])
def test_only_existing_regular_files_are_taken_and_nothing_blocks(allowed: Path, kind: str):
    path = allowed / kind
    if kind == "fifo":
        os.mkfifo(path)
    assert "cannot be read" in refused([str(path)], [allowed])


def test_an_empty_path_is_refused(allowed: Path):
    with pytest.raises(InputError), opened_files([""], [allowed]):
        pass


def test_a_loop_of_symlinks_and_a_null_byte_are_refused(allowed: Path):
    (allowed / "loop").symlink_to("loop")
    refused([str(allowed / "loop")], [allowed])
    refused({"null": f"{allowed}/a\0b"}, [allowed])


def test_without_an_allowed_directory_the_error_says_how_to_allow_one(tmp_path: Path):
    assert "--allow-dir" in refused([str(tmp_path / "x")], [])


@pytest.mark.parametrize("name", ["", ".", "..", "a//b", "../b", "/b", "a\0", "x" * 256])
def test_a_name_that_is_no_path_below_the_files_is_refused(allowed: Path, name: str):
    (allowed / "file").write_text("x")
    with pytest.raises(InputError), opened_files({name: str(allowed / "file")}, [allowed]):
        pass


def names(files: Sequence[str] | dict[str, str], allowed: Path) -> dict[str, str]:
    with opened_files(files, [allowed]) as opened:
        return {name: path.read_text() for name, path in opened.items()}


def write_all(directory: Path, *paths: str) -> None:
    for path in paths:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(path)


def test_files_of_one_name_are_told_apart_by_their_directories(allowed: Path):
    write_all(allowed, "one/x/same", "two/x/same", "other")
    paths = [str(allowed / each) for each in ("one/x/same", "two/x/same", "other", "other")]
    assert names(paths, allowed) == {
        "one/x/same": "one/x/same",
        "two/x/same": "two/x/same",
        "other": "other",
    }
    twice = [str(allowed / "one"), f"{allowed}/one/"]
    assert list(names(twice, allowed)) == ["one/x/same"]
    with pytest.raises(InputError, match="mapping"):
        names({"same": f"{allowed}/one", "same/x/same": f"{allowed}/two/x/same"}, allowed)


def test_a_directory_is_taken_with_the_paths_of_its_files(allowed: Path):
    write_all(allowed, "src/a.py", "src/deep/b.py", "not")
    assert list(names([f"{allowed}/src/"], allowed)) == ["src/a.py", "src/deep/b.py"]
    assert list(names({"x": str(allowed / "src")}, allowed)) == ["x/a.py", "x/deep/b.py"]


def test_what_git_ignores_and_links_are_left_out_and_told(allowed: Path, tmp_path: Path):
    write_all(tmp_path, "secret")
    write_all(allowed, "repo/.git/config", "repo/src/a.py", "repo/src/a.pyc", "repo/src/keep.pyc")
    write_all(allowed, "repo/src/build/x", "repo/src/deep/build", "repo/src/.hidden")
    (allowed / "repo/.gitignore").write_text("*.pyc\nbuild/\n")
    (allowed / "repo/src/.gitignore").write_text("!keep.pyc\n")
    (allowed / "repo/src/out").symlink_to(tmp_path / "secret")
    (allowed / "repo/src/outside").symlink_to(tmp_path)
    os.mkfifo(allowed / "repo/src/fifo")
    with opened_files([str(allowed / "repo/src")], [allowed]) as opened:
        assert sorted(opened) == [
            "src/.gitignore",
            "src/.hidden",
            "src/a.py",
            "src/deep/build",
            "src/keep.pyc",
        ]
        assert opened.notes == (
            f"2 entries of {allowed}/repo/src were left out, as .gitignore says.",
            f"3 links or special files in {allowed}/repo/src were left out.",
        )


def test_a_pattern_stands_for_the_files_that_match(allowed: Path, tmp_path: Path):
    write_all(allowed, "data/a.csv", "data/x/b.csv", "data/c.txt", "data/[odd].csv")
    (allowed / "data/out").symlink_to(tmp_path)
    write_all(tmp_path, "d.csv")
    assert list(names([f"{allowed}/data/*.csv"], allowed)) == ["[odd].csv", "a.csv"]
    assert list(names([f"{allowed}/data/**/*.csv"], allowed)) == ["[odd].csv", "a.csv", "x/b.csv"]
    assert list(names([f"{allowed}/data/[odd].csv"], allowed)) == ["[odd].csv"]
    assert "matches no file" in refused([f"{allowed}/*.csv"], [allowed])
    assert "outside" in refused([f"{tmp_path}/*"], [allowed])
    assert "outside" in refused([f"{allowed}/../*"], [allowed])
    assert "outside" in refused([str(tmp_path)], [allowed])


def test_homes_in_paths_are_expanded_and_variables_are_not(
    allowed: Path, monkeypatch: pytest.MonkeyPatch
):
    write_all(allowed, "a", "$HOME")
    monkeypatch.setenv("HOME", str(allowed))
    monkeypatch.setenv("KEY", "a secret")
    assert list(names(["~/a", f"{allowed}/$HOME"], allowed)) == ["a", "$HOME"]
    assert "secret" not in refused(["/$KEY"], [allowed])


def test_more_files_than_a_run_may_hold_open_are_refused(allowed: Path):
    with (
        pytest.raises(InputError, match="at most"),
        opened_files([f"f{number}" for number in range(MAX_FILES + 1)], [allowed]),
    ):
        pass


def test_names_that_are_not_utf8_are_carried_as_they_are(allowed: Path):
    path = os.fsdecode(os.fsencode(allowed) + b"/\xff$(x)\n'\"")
    Path(path).write_text("odd")
    with opened_files([path], [allowed]) as files:
        assert files[Path(path).name].read_text() == "odd"


def test_every_descriptor_is_closed_afterwards_also_after_a_refusal(allowed: Path):
    (allowed / "file").write_text("x")
    before = descriptors()
    with opened_files([str(allowed / "file")], [allowed]):
        assert descriptors() != before
    refused([str(allowed / "file"), str(allowed / "missing")], [allowed])
    assert descriptors() == before
