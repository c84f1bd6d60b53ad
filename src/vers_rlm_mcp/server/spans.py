"""OpenTelemetry spans of a run, made from its events: run, steps, model calls, machines.

They contain names, ids and numbers, never what a model or a user wrote.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from vers_rlm_mcp import __version__, rlm
from vers_rlm_mcp.runs import events

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from vers_rlm_mcp.values import Usage

SECOND: Final = 1_000_000_000
"""In nanoseconds, the unit of spans."""

Attributes = dict[str, str | int | float | bool]


class RunSpans:
    """The spans of one run, below the span of the call that started it.

    It is called with each event, and starts and ends spans. At the end of the ``with`` all have
    ended.

    Args:
        tracer: Makes the spans; by default the current provider's.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer or trace.get_tracer("vers_rlm_mcp", __version__)

    def __enter__(self) -> Self:
        self._run = _Conversation(self._tracer, self._tracer.start_span("rlm.run"))
        self._conversations = {"": self._run}
        return self

    def __exit__(self, *_: object) -> None:
        for conversation in reversed(list(self._conversations.values())):
            conversation.end()

    def __call__(self, event: rlm.Event) -> None:
        """Start and end spans for an event."""
        self._take(event, "")

    def _take(self, event: rlm.Event, path: str) -> None:
        here = self._conversations.get(path, self._run)
        match event:
            case events.InChild():
                self._take(event.event, event.child)
            case events.RunStarted():
                here.models = (event.model, event.sub_model)
            case events.RunFinished():
                here.span.set_attribute("rlm.run.id", event.run_id)
                here.result(event.status, event.steps, event.usage)
                if event.status in ("failed", "cancelled"):
                    here.span.set_status(StatusCode.ERROR, event.status)
            case events.ChildStarted():
                about = {"rlm.child": event.child, "rlm.origin": event.origin}
                span = self._tracer.start_span("rlm.child", here.context(), attributes=about)
                child = _Conversation(self._tracer, span, here.models)
                self._conversations[event.child] = child
            case events.ChildFinished():
                child = self._conversations.pop(event.child)
                child.result(event.status, event.steps, event.usage)
                child.end()
            case _:
                here.take(event)


class _Conversation:
    """The open spans of one conversation.

    Args:
        tracer: Makes the spans.
        span: The span of the conversation itself.
        models: The names of the root model and the sub-model, once they are known.
    """

    def __init__(self, tracer: Tracer, span: Span, models: tuple[str, str] = ("", "")) -> None:
        self.span = span
        self.models = models
        self._tracer = tracer
        self._step: Span | None = None
        self._open: dict[str, Span] = {}

    def context(self) -> Context:
        """The context for children of the current step, or else of the conversation."""
        return trace.set_span_in_context(self._step or self.span)

    def take(self, event: rlm.Event) -> None:
        """Start and end spans for an event of this conversation itself."""
        match event:
            case events.ModelAsked():
                self._chat(event.step, "model", self.models[0])
            case events.ModelReplied():
                self._finish("model", event.usage)
            case events.SubCallStarted():
                self._chat(event.step, f"sub-call {event.number}", self.models[1])
            case events.SubCallFinished():
                self._finish(f"sub-call {event.number}", event.usage, failed=bool(event.error))
            case events.CellStarted():
                self._begin(event.step, "cell", "rlm.cell", {})
            case events.Verified():
                self._past("rlm.verify", event.seconds, {"rlm.accepted": event.accepted})
            case rlm.StepFinished():
                self._end_step()
            case _:
                self._take_machine(event)

    def result(self, status: str, steps: int, usage: Usage) -> None:
        """Record how the conversation ended."""
        self.span.set_attributes({"rlm.status": status, "rlm.steps": steps, **_tokens(usage)})

    def end(self) -> None:
        """End all spans."""
        self._end_step()
        self.span.end()

    def _take_machine(self, event: rlm.Event) -> None:
        match event:
            case events.MachineMade():
                self._past(f"machine.{event.origin}", 0, {"rlm.machine.id": event.machine_id})
            case events.MachineDeleted():
                self._past("machine.deleted", 0, {"rlm.machine.id": event.machine_id})
            case events.CommitMade():
                self._past("machine.committed", 0, {"rlm.commit.id": event.commit_id})
            case _:
                pass

    def _chat(self, step: int, key: str, model: str) -> None:
        about: Attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model}
        self._begin(step, key, f"chat {model}", about, SpanKind.CLIENT)

    def _begin(
        self,
        step: int,
        key: str,
        name: str,
        attributes: Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        """Start a span in a step, whose own span starts with its first."""
        if self._step is None:
            about = {"rlm.step": step}
            self._step = self._tracer.start_span("rlm.step", self.context(), attributes=about)
        self._open[key] = self._tracer.start_span(
            name, self.context(), kind=kind, attributes=attributes
        )

    def _finish(self, key: str, usage: Usage, *, failed: bool = False) -> None:
        if span := self._open.pop(key, None):
            span.set_attributes(_tokens(usage))
            if failed:
                span.set_status(StatusCode.ERROR)
            span.end()

    def _past(self, name: str, seconds: float, attributes: Attributes) -> None:
        """Add a span that ends now and took this long."""
        now = time.time_ns()
        start = now - int(seconds * SECOND)
        span = self._tracer.start_span(
            name, self.context(), start_time=start, attributes=attributes
        )
        span.end(now)

    def _end_step(self) -> None:
        for span in self._open.values():
            span.end()
        self._open.clear()
        if self._step:
            self._step.end()
            self._step = None


def _tokens(usage: Usage) -> Attributes:
    return {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
    }
