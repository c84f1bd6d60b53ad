# ruff: noqa: PLC0415 - an extra, which may not be installed, and is loaded where it is wanted
"""Exports OpenTelemetry spans to a collector if OpenTelemetry's own variables ask for it.

The MCP SDK makes a span for each request that it serves, and `spans` makes the spans of a run.
Without an exporter they are dropped, and cost next to nothing.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vers_rlm_mcp import __version__
from vers_rlm_mcp.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Generator

FLUSH_SECONDS: Final = 3.0
"""How long sending the last spans may delay the end of the server."""

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextmanager
def exporting() -> Generator[None]:
    """Export spans to the collector that OpenTelemetry's own variables name, if any.

    Raises:
        SettingsError: They name one, and the exporter is not installed.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        yield
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"{ENDPOINTS[0]} asks for spans, which need the extra `otel`: install "
            "`vers-rlm-mcp[otel]`, or unset the variable."
        ) from error
    named = Resource.create({"service.name": "vers-rlm-mcp", "service.version": __version__})
    provider = TracerProvider(resource=named, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(FLUSH_SECONDS)
