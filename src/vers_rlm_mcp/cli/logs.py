"""Set up logging: to standard error or a file, as text or JSON lines.

Logging never waits for the reader of the log: several clients do not read standard error, and a
pipe that is full would stop the server. A thread writes the records; what it cannot write in time
is dropped and counted.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vers_rlm_mcp.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from vers_rlm_mcp.settings import Settings

CHATTY_LIBRARIES = ("asyncssh", "httpx2")
"""Libraries that log every request or command verbatim; only their warnings are kept."""

MESSAGE_CHARS: Final = 4_000
"""Characters of a record's message, which may quote what a client sent."""

TRACEBACK_CHARS: Final = 16_000
"""Characters of a traceback. Its end says what happened, so that is what is kept."""

QUEUE_LENGTH: Final = 1_000
"""Records waiting for a reader that is slow; further ones are dropped."""

FLUSH_SECONDS: Final = 0.5
"""How long the last records may delay the end of the process."""

POLL_SECONDS: Final = 0.005

ESCAPED: Final = {code: repr(chr(code))[1:-1] for code in (*range(32), 127) if code != ord("\t")}
"""Control characters, with which a client could forge lines or colour a terminal."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: ``time`` (UTC), ``level``, ``logger``, ``message``.

    A traceback is stored under ``error``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format the record, without a line ending."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if record.exc_info:
            line["error"] = _cut_start(self.formatException(record.exc_info))
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Formats a record for people. A message is one line; a traceback follows on further ones."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record, without a line ending."""
        line = f"vers-rlm-mcp: {record.levelname}: {_message(record)}"
        if record.exc_info:
            line += "\n" + _cut_start(self.formatException(record.exc_info))
        return line


class BackgroundHandler(logging.Handler):
    """Writes records in a thread of its own, so that logging never waits.

    Args:
        descriptor: Where to write; it stays open.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._queue: queue.Queue[bytes] = queue.Queue(QUEUE_LENGTH)
        self._dropped = 0
        self._writer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, or count it if the queue is full."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)
            return
        # A thread does not survive a fork, so it is looked for each time.
        if self._writer is None or not self._writer.is_alive():
            self._writer = threading.Thread(target=self._write_all, name="log", daemon=True)
            self._writer.start()
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Wait for the queue to be written, but not long: there may be no reader.

        `logging` calls this at the end of the process.
        """
        end = time.monotonic() + FLUSH_SECONDS
        while self._queue.unfinished_tasks and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

    def _write_all(self) -> None:
        while True:
            line = self._queue.get()
            self._write(line)
            if self._dropped and self._queue.qsize() < QUEUE_LENGTH // 2:
                dropped, self._dropped = self._dropped, 0
                self.handle(_remark(f"{dropped} records were dropped: the log was not being read"))
            self._queue.task_done()

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process made it non-blocking
                time.sleep(POLL_SECONDS)
            except OSError:
                self._dropped += 1  # a full disk, or a reader that is gone
                return


def start_logging(settings: Settings) -> None:
    """Set up logging for this process.

    Raises:
        SettingsError: The log file cannot be written.
    """
    handler = _handler(settings)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper())
    for name in CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def _handler(settings: Settings) -> logging.Handler:
    if settings.log_file is not None:
        return BackgroundHandler(_open(settings.log_file))
    try:
        # A copy, since 2 stands for another file once the original has been closed.
        return BackgroundHandler(os.dup(sys.stderr.fileno()))
    except (AttributeError, OSError, ValueError):
        return logging.NullHandler()  # started without a standard error


def _open(path: Path) -> int:
    try:
        # Without waiting for the reader of a named pipe.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise SettingsError(
            f"The log file {path} cannot be written: {error.strerror}. Choose another --log-file."
        ) from error
    os.set_blocking(descriptor, True)
    return descriptor


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage().translate(ESCAPED)
    if len(message) > MESSAGE_CHARS:
        left_out = len(message) - MESSAGE_CHARS
        message = f"{message[:MESSAGE_CHARS]}… ({left_out:,} characters left out)"
    return message


def _cut_start(traceback: str) -> str:
    if len(traceback) <= TRACEBACK_CHARS:
        return traceback
    return f"… (its beginning was left out)\n{traceback[-TRACEBACK_CHARS:]}"


def _remark(message: str) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, "", 0, message, (), None)
