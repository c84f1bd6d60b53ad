"""The RLM engine: it asks, is answered, and does no I/O at all."""

from __future__ import annotations

from .engine import run
from .events import Event, Feedback, StepFinished
from .extraction import read_outputs
from .plain import plain_prompt
from .prompt import system_prompt, task_prompt
from .protocol import (
    CallModel,
    CheckFiles,
    Emit,
    ModelFailure,
    Outcome,
    Reply,
    Request,
    Run,
    RunCell,
    Step,
    Stop,
    Verdict,
    Verify,
)
from .signature import Checked, Field, Signature
from .task import (
    MAX_ITERATIONS,
    MAX_SUB_CALLS,
    Branch,
    InputFile,
    InputVariable,
    MachineFacts,
    Task,
    describe,
    preview,
)
from .transcript import OUTPUT_CHARS, PREVIEW_CHARS, fingerprint, truncate

__all__ = [
    "MAX_ITERATIONS",
    "MAX_SUB_CALLS",
    "OUTPUT_CHARS",
    "PREVIEW_CHARS",
    "Branch",
    "CallModel",
    "CheckFiles",
    "Checked",
    "Emit",
    "Event",
    "Feedback",
    "Field",
    "InputFile",
    "InputVariable",
    "MachineFacts",
    "ModelFailure",
    "Outcome",
    "Reply",
    "Request",
    "Run",
    "RunCell",
    "Signature",
    "Step",
    "StepFinished",
    "Stop",
    "Task",
    "Verdict",
    "Verify",
    "describe",
    "fingerprint",
    "plain_prompt",
    "preview",
    "read_outputs",
    "run",
    "system_prompt",
    "task_prompt",
    "truncate",
]
