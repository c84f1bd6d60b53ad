"""`RLM` on bubblewrap machines, with a scripted model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import vers_rlm_mcp
from vers_rlm_mcp import RLM, Machines, RunStream, events
from vers_rlm_mcp.errors import InputError, ModelUnavailable, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COUNT = """
--- reply
I count.
```python
lines = log.splitlines()
print(len(lines), "lines;", task)
```
--- reply when="^Is it bad"
yes
--- reply
```python
FINAL(cause=llmQuery("Is it bad? " + lines[-1]), count=len(lines))
```
"""

SLOW = """
--- reply
```python
import time
print("begun", flush=True)
time.sleep(60)
```
"""


@dataclass
class Place:
    """Where the tests keep state and scripts."""

    path: Path

    def rlm(self, script: str = "", **settings: Any) -> RLM:
        if script:
            file = self.path / "script.txt"
            file.write_text(script)
            settings["model"] = f"scripted:{file}"
        return RLM(backend="bubblewrap", state_dir=self.path / "state", **settings)

    def machines(self) -> Machines:
        return Machines(backend="bubblewrap", state_dir=self.path / "state")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_call_runs_a_task_on_a_file_of_this_computer(place: Place) -> None:
    log = place.path / "access.log"
    log.write_text("ok\nok\ndown\n")
    async with place.rlm(COUNT) as rlm:
        result = await rlm("log, task -> cause: str, count: int", log=log, task="Why?")
    assert result.outputs == {"cause": "yes", "count": 3}
    assert result.status == "finished"
    assert [step.number for step in result.steps] == [1, 2]
    assert "3 lines; Why?" in result.steps[0].output
    assert result.run_id.startswith("run-")
    assert result.sub_calls == 1


async def test_runs_of_one_rlm_may_be_under_way_at_once(place: Place) -> None:
    counts: dict[int, Any] = {}
    async with place.rlm(COUNT) as rlm:

        async def run(lines: int) -> None:
            result = await rlm("log, task -> cause: str, count: int", log="a\n" * lines, task="x")
            counts[lines] = result.outputs["count"]

        async with anyio.create_task_group() as tasks:
            for lines in (1, 2, 3):
                tasks.start_soon(run, lines)
    assert counts == {1: 1, 2: 2, 3: 3}


async def test_a_stream_gives_typed_events_and_then_the_result(place: Place) -> None:
    async with place.rlm(COUNT) as rlm:
        stream = rlm.stream("log, task -> cause: str, count: int", log="a", task="x")
        with pytest.raises(RuntimeError, match="read its events"):
            _ = stream.result
        kinds = [type(event).__name__ async for event in stream]
        assert stream.result.outputs == {"cause": "yes", "count": 1}
    assert "RunStarted" in kinds
    assert kinds[-1] == "RunFinished"
    assert kinds.count("StepFinished") == 2
    assert "SubCallFinished" in kinds


async def _until_output(stream: RunStream) -> None:
    async for event in stream:
        if type(event).__name__ == "CellOutput":
            break


async def _left(stream: RunStream) -> None:
    async with stream:
        await _until_output(stream)


@pytest.mark.parametrize("read", [_until_output, _left])
async def test_leaving_a_stream_cancels_its_run_and_deletes_its_machine(
    place: Place, read: Callable[[RunStream], Any]
) -> None:
    async with place.rlm(SLOW) as rlm, place.machines() as machines:
        await read(rlm.stream("task -> answer", task="x"))
        with anyio.fail_after(10):
            while await machines.list():  # noqa: ASYNC110 - the run cleans up by itself
                await anyio.sleep(0.02)


async def test_what_ends_a_run_is_raised_by_its_stream(place: Place) -> None:
    async with place.rlm(COUNT) as rlm:
        with pytest.raises(InputError, match="task"):
            async for _ in rlm.stream("log, task -> cause", log="a"):
                pass


async def test_leaving_the_rlm_cancels_streams_and_leaves_no_machine(place: Place) -> None:
    with anyio.fail_after(20):
        async with place.rlm(SLOW) as rlm:
            stream = rlm.stream("task -> answer", task="x")
            await anext(stream)
        with pytest.raises(RuntimeError, match="no result"):
            _ = [event async for event in stream] and stream.result
    async with place.machines() as machines:
        assert await machines.list() == []


async def test_a_call_of_another_task_ends_with_its_rlm(place: Place) -> None:
    begun = anyio.Event()

    async def run(rlm: RLM) -> None:
        begun.set()
        with pytest.raises(RuntimeError, match="no result"):
            await rlm("task -> answer", task="x")

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks, place.machines() as machines:
            async with place.rlm(SLOW) as rlm:
                tasks.start_soon(run, rlm)
                await begun.wait()
                while not await machines.list():  # noqa: ASYNC110 - the run makes it by itself
                    await anyio.sleep(0.02)
            assert await machines.list() == []


async def test_a_run_is_resumed_from_a_step(place: Place) -> None:
    async with place.rlm(COUNT, checkpoints="step") as rlm:
        first = await rlm("log, task -> cause: str, count: int", log="a\nb", task="x")
        again = await rlm.resume(first.run_id, step=1)
    assert again.outputs == first.outputs
    assert again.run_id == first.run_id


async def test_options_of_a_run_go_by_keyword_beside_its_inputs(place: Place) -> None:
    notes = place.path / "notes.txt"
    notes.write_text("from the host")
    script = """
--- reply
```python
FINAL(answer=readFile("/workspace/files/notes.txt") + instructions)
```
"""
    async with place.rlm(script) as rlm:
        # An input is an input, also where an option has its name.
        result = await rlm(
            "instructions -> answer",
            instructions="!",
            files=[notes],
            max_iterations=1,
            verify="grep -q host",
        )
    assert result.outputs == {"answer": "from the host!"}
    assert result.verified == "grep -q host"


async def test_a_keyword_that_is_neither_input_nor_option_is_refused(place: Place) -> None:
    async with place.rlm(COUNT) as rlm:
        with pytest.raises(InputError, match=r"max_steps: neither an input of 'task -> a' nor an"):
            await rlm("task -> a", task="x", max_steps=3)


def test_a_wrong_setting_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"modle: Extra inputs.*The settings are backend, mod"):
        RLM(modle="anthropic")


async def test_a_model_that_cannot_be_used_is_refused_before_anything_is_made(
    place: Place,
) -> None:
    with pytest.raises(ModelUnavailable, match="script"):
        async with place.rlm(model=f"scripted:{place.path}/missing"):
            pass
    assert not (place.path / "state").exists()


async def test_an_rlm_that_is_not_open_says_how_to_open_it(place: Place) -> None:
    with pytest.raises(RuntimeError, match=r"async with RLM\("):
        await place.rlm(COUNT)("task -> a", task="x")


def test_every_event_is_public() -> None:
    names = {each.__name__ for each in events.Event.__subclasses__()}
    assert names <= vars(events).keys()
    assert all(issubclass(getattr(events, name), events.Event) for name in names)


def test_the_public_names_are_these() -> None:
    assert vers_rlm_mcp.__all__ == [
        "RLM",
        "VM",
        "CommandOutput",
        "Machines",
        "RunStream",
        "__version__",
    ]
    assert all(getattr(vers_rlm_mcp, name) for name in vers_rlm_mcp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Run'"):
        _ = vers_rlm_mcp.Run
