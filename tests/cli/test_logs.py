"""The log: where it goes and how it reads."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime
from typing import TYPE_CHECKING

from vers_rlm_mcp.cli.logs import JsonFormatter

if TYPE_CHECKING:
    from conftest import Cli

USAGE = 2


def test_as_json_each_record_is_a_line_with_its_time_level_and_origin(cli: Cli):
    finished = cli("machines", "list", "--verbose", "--log-format", "json")
    records = [json.loads(line) for line in finished.stderr.splitlines()]
    assert records
    for record in records:
        assert datetime.fromisoformat(record["time"]).tzinfo
        assert record["level"] == "info"
        assert record["logger"].startswith("vers_rlm_mcp.")
    assert any("Machines come from" in record["message"] for record in records)


def test_a_log_file_is_added_to_and_standard_error_stays_empty(cli: Cli):
    for _ in range(2):
        finished = cli(
            "-v", "machines", "list", VERS_RLM_LOG_FILE="log", VERS_RLM_LOG_FORMAT="json"
        )
        assert (finished.returncode, finished.stderr) == (0, "")
    lines = (cli.home / "log").read_text().splitlines()
    assert sum("Machines come from" in json.loads(line)["message"] for line in lines) == 2


def test_a_log_file_that_cannot_be_written_is_named(cli: Cli):
    finished = cli("machines", "list", "--log-file", "missing/log")
    assert finished.returncode == USAGE
    assert "missing/log" in finished.stderr


def test_an_exception_is_on_its_records_line():
    try:
        raise ValueError("broken\nin two lines")
    except ValueError:
        record = logging.LogRecord(
            "name", logging.ERROR, "", 1, "It %s", ("failed",), sys.exc_info()
        )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "It failed"
    assert "in two lines" in json.loads(line)["error"]
