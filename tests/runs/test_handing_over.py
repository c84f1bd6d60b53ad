"""Files of a run outlive its machine, under names that are safe everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from lab import Turns, cell

from vers_rlm_mcp.errors import PathRefused, SignatureError, UsageError
from vers_rlm_mcp.rlm import Signature
from vers_rlm_mcp.runs import handover, load_record
from vers_rlm_mcp.store import Journals, copy_out, safe_names

if TYPE_CHECKING:
    from pathlib import Path

    from lab import Lab

    from vers_rlm_mcp.runs import RunResult


def kept(lab: Lab, result: RunResult) -> dict[str, bytes]:
    journal = Journals(lab.settings.state_dir).of(result.run_id)
    return {each.name: journal.file(each.name).read_bytes() for each in result.files}


async def test_outputs_that_are_files_are_kept_with_what_lies_in_out(real: Lab):
    code = """
writeFile("report.csv", "a,b\\n1,2\\n")
writeFile("out/plots/one.png", b"\\x89PNG")
writeFile("out/.hidden", "h")
writeFile("deep/er/x.log", "log")
writeFile("other", "stays")
FINAL(report="report.csv", parts=["/workspace/report.csv", "deep/er/x.log"], words="two")
"""
    result = await real.run(
        "-> report: file, parts: list[file], words, more?: file",
        Turns(cell(code)),
        output_files=["**/*.log"],
    )
    assert result.status == "finished", result
    assert result.outputs == {
        "report": "report.csv",
        "parts": ["report.csv", "deep/er/x.log"],
        "words": "two",
        "more": None,
    }
    assert kept(real, result) == {
        "report.csv": b"a,b\n1,2\n",
        "deep/er/x.log": b"log",
        "plots/one.png": b"\x89PNG",
        ".hidden": b"h",
    }
    assert result.warnings == ()
    assert await real.machines() == []
    journal = Journals(real.settings.state_dir).of(result.run_id)
    assert {journal.file(each.name).stat().st_mode & 0o777 for each in result.files} == {0o600}
    recorded = load_record(Journals(real.settings.state_dir).of(result.run_id)).result
    assert recorded
    assert (recorded.files, recorded.outputs) == (result.files, result.outputs)


async def test_a_file_that_is_not_there_is_refused_and_the_model_told(lab: Lab):
    model = Turns(
        cell("FINAL('missing.csv')"),
        cell("FINAL('.')"),
        cell("writeFile('there.csv', 'x'); FINAL('there.csv')"),
    )
    result = await lab.run("-> report: file", model)
    assert result.outputs == {"report": "there.csv"}
    assert "there is no such file" in (result.steps[0].error or "")
    assert "it is a directory" in (result.steps[1].error or "")
    assert "A `file` is the path of a file that you wrote" in model.asked[0][-1].content


async def test_links_and_special_files_are_left_out_and_told(real: Lab):
    code = """
import os
os.makedirs("/workspace/out")
os.symlink("/etc/passwd", "/workspace/out/link")
os.mkfifo("/workspace/out/pipe")
open("/workspace/out/CON.txt", "w").write("reserved")
open("/workspace/out/a", "w").write("1")
open("/workspace/out/A", "w").write("2")
FINAL(1)
"""
    result = await real.run("-> x: int", Turns(cell(code)))
    assert kept(real, result) == {"_CON.txt": b"reserved", "A": b"2", "a-2": b"1"}
    told = "\n".join(result.warnings)
    assert "'/workspace/out/link' was not handed over: it is a link or a special file" in told
    assert "'/workspace/out/pipe' was not handed over" in told
    assert "'/workspace/out/CON.txt' was handed over as '_CON.txt'" in told


async def test_the_files_of_a_run_that_ended_early_are_kept_and_bounded(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(handover, "MOST_BYTES", 5)
    monkeypatch.setattr(handover, "MOST_FILES", 3)
    code = "for n in range(4): writeFile(f'out/{n}', 'xyz')"
    result = await lab.run("-> x: int", Turns(cell(code), "nothing", "nothing"), max_iterations=1)
    assert result.status == "partial"
    assert list(kept(lab, result)) == ["0"]
    told = "\n".join(result.warnings)
    assert "Only 3 files were handed over" in told
    assert "'/workspace/out/1' was not handed over: it would exceed" in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: file -> y", "an input cannot be a `file`"),
        ("-> y: dict[str, file]", "a file is an output of its own"),
        ("-> y: list[list[file]]", "a file is an output of its own"),
        ("-> y: file | int", "a file is an output of its own"),
    ],
)
def test_files_are_outputs_of_their_own(text: str, said: str):
    with pytest.raises(SignatureError, match=said):
        Signature.parse(text)
    assert Signature.parse("-> a: file, b?: list[file], c: Literal['file']").file_paths(
        {"a": "x", "b": ["y", "x"], "c": "file"}
    ) == ("x", "y")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a/b.txt", "a/b.txt"),
        ("../../etc/passwd", "etc/passwd"),
        ("/", "file"),
        ("a\\b", "a_b"),
        ("C:x", "C_x"),
        ("nul.tar.gz", "_nul.tar.gz"),
        ("trailing. ", "trailing"),
        ("\x1b[31mred", "_[31mred"),
        ("e\u0301", "\u00e9"),
        ("\udcff", "_"),
        ("...", "_"),
    ],
)
def test_a_name_from_a_machine_is_made_safe(name: str, safe: str):
    assert safe_names([name]) == {name: safe}


def test_names_stay_apart_and_short():
    names = ["a", "A", "a/b", "x/y", "x", "ﬁ", "fi", "n" * 300 + ".csv"]
    safe = safe_names(names)
    assert len({each.casefold() for each in safe.values()}) == len(names)
    assert all(len(each.encode()) <= 140 for each in safe.values())
    assert safe["n" * 300 + ".csv"].endswith(".csv")
    files = set(safe.values())
    assert not any("/".join(each.split("/")[:-1]) in files for each in files if "/" in each)


def test_a_copy_replaces_nothing_and_leaves_by_no_link(tmp_path: Path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_text("new")
    assert copy_out(source, out, "a/b").read_text() == "new"
    (out / "a/b").write_text("mine")
    with pytest.raises(PathRefused, match="--force replaces it"):
        copy_out(source, out, "a/b")
    assert (out / "a/b").read_text() == "mine"
    assert copy_out(source, out, "a/b", replace=True).read_text() == "new"
    (out / "link").symlink_to(tmp_path)
    with pytest.raises(PathRefused, match="leads out of"):
        copy_out(source, out, "link/b")
    (out / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PathRefused, match="exists"):
        copy_out(source, out, "dangling")
    assert [path.name for path in (out / "a").iterdir()] == ["b"]


async def test_only_what_was_handed_over_can_be_asked_for(lab: Lab):
    result = await lab.run("-> x: int", Turns(cell("FINAL(1)")))
    journal = Journals(lab.settings.state_dir).of(result.run_id)
    for name in ("missing", "../events.jsonl", "/etc/passwd", ""):
        with pytest.raises(UsageError, match="handed over no file"):
            journal.file(name)
