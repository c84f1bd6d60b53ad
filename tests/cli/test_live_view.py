"""What a run shows while it goes on, on terminals of all kinds."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vers_rlm_mcp.cli.live_view import LiveView
from vers_rlm_mcp.cli.terminal import print_safe
from vers_rlm_mcp.runs import events
from vers_rlm_mcp.settings import Settings
from vers_rlm_mcp.values import Usage

SEEN = [
    events.RunStarted(
        run_id="run-1",
        signature="-> x",
        machine_id="bw-1",
        model="m",
        sub_model="m",
        max_steps=20,
    ),
    events.ModelAsked(1, "step", 2),
    events.ModelReplied(
        step=1, purpose="step", text="…", usage=Usage(1000, 234, usd=0.0123), seconds=1.0
    ),
    events.CellStarted(1, "import time\ntime.sleep(9)"),
    *(events.SubCallStarted(1, number, "prompt") for number in (1, 2, 3)),
    events.SubCallFinished(step=1, number=1, text="t", usage=Usage(10, 5, usd=0.0), seconds=1.0),
    events.ChildStarted(child="1", origin="branch", machine_id="bw-2", about="plan"),
    events.InChild("1", events.ModelAsked(1, "step", 2)),
    events.InChild("2", events.CellOutput(4, "first\n\x1b[31mlast line\x1b[0m" + "x" * 300)),
]


def drawn(view: LiveView, width: int, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    console = Console(file=file, width=width, force_terminal=True, no_color=True)
    console.print(view.render())
    file.flush()
    assert isinstance(file.buffer, io.BytesIO)
    return file.buffer.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize(("width", "encoding"), [(120, "utf-8"), (24, "utf-8"), (60, "ascii")])
def test_the_view_tells_what_happens_now_and_what_is_spent(width: int, encoding: str):
    view = LiveView(Settings.model_validate({"max_usd": 2.0, "max_tokens": 50_000}))
    for event in SEEN:
        view.follow(event)
    lines = drawn(view, width, encoding)
    assert all(len(line) <= width for line in lines)
    assert not any("\x1b[31m" in line for line in lines)
    if width == 24:
        assert len(lines) == 5
        return
    text = "\n".join(lines)
    assert "1,249 of 50,000 tokens" in text
    assert "step 1: running import time time.sleep(9)" in text
    assert "1 of 3" in text
    assert "[1] step 1: the model is thinking" in text
    if width == 120:
        assert "0.0123 of 2.0 USD" in text


def test_a_child_that_has_ended_is_shown_no_more():
    view = LiveView(Settings.model_validate({}))
    for event in SEEN:
        view.follow(event)
    ended = events.ChildFinished(
        child="1", status="finished", outputs={}, reason="", score=None, steps=1,
        usage=Usage(), seconds=1.0,
    )  # fmt: skip
    assert "1 finished" in str(view.follow(ended))
    assert "[1]" not in "\n".join(drawn(view, 120))


def test_signs_are_plain_where_the_encoding_lacks_them():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    print_safe(Console(file=file), "✅ Run finished → ⚠️ 🧠 naïve")
    file.flush()
    assert isinstance(file.buffer, io.BytesIO)
    assert file.buffer.getvalue() == b"[ok] Run finished -> [!] * na\\xefve\n"
