"""Results that can be awaited, as in JavaScript: ``await exec("ls")`` is ``exec("ls")``."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Generator


class _Settled:
    def __await__(self) -> Generator[Any, None, Any]:
        return self
        yield  # makes this a generator


class Text(_Settled, str):
    """A str that can be awaited."""

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class Number(_Settled, int):
    """An int that can be awaited."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


class Bytes(_Settled, bytes):
    """Bytes that can be awaited."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (bytes(self),)


class Items(_Settled, list):  # type: ignore[type-arg]
    """A list that can be awaited."""

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


class Mapping(_Settled, dict):  # type: ignore[type-arg]
    """A dict that can be awaited."""

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class CommandOutput(Text):
    """What a command printed: all of it as text, and its parts as attributes."""

    stdout: str
    stderr: str
    exit_code: int | None
    """None if the command was killed because its time was up."""

    def __new__(cls, stdout: str, stderr: str, exit_code: int | None) -> CommandOutput:
        """All that was printed, with the exit code at the end when it is not 0."""
        parts = [part for part in (stdout.rstrip("\n"), stderr.rstrip("\n")) if part]
        if exit_code is None:
            parts.append("[timed out and was killed]")
        elif exit_code != 0:
            parts.append(f"[exit code: {exit_code}]")
        output = super().__new__(cls, "\n".join(parts))
        output.stdout, output.stderr, output.exit_code = stdout, stderr, exit_code
        return output

    def __reduce__(self) -> tuple[Any, ...]:
        return CommandOutput, (self.stdout, self.stderr, self.exit_code)

    def __repr__(self) -> str:
        """As it was printed: the echo of a command is read by people and models."""
        return str(self)


class Record(dict):  # type: ignore[type-arg]
    """A dict whose items are attributes too, as models expect of a result."""

    if TYPE_CHECKING:

        def __getitem__(self, name: str) -> Any:
            """An item."""

    def __getattr__(self, name: str) -> Any:
        """The item of that name."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (dict(self),)


def awaitable(value: Any) -> Any:
    """`value` as the equal value that can also be awaited, where there is one."""
    kinds: dict[type, Any] = {str: Text, int: Number, bytes: Bytes, list: Items, dict: Mapping}
    kind = kinds.get(value.__class__)  # exactly: a bool is no number here
    return kind(value) if kind else value
