import anyio
import pytest

from vers_rlm_mcp.server import progress as progress_module
from vers_rlm_mcp.server.progress import QUEUE_LENGTH, Progress


class Client:
    """Takes notifications, and lets a test wait for a number of them."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, str | None]] = []
        self._more = anyio.Event()

    async def report(self, value: float, total: float | None, message: str | None) -> None:
        self.sent.append((value, message))
        self._more.set()
        self._more = anyio.Event()

    async def wait_for(self, count: int) -> None:
        with anyio.fail_after(5):
            while len(self.sent) < count:
                await self._more.wait()

    @property
    def messages(self) -> list[str | None]:
        return [message for _, message in self.sent]


async def test_every_message_is_sent_in_order_with_a_rising_value():
    client = Client()
    async with Progress(client.report, "it") as progress:
        for number in range(20):
            progress.say(str(number))
    assert client.messages == [str(number) for number in range(20)]
    values = [value for value, _ in client.sent]
    assert values == sorted(set(values))


async def test_of_a_flood_of_passing_messages_few_are_sent_and_the_last_is():
    client = Client()
    async with Progress(client.report, "it") as progress:
        for number in range(10_000):
            progress.say(str(number), passing=True)
            if number % 1000 == 0:
                await anyio.lowlevel.checkpoint()
    assert client.messages[-1] == "9999"
    assert len(client.sent) <= 3


async def test_a_message_to_keep_takes_the_place_of_a_passing_one():
    client = Client()
    async with Progress(client.report, "it") as progress:
        progress.say("passing", passing=True)
        progress.say("kept")
    assert client.messages == ["kept"]


async def test_a_silent_call_sends_heartbeats(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress_module, "HEARTBEAT_SECONDS", 0.01)
    client = Client()
    async with Progress(client.report, "The command"):
        await client.wait_for(2)
    assert client.messages[0] == "The command is still running (0 s)"


async def test_a_client_that_takes_nothing_costs_a_call_only_the_flush(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(progress_module, "FLUSH_SECONDS", 0.01)

    async def never(*_: object) -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(2):
        async with Progress(never, "it") as progress:
            for number in range(2 * QUEUE_LENGTH):
                progress.say(str(number))
                await anyio.lowlevel.checkpoint()


async def test_an_error_of_the_client_does_not_reach_the_call():
    async def broken(*_: object) -> None:
        raise ConnectionError

    async with Progress(broken, "it") as progress:
        progress.say("one")
        await anyio.wait_all_tasks_blocked()
        progress.say("two")


async def test_an_error_of_the_call_is_raised_as_it_is():
    client = Client()
    with pytest.raises(KeyError):
        async with Progress(client.report, "it"):
            raise KeyError


async def test_cancelling_the_call_ends_it_at_once():
    client = Client()
    with anyio.fail_after(1), anyio.CancelScope() as scope:
        async with Progress(client.report, "it"):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
