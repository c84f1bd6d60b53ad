"""Runs programs in the machine for a host, over its standard input and output: see `wire`.

It ends when its input does. What it started is not ended with it, and only loses its streams: each
job is the leader of a session of its own.

The payload of `START` is one of:

    {"do": "run", "argv": [...], "env": {...}, "cwd": PATH, "make_cwd": BOOL}
    {"do": "read", "path": PATH, "offset": BYTES, "length": BYTES or -1}
    {"do": "write", "path": PATH, "mode": MODE}

Strings hold bytes that are not UTF-8 as surrogates.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys

from . import files, sessions
from .wire import (
    CHUNK,
    CLOSE,
    DATA,
    EXIT,
    KILL,
    MAX_FRAME,
    NUMBER,
    OUTPUTS,
    PING,
    READY,
    REPORT,
    START,
    STATUS,
    STDERR,
    STDIN,
    STDOUT,
    TAKEN,
    TELL_AFTER,
    WINDOW,
    Decoder,
    encode,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

NAME = "vers-rlm-daemon"
"""What `ps` and `pkill` see, so that who kills all Python programs does not kill this one."""

MAX_UNSENT = 4 * CHUNK
"""Bytes for the host that wait. Beyond, no program's output is read: it waits in its pipe."""

F_SETPIPE_SZ = 1031
WIDE = 256 * 1024
"""Bytes that a pipe for content holds, and that are read of one at once."""

FAILED = 1
"""The exit code of a process that did not become a program, or not all of a file."""

with open("/proc/self/environ", "rb") as _file:
    _ENVIRONMENT = dict(item.split(b"=", 1) for item in _file.read().split(b"\0") if b"=" in item)
"""What the machine gives to programs; `os.environ` has what Python sets for itself, too."""


class Job:
    """A process that was started for the host, as long as the host wants to know of it."""

    def __init__(self, pid: int, stdin: int, outputs: dict[int, int]) -> None:
        self.pid = pid
        """0 once it has ended."""
        self.stdin = stdin
        """-1 once it is closed."""
        self.unwritten = bytearray()
        self.taken = 0
        """Bytes of input that were written and of which the host was not told."""
        self.input_ended = False
        self.outputs = outputs
        """The descriptors of streams that have not ended."""
        self.room = dict.fromkeys(outputs, WINDOW)
        """How many bytes of each the host takes."""

    def close(self) -> None:
        """Let go of its streams."""
        self.close_stdin()
        for descriptor in self.outputs.values():
            os.close(descriptor)

    def close_stdin(self) -> None:
        """Give it the end of its input."""
        if self.stdin >= 0:
            os.close(self.stdin)
        self.stdin = -1
        self.unwritten.clear()


class Daemon:
    """Everything that waits for something, and what to do when that happens."""

    def __init__(self) -> None:
        self._decoder = Decoder(MAX_FRAME)
        self._jobs: dict[int, Job] = {}
        self._unsent = bytearray()
        self._ended, wake = os.pipe()
        for descriptor in (1, wake, self._ended):
            os.set_blocking(descriptor, False)
        _widen([0, 1])
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Serve the host until it leaves."""
        self._send(READY)
        while True:
            acts = self._acts()
            poll = select.poll()
            for descriptor, (events, _) in acts.items():
                poll.register(descriptor, events)
            for descriptor, _ in poll.poll():
                acts[descriptor][1]()

    def _acts(self) -> dict[int, tuple[int, Callable[[], None]]]:
        """What to wait for, by descriptor.

        The host comes last: it may have a job closed, whose descriptors then mean something else.
        """
        acts: dict[int, tuple[int, Callable[[], None]]] = {
            self._ended: (select.POLLIN, self._reap),
        }
        reading = len(self._unsent) < MAX_UNSENT
        for number, job in self._jobs.items():
            if job.unwritten:
                acts[job.stdin] = select.POLLOUT, lambda n=number, j=job: self._feed(n, j)
            for stream, descriptor in job.outputs.items():
                if reading and job.room[stream]:
                    act = lambda n=number, j=job, s=stream: self._drain(n, j, s)  # noqa: E731
                    acts[descriptor] = select.POLLIN, act
        if self._unsent:
            acts[1] = select.POLLOUT, self._flush
        acts[0] = select.POLLIN, self._listen
        return acts

    # The host

    def _send(self, kind: int, job: int = 0, stream: int = 0, payload: bytes = b"") -> None:
        self._unsent += encode(kind, job, stream, payload)

    def _flush(self) -> None:
        try:
            del self._unsent[: os.write(1, self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            sys.exit()

    def _listen(self) -> None:
        try:
            data = os.read(0, WIDE)
        except BlockingIOError:  # the input may be the output's socket
            return
        if not data:
            sys.exit()
        for kind, number, stream, payload in self._decoder.feed(data):
            self._obey(kind, number, stream, payload)

    def _obey(self, kind: int, number: int, stream: int, payload: bytes) -> None:
        if kind == PING:
            self._send(PING)
        elif kind == START:
            self._start(number, json.loads(payload.decode()))
        elif number in self._jobs:
            job = self._jobs[number]
            if kind == DATA:
                self._take_input(number, job, payload)
            elif kind == TAKEN:
                job.room[stream] += NUMBER.unpack(payload)[0]
            elif kind == KILL:
                if job.pid:
                    sessions.kill(job.pid)
                self._send(KILL, number)
            elif kind == CLOSE:
                del self._jobs[number]
                job.close()

    # Streams

    def _take_input(self, number: int, job: Job, data: bytes) -> None:
        if job.stdin < 0:
            return
        job.unwritten += data
        job.input_ended = job.input_ended or not data
        self._feed(number, job)

    def _feed(self, number: int, job: Job) -> None:
        """Write what a program takes of its input now."""
        try:
            size = os.write(job.stdin, job.unwritten) if job.unwritten else 0
        except BlockingIOError:
            return
        except OSError:  # nobody reads it
            job.close_stdin()
            self._send(DATA, number, STDIN)
            return
        del job.unwritten[:size]
        job.taken += size
        if job.taken >= TELL_AFTER:
            self._send(TAKEN, number, STDIN, NUMBER.pack(job.taken))
            job.taken = 0
        if job.input_ended and not job.unwritten:
            job.close_stdin()

    def _drain(self, number: int, job: Job, stream: int) -> None:
        """Pass on what there is of an output, as far as the host takes it."""
        try:
            data = os.read(job.outputs[stream], min(CHUNK, job.room[stream]))
        except BlockingIOError:
            return
        job.room[stream] -= len(data)
        self._send(DATA, number, stream, data)
        if not data:
            os.close(job.outputs.pop(stream))

    # Processes

    def _start(self, number: int, request: dict[str, Any]) -> None:
        """Start a process that does what is requested."""
        with Pipes() as pipes:
            try:
                stdin = pipes.to_process()
                outputs = {stream: pipes.from_process() for stream in OUTPUTS}
                pid = _ACTIONS[request["do"]](request, pipes.theirs)
            except (OSError, ValueError) as error:
                pipes.close_ours()
                self._send(DATA, number, REPORT, _complaint(error))
                self._send(DATA, number, REPORT)
                return
        self._jobs[number] = Job(pid, stdin, outputs)

    def _reap(self) -> None:
        try:
            os.read(self._ended, CHUNK)
        except BlockingIOError:
            return
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for number, job in self._jobs.items():
                if job.pid == pid:
                    job.pid = 0
                    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                    code = 0 if ended_by else os.WEXITSTATUS(status)
                    self._send(EXIT, number, payload=STATUS.pack(code, ended_by))


class Pipes:
    """The pipes of a process: our ends, and those that it gets, which are closed in the end."""

    def __init__(self) -> None:
        self.theirs: list[int] = []
        self._ours: list[int] = []

    def to_process(self) -> int:
        """A pipe that it reads."""
        theirs, ours = os.pipe()
        return self._add(ours, theirs)

    def from_process(self) -> int:
        """A pipe that it writes to."""
        ours, theirs = os.pipe()
        return self._add(ours, theirs)

    def _add(self, ours: int, theirs: int) -> int:
        os.set_blocking(ours, False)
        self._ours.append(ours)
        self.theirs.append(theirs)
        return ours

    def close_ours(self) -> None:
        """Close those that nobody will need."""
        for descriptor in self._ours:
            os.close(descriptor)

    def __enter__(self) -> Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self.theirs:
            os.close(descriptor)


def _run(request: dict[str, Any], descriptors: list[int]) -> int:
    directory = _encoded(request["cwd"])
    if request["make_cwd"]:
        os.makedirs(directory, exist_ok=True)
    added = {_encoded(name): _encoded(value) for name, value in request["env"].items()}
    # Not a fork, which takes several times as long where a Python's memory is copied.
    process = subprocess.Popen(
        [_encoded(argument) for argument in request["argv"]],
        stdin=descriptors[STDIN],
        stdout=descriptors[STDOUT],
        stderr=descriptors[STDERR],
        cwd=directory,
        env={**_ENVIRONMENT, **added},
        start_new_session=True,
    )
    process.returncode = 0  # whoever waits for it: it is not this object
    return process.pid


def _read(request: dict[str, Any], descriptors: list[int]) -> int:
    def read() -> None:
        file = files.open_to_read(_encoded(request["path"]), request["offset"])
        os.dup2(STDERR, REPORT)  # which ends it: the file is open, and what fails is told there
        files.send(file, request["length"])

    return _forked(read, descriptors)


def _write(request: dict[str, Any], descriptors: list[int]) -> int:
    def write() -> None:
        file = files.open_to_write(_encoded(request["path"]), request["mode"])
        os.write(REPORT, b"%d" % files.receive(file))

    return _forked(write, descriptors)


_ACTIONS = {"run": _run, "read": _read, "write": _write}


def _forked(act: Callable[[], None], descriptors: list[int]) -> int:
    """Do something in a process of its own, the leader of a session, and return its number."""
    _widen(descriptors)
    pid = os.fork()
    if pid:
        return pid
    code = FAILED
    try:
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > REPORT:
                _close(int(name))
        act()
        code = 0
    except OSError as error:
        os.write(REPORT, _complaint(error))
    finally:
        os._exit(code)


def _wake(_signal: int, _frame: object) -> None:
    """Python writes to the descriptor that was set for it only where there is a handler."""


def _widen(pipes: list[int]) -> None:
    """Let pipes hold more than usual, so that much content needs fewer turns."""
    for descriptor in pipes:
        try:
            fcntl.fcntl(descriptor, F_SETPIPE_SZ, WIDE)
        except OSError:  # noqa: PERF203 - no pipe, or the user may have no more of it
            continue


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _complaint(error: OSError | ValueError) -> bytes:
    number, text = (error.errno, error.strerror) if isinstance(error, OSError) else (0, error)
    return f"!{number or 0} {text}".encode()


def _close(descriptor: int) -> None:
    try:  # noqa: SIM105 - contextlib takes milliseconds to import
        os.close(descriptor)
    except OSError:
        pass  # it was the one that listed the others


def main() -> None:
    """Serve the host."""
    os.chdir("/")
    with open("/proc/self/comm", "w") as file:
        file.write(NAME)
    Daemon().serve()
