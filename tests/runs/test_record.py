"""The journal: a run on disk as it happens."""

from __future__ import annotations

import json
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from lab import Lab, Turns, cell

from vers_rlm_mcp.errors import InputError, ModelError, UsageError
from vers_rlm_mcp.models import open_model
from vers_rlm_mcp.runs import events, load_past, summaries
from vers_rlm_mcp.runs.conversation import OUTPUT_PIECES
from vers_rlm_mcp.store.journals import INLINE_CHARS, Journal, Journals
from vers_rlm_mcp.values import MAX_DEPTH, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic import JsonValue

    from vers_rlm_mcp import rlm

KEY = "sk-sentinel-0123456789abcdef"


async def test_the_journal_holds_every_event_in_order(lab: Lab):
    model = Turns(cell("print('out'); llmQuery('?')"), cell("FINAL(1)"), usage=Usage(3, 4))
    result = await lab.run("-> x: int", model, sub_model=Turns("!"))
    lines = lab.journal(result)
    assert [line["event"] for line in lines] == [event.kind() for event in lab.events]
    at = [line["at"] for line in lines]
    assert at == sorted(at)
    assert lines[-1]["outputs"] == {"x": 1}
    assert lines[-1]["usage"]["input_tokens"] == 6


async def test_an_event_is_on_disk_when_it_is_told(lab: Lab):
    def look(event: rlm.Event) -> None:
        (journal,) = (lab.settings.state_dir / "runs").glob("*/events.jsonl")
        last = journal.read_text().splitlines()[-1]
        assert json.loads(last)["event"] == event.kind()

    await lab.run("-> x: int", Turns(cell("FINAL(1)")), on_event=look)


async def test_the_journal_grows_linearly_in_turns(lab: Lab):
    async def size(turns: int) -> int:
        model = Turns(*[cell("print('y' * 1000)")] * turns, '{"x": 1}')
        how = {"checkpoints": "step"}
        result = await lab.run("-> x: int", model, max_iterations=turns, settings=how)
        directory = lab.settings.state_dir / "runs" / result.run_id
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())

    five, ten, twenty = [await size(turns) for turns in (5, 10, 20)]
    assert 1.8 < (twenty - ten) / (ten - five) < 2.2


async def test_no_one_else_can_read_it(lab: Lab):
    result = await lab.run("-> x: int", Turns(cell("FINAL(1)")))
    mode = (lab.settings.state_dir / "runs" / result.run_id).stat().st_mode
    assert stat.S_IMODE(mode) == 0o700


def journal_of(directory: Path, *events: dict[str, object]) -> list[dict[str, object]]:
    with Journal(directory) as journal:
        for event in events:
            journal.append(event)  # pyright: ignore[reportArgumentType]
    return [json.loads(line) for line in (directory / "events.jsonl").read_text().split("\n")[:-1]]


def test_a_long_text_is_stored_once_beside_it(tmp_path: Path):
    text = "é" * (INLINE_CHARS + 1)
    first, second = journal_of(tmp_path / "run", {"a": text}, {"b": [{"c": text}]})
    entry = first["a"]
    assert isinstance(entry, dict)
    assert second["b"] == [{"c": entry}]
    (stored,) = (tmp_path / "run" / "values").iterdir()
    assert stored.name == entry["sha256"]
    assert stored.read_text() == text


def test_any_text_comes_back_as_it_was(tmp_path: Path):
    text = "\ud800 \udcff \n \u2028 \\ud800 🎉"
    (line,) = journal_of(tmp_path / "run", {"text": text})
    assert line["text"] == text


async def test_a_full_disk_ends_the_journal_and_not_the_run(lab: Lab):
    def fill_the_disk(event: rlm.Event) -> None:
        if isinstance(event, events.MachineMade):
            (values,) = (lab.settings.state_dir / "runs").glob("*/values")
            values.rmdir()
            values.symlink_to("/dev/full")

    code = f"print('y' * {INLINE_CHARS + 1}); FINAL(1)"
    result = await lab.run("-> x: int", Turns(cell(code)), on_event=fill_the_disk)
    assert result.outputs == {"x": 1}
    (warning,) = result.warnings
    assert "breaks off" in warning
    assert result.run_id in warning


def test_a_journal_that_cannot_be_begun_says_where_and_what_to_do(tmp_path: Path):
    (tmp_path / "runs").touch()
    with pytest.raises(UsageError, match="Not a directory"):
        Journal(tmp_path / "runs" / "run-1")


def test_a_journal_on_a_full_disk_is_closed_all_the_same(tmp_path: Path):
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with Journal(tmp_path) as journal:
        journal.append({"a": 1})
        journal.append({"b": 2})
    assert journal.problem
    assert "No space left" in journal.problem


async def test_output_with_lone_surrogates_does_not_end_a_run(lab: Lab):
    result = await lab.run("-> x", Turns(cell(r"print('\ud800'); FINAL('\udcff')")))
    assert result.status == "finished"
    assert lab.journal(result)[-1]["status"] == "finished"


async def test_a_cell_that_writes_byte_by_byte_does_not_fill_the_journal(lab: Lab):
    code = (
        "import os, time\nfor _ in range(300):\n    os.write(1, b'x'); time.sleep(0.001)\nFINAL(1)"
    )
    await lab.run("-> x: int", Turns(cell(code)))
    pieces = lab.happened(events.CellOutput)
    assert "".join(piece.text for piece in pieces) == "x" * 300
    assert len(pieces) < 300 < OUTPUT_PIECES


class Echo(BaseHTTPRequestHandler):
    """A provider that answers every request with 401 and all that it was sent."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"error": {"message": f"wrong key: {self.headers}", "type": "x"}})
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


@pytest.fixture
def provider() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("name", ["openai:any", "anthropic:any"])
async def test_no_key_is_ever_written_down(lab: Lab, provider: str, name: str):
    environment = {
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"{provider}/v1",
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": provider,
    }
    keyed = open_model(name, environment)
    with pytest.raises(ModelError) as caught:
        await lab.run("-> x", keyed)
    code = "try:\n    llmQuery('?')\nexcept RuntimeError as e:\n    FINAL(str(e))"
    result = await lab.run("-> x", Turns(cell(code)), sub_model=keyed)
    await keyed.aclose()
    assert "401" in str(result.outputs["x"]) or "key" in str(result.outputs["x"])
    runs = lab.settings.state_dir / "runs"
    written = b"".join(path.read_bytes() for path in runs.rglob("*") if path.is_file())
    assert KEY.encode() not in written
    assert KEY not in f"{caught.value} {result}"


async def test_inputs_are_read_back_however_deep_they_may_be(lab: Lab):
    value: JsonValue = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    result = await lab.run("x: any -> y: int", Turns(cell("FINAL(1)")), inputs={"x": value})
    past = load_past(Journals(lab.settings.state_dir).of(result.run_id))
    assert past.inputs == {"x": value}
    with pytest.raises(InputError, match="deeper than 200 levels"):
        await lab.run("x: any -> y: int", Turns(), inputs={"x": [value]})


@pytest.mark.parametrize(
    "line", ["", '{"event": "run_started"}', '{"at": 1, "event": "run_started"}']
)
async def test_a_journal_without_a_beginning_is_listed_beside_the_others(lab: Lab, line: str):
    result = await lab.run("-> y: int", Turns(cell("FINAL(1)")))
    directory = lab.settings.state_dir / "runs" / "run-0"
    directory.mkdir()
    (directory / "events.jsonl").write_text(f"{line}\n")
    states = {each.id: each.state for each in summaries(Journals(lab.settings.state_dir))}
    assert states == {result.run_id: "finished", "run-0": "broken off"}
    with pytest.raises(UsageError, match="Start it again"):
        await lab.resume("run-0", Turns())
    assert (await lab.run("-> y: int", Turns(cell("FINAL(2)")))).outputs == {"y": 2}
