"""Set up logging: to standard error or a file, as text or JSON lines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vers_rlm_mcp.errors import SettingsError

if TYPE_CHECKING:
    from vers_rlm_mcp.settings import Settings

CHATTY_LIBRARIES = ("asyncssh", "httpx2")
"""Libraries that log every request or command verbatim; only their warnings are kept."""


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
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_logging(settings: Settings) -> None:
    """Set up logging for this process.

    Raises:
        SettingsError: The log file cannot be written.
    """
    handler = _handler(settings)
    text = logging.Formatter("vers-rlm-mcp: %(levelname)s: %(message)s")
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else text)
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper())
    for name in CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def _handler(settings: Settings) -> logging.Handler:
    if settings.log_file is None:
        return logging.StreamHandler(sys.stderr)
    try:
        return logging.FileHandler(settings.log_file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise SettingsError(
            f"The log file {settings.log_file} cannot be written: {error.strerror}. "
            "Choose another --log-file."
        ) from error
