"""What a run is given: values, files, and files that become values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from lab import Lab, Turns, cell

from vers_rlm_mcp.errors import InputError
from vers_rlm_mcp.runs.inputs import PREVIEW_BYTES

if TYPE_CHECKING:
    from pathlib import Path


def prompt(model: Turns) -> str:
    return model.asked[0][-1].content


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("str", "naïve 🎉 \r\n\0 text"),
        ("str", ""),
        ("int", 2**70),
        ("float", 0.1),
        ("bool", True),
        ("list[int]", [1, 2, 3]),
        ("dict[str, any]", {"a": [None, {"b": "ü"}]}),
        ("str | None", None),
    ],
)
async def test_a_value_arrives_as_it_is(lab: Lab, kind: str, value: Any):
    model = Turns(cell(f"FINAL(repr(v) == {repr(value)!a})"))
    result = await lab.run(f"v: {kind} -> same: bool", model, inputs={"v": value})
    assert result.outputs == {"same": True}


async def test_a_value_is_described_to_the_model_and_not_given_whole(lab: Lab):
    model = Turns(cell("FINAL(len(text))"))
    text = "start" + "x" * 2_000_000 + "end"
    result = await lab.run("text -> n: int", model, inputs={"text": text})
    assert result.outputs == {"n": len(text)}
    assert "2,000,008 characters" in prompt(model)
    assert "start" in prompt(model)
    assert len(prompt(model)) < 5000


async def test_a_file_named_like_a_text_input_becomes_its_value(lab: Lab, tmp_path: Path):
    path = tmp_path / "log"
    path.write_text("é" * PREVIEW_BYTES + "end")
    model = Turns(cell("FINAL(log.count('é'))"))
    result = await lab.run("log -> n: int", model, files={"log": path})
    assert result.outputs == {"n": PREVIEW_BYTES}
    assert f"{2 * PREVIEW_BYTES + 3:,} bytes of UTF-8" in prompt(model)
    assert "left out" in prompt(model)
    assert "end" in prompt(model)


async def test_an_empty_file_is_an_empty_text(lab: Lab, tmp_path: Path):
    (tmp_path / "log").touch()
    model = Turns(cell("FINAL(log)"))
    result = await lab.run("log -> same", model, files={"log": tmp_path / "log"})
    assert result.outputs == {"same": ""}


async def test_other_files_lie_in_the_machine_and_the_model_is_told_where(lab: Lab, tmp_path: Path):
    (tmp_path / "data").write_bytes(b"\0\xff")
    model = Turns(cell("FINAL(exec('od -An -tx1 \"files/a b\"').stdout)"))
    result = await lab.run("-> hex", model, files={"a b": tmp_path / "data"})
    assert result.outputs == {"hex": " 00 ff\n"}
    assert "/workspace/files/a b" in prompt(model)


@pytest.mark.parametrize(
    ("signature", "inputs", "files", "text"),
    [
        ("a -> x", {}, {}, "missing inputs: a"),
        ("a -> x", {"a": "1", "b": "2"}, {}, "unknown inputs: b"),
        ("a: int -> x", {"a": "many"}, {}, "a"),
        ("a -> x", {"a": "1"}, {"a": "p"}, "both as an input and as a file: a"),
        ("a: int -> x", {}, {"a": "p"}, "can be the value of an input of type str"),
    ],
)
async def test_inputs_that_do_not_fit_are_refused_before_a_machine_is_made(
    lab: Lab,
    tmp_path: Path,
    signature: str,
    inputs: dict[str, Any],
    files: dict[str, str],
    text: str,
):
    paths = {name: tmp_path / path for name, path in files.items()}
    with pytest.raises(InputError, match=text):
        await lab.run(signature, Turns(), inputs=inputs, files=paths)
    assert lab.events == []
