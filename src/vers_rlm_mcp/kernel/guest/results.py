"""Results of functions that are more than plain values."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class CommandOutput(str):
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

    @property
    def returncode(self) -> int | None:
        """`exit_code`, by the name that `subprocess` has for it."""
        return self.exit_code

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
