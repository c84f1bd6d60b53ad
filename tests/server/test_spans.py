"""The spans of a run: their tree, what they tell, and their way to a collector."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal

import pytest
from clients import COMMAND, call, environment_in, error, script
from mcp import Client, StdioServerParameters
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import SettingsError
from vers_rlm_mcp.runs import events
from vers_rlm_mcp.server import exporting
from vers_rlm_mcp.server.spans import RunSpans
from vers_rlm_mcp.values import Usage

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

USED = Usage(input_tokens=30, output_tokens=5)

STARTED = events.RunStarted(
    run_id="run-1",
    signature="-> x",
    machine_id="vm-1",
    model="a:root",
    sub_model="a:sub",
    max_steps=20,
)

STEP = rlm.StepFinished(
    step=1,
    max_steps=20,
    reasoning="secret",
    code="secret",
    output="secret",
    error=None,
    seconds=1.0,
    usage=USED,
)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def ended(status: Literal["finished", "failed", "cancelled"]) -> events.RunFinished:
    return events.RunFinished(
        run_id="run-1",
        status=status,
        outputs={"x": "secret"},
        reason="secret",
        steps=1,
        usage=USED,
        seconds=2.0,
    )


def child_event(event: rlm.Event) -> events.InChild:
    return events.InChild("1", event)


def paths(spans: tuple[ReadableSpan, ...]) -> set[str]:
    """Each span's name after those of the spans that it is in."""
    by_id = {span.context.span_id: span for span in spans if span.context}

    def path(span: ReadableSpan) -> str:
        above = path(by_id[span.parent.span_id]) + " / " if span.parent else ""
        return above + span.name

    return {path(span) for span in spans}


def named(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    (span,) = [span for span in exporter.get_finished_spans() if span.name == name]
    return span


def test_a_run_is_a_tree_of_steps_calls_of_models_and_machines(
    exporter: InMemorySpanExporter, provider: TracerProvider
):
    with RunSpans(provider.get_tracer("test")) as spans:
        for event in (
            events.MachineMade("vm-1", "created"),
            STARTED,
            events.ModelAsked(1, "step", 2),
            events.ModelReplied(step=1, purpose="step", text="secret", usage=USED, seconds=0.5),
            events.CellStarted(1, "secret"),
            events.SubCallStarted(1, 1, "secret"),
            events.SubCallFinished(step=1, number=1, text="secret", usage=USED, seconds=0.1),
            events.MachineMade("vm-2", "branched", "vm-1"),
            events.ChildStarted(child="1", origin="branch", machine_id="vm-2", about="secret"),
            child_event(events.ModelAsked(1, "step", 3)),
            child_event(
                events.ModelReplied(step=1, purpose="step", text="secret", usage=USED, seconds=0.5)
            ),
            child_event(STEP),
            events.ChildFinished(
                child="1",
                status="finished",
                outputs={},
                reason="secret",
                score=None,
                steps=1,
                usage=USED,
                seconds=1.0,
            ),
            events.MachineDeleted("vm-2"),
            events.Verified(step=1, command="secret", accepted=True, output="secret", seconds=0.25),
            STEP,
            ended("finished"),
        ):
            spans(event)
    finished = exporter.get_finished_spans()
    step = "rlm.run / rlm.step"
    assert paths(finished) == {
        "rlm.run",
        "rlm.run / machine.created",
        step,
        f"{step} / chat a:root",
        f"{step} / rlm.cell",
        f"{step} / chat a:sub",
        f"{step} / machine.branched",
        f"{step} / rlm.child",
        f"{step} / rlm.child / rlm.step",
        f"{step} / rlm.child / rlm.step / chat a:root",
        f"{step} / machine.deleted",
        f"{step} / rlm.verify",
    }
    run = dict(named(exporter, "rlm.run").attributes or {})
    assert (run["rlm.run.id"], run["rlm.status"], run["rlm.steps"]) == ("run-1", "finished", 1)
    chat = dict(named(exporter, "chat a:sub").attributes or {})
    assert chat["gen_ai.usage.input_tokens"] == 30
    verify = named(exporter, "rlm.verify")
    assert (verify.end_time or 0) - (verify.start_time or 0) == 250_000_000
    assert "secret" not in " ".join(span.to_json() for span in finished)


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_what_is_under_way_when_a_run_breaks_off_ends_with_it(
    exporter: InMemorySpanExporter,
    provider: TracerProvider,
    status: Literal["failed", "cancelled"],
):
    with RunSpans(provider.get_tracer("test")) as spans:
        spans(STARTED)
        spans(events.ModelAsked(1, "step", 2))
        spans(events.SubCallStarted(1, 1, "prompt"))
        spans(
            events.SubCallFinished(
                step=1, number=1, text="", usage=USED, seconds=0.1, error="overloaded"
            )
        )
        spans(events.ChildStarted(child="1", origin="branch", machine_id="vm-2", about="plan"))
        spans(child_event(events.ModelAsked(1, "step", 3)))
        spans(ended(status))
    assert len(exporter.get_finished_spans()) == 7
    assert named(exporter, "rlm.run").status.status_code is StatusCode.ERROR
    assert named(exporter, "chat a:sub").status.status_code is StatusCode.ERROR


class Collector(BaseHTTPRequestHandler):
    """Takes spans as OTLP has them over HTTP."""

    taken: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.taken.extend(span.name for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


@contextmanager
def collecting() -> Generator[tuple[str, list[str]]]:
    """The address of a collector, and the names of the spans that it was sent."""
    handler = type("Handler", (Collector,), {"taken": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.taken  # pyright: ignore[reportAttributeAccessIssue]
        server.shutdown()
        thread.join()


async def test_a_servers_spans_reach_the_collector_that_the_usual_variable_names(tmp_path: Path):
    with collecting() as (address, taken):
        env = environment_in(tmp_path) | {
            "VERS_RLM_MODEL": script(tmp_path / "replies", "FINAL('done')"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
        }
        async with Client(StdioServerParameters(command=COMMAND, env=env)) as client:
            run = await call(client, "vers_rlm", signature="-> answer")
            assert run["outputs"] == {"answer": "done"}
            assert await error(client, "vmDelete", vmId="invented")
    assert {"tools/call vers_rlm", "rlm.run", "rlm.step", "rlm.cell", "machine.created"} <= {*taken}
    assert "tools/call vmDelete" in taken


def test_where_spans_are_asked_for_and_cannot_be_sent_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"vers-rlm-mcp\[otel\]"), exporting():
        pass


async def test_a_collector_that_is_not_there_holds_nothing_up(tmp_path: Path):
    env = environment_in(tmp_path) | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    async with Client(StdioServerParameters(command=COMMAND, env=env)) as client:
        assert await call(client, "vmList") == {"vms": [], "commits": []}
