"""Serves a host in a machine: starts programs, and reads and writes files. See `frames`.

It ends when its input does. What it has started lives on and only loses its streams: each job is
the leader of its own session. A job that is killed takes along what it has started in the
foreground, wherever that has gone: see `sessions`.

The payload of ``start`` is one of:

    {"do": "run", "argv": [...], "env": {...}, "cwd": PATH, "make_cwd": BOOL}
    {"do": "read", "path": PATH, "offset": BYTES, "length": BYTES or -1}
    {"do": "write", "path": PATH, "mode": MODE}

Strings hold bytes that are not UTF-8 as surrogates. A host that can pass descriptors may give all
streams of a job, of which none then goes through frames.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import time

from . import file_tasks, sessions
from .frames import (
    CHUNK,
    MAX_REQUEST,
    OUTPUTS,
    REPORT,
    STDERR,
    TELL_AFTER,
    TO_DAEMON,
    WINDOW,
)
from .wire import Decoder, Frame, encode, from_json, to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any, Callable

    Request = dict[str, Any]
    Act = Callable[[], None]
else:
    import _signal as signal  # see `sessions`

NAME = "vers-rlm-daemon"
"""What `ps` and `pkill` see, so that killing all Python programs does not kill this one."""

MAX_UNSENT = 4 * CHUNK
"""Bytes for the host that wait. Beyond, no program's output is read: it waits in its pipe."""

F_SETPIPE_SZ = 1031
WIDE = 256 * 1024
"""Bytes that a pipe for content holds, and that are read of one at once."""

FAILED = 127
"""The exit code of a process that did not become a program, or did not do all of its task."""


class Job:
    """A process that was started for the host, until the host closes it."""

    def __init__(self, pid: int, mark: int, stdin: int, outputs: dict[int, int]) -> None:
        self.pid = pid
        self.mark = mark
        """What its processes bear; see `sessions`."""
        self.ended = False
        self.stdin = stdin
        """-1 once it is closed, and when the host writes to the process itself."""
        self.unwritten = bytearray()
        self.taken = 0
        """Bytes of input that were written and not reported to the host yet."""
        self.input_ended = False
        self.outputs = outputs
        """The descriptors of streams that have not ended."""
        self.room = dict.fromkeys(outputs, WINDOW)
        """How many bytes of each the host takes."""
        self.errors = -1
        """A copy of its standard error, for what there is to say of its end; -1 for none."""

    def close(self) -> None:
        """Close its streams."""
        self.close_stdin()
        self.close_errors()
        for descriptor in self.outputs.values():
            os.close(descriptor)

    def close_errors(self) -> None:
        """Give up the copy of its standard error."""
        if self.errors >= 0:
            os.close(self.errors)
        self.errors = -1

    def close_stdin(self) -> None:
        """Give it the end of its input."""
        if self.stdin >= 0:
            os.close(self.stdin)
        self.stdin = -1
        self.unwritten.clear()


class Daemon:
    """Everything that waits for something, and what to do when it happens.

    Args:
        receive: The descriptor that the host's frames are read from.
        send: The one that frames for the host are written to.
    """

    def __init__(self, receive: int, send: int) -> None:
        self.environment: dict[bytes, bytes] = {}
        """The environment variables of every program."""
        self.tasks: dict[str, Callable[[Request], Act]] = {
            "run": self.run,
            "read": self.read,
            "write": self.write,
        }
        """Tasks that run in a separate process: each returns the function to call there."""
        self.operations: dict[str, Callable[[Request, list[int]], object]] = {}
        """What the daemon itself does, given a request and its descriptors; each returns the
        report, a JSON value."""
        self._receive, self._send_to = receive, send
        self._decoder = Decoder(TO_DAEMON, MAX_REQUEST)
        self.descriptors: list[int] = []
        """Descriptors that were received and that no request has claimed yet."""
        self._jobs: dict[int, Job] = {}
        self._unsent = bytearray()
        self._ended, wake = os.pipe()
        for descriptor in (receive, send, wake, self._ended):
            os.set_blocking(descriptor, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        signal.signal(signal.SIGCHLD, _wake)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # or Python would end with an exception
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Serve the host until it leaves."""
        self.send("ready")
        while True:
            if self._unsent:
                self._flush()
            acts = self._acts()
            poll = select.poll()
            for descriptor, (events, _) in acts.items():
                poll.register(descriptor, events)
            for descriptor, _ in poll.poll(self.interval()):
                acts[descriptor][1]()
            self.look()

    def _acts(self) -> dict[int, tuple[int, Act]]:
        """What to wait for, by descriptor.

        The host comes last: it may have a job closed, whose descriptors then mean something else.
        """
        acts: dict[int, tuple[int, Act]] = {self._ended: (select.POLLIN, self._wake_up)}
        reading = len(self._unsent) < MAX_UNSENT
        for number, job in self._jobs.items():
            if job.unwritten:
                acts[job.stdin] = select.POLLOUT, lambda n=number, j=job: self._feed(n, j)
            for stream, descriptor in job.outputs.items():
                if reading and job.room[stream]:
                    act = lambda n=number, j=job, s=stream: self._drain(n, j, s)  # noqa: E731
                    acts[descriptor] = select.POLLIN, act
        if self._unsent:
            acts[self._send_to] = select.POLLOUT, self._flush
        acts[self._receive] = select.POLLIN, self._listen
        return acts

    # What a daemon that does more than this one can change.

    def interval(self) -> int:
        """Milliseconds until `look` wants to be called, -1 for never."""
        return -1

    def look(self) -> None:
        """Do what is due from time to time."""

    def take(self) -> bytes:
        """Receive what the host has sent; nothing when it has left."""
        return os.read(self._receive, WIDE)

    def fork(self) -> int:
        """Fork. Raises `OSError` when there may be no more processes."""
        return os.fork()

    def prepare(self, task: str, mark: int) -> None:  # noqa: ARG002 - others tell tasks apart
        """Get a forked process ready for its task."""
        os.setsid()
        sessions.bear(mark)

    def close_from(self, first: int) -> None:
        """Close every descriptor from `first` on."""
        for name in os.listdir("/proc/self/fd"):
            if int(name) >= first:
                try:  # noqa: SIM105 - contextlib takes milliseconds to import
                    os.close(int(name))
                except OSError:
                    pass  # the one that listed the others

    def begin(self, request: Request, given: list[int]) -> Job:
        """Start a process that does what is requested."""
        task = request["do"]
        act = self.tasks[task](request)
        with _Pipes() as pipes:
            stdin = -1 if given else pipes.to_process()
            outputs = {} if given else {stream: pipes.from_process() for stream in OUTPUTS}
            if task != "run":
                _widen(pipes.theirs)
            self._reap()  # what has ended counts as a process until then
            mark = time.monotonic_ns()  # No other daemon of this machine has used it, either.
            pid = self.fork()
            if not pid:
                self._become(task, act, mark, given or pipes.theirs)
            pipes.keep_ours()
        return Job(pid, mark, stdin, outputs)

    def explain_end(self, job: Job, status: int) -> None:
        """Say what a job that has ended could not say itself."""

    def admit(self, file: int) -> None:
        """Raise `OSError` when an open file must not be written now."""

    # The host

    def send(self, kind: str, payload: bytes = b"", **fields: object) -> None:
        """Send a frame as soon as there is room."""
        self._unsent += encode(kind, fields, payload)

    def _flush(self) -> None:
        try:
            del self._unsent[: os.write(self._send_to, self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            sys.exit()

    def _listen(self) -> None:
        try:
            data = self.take()
        except BlockingIOError:
            return
        if not data:
            sys.exit()
        for frame in self._decoder.feed(data):
            self._obey(frame)

    def _obey(self, frame: Frame) -> None:
        number = frame.fields.get("job", 0)
        if frame.kind == "ping":
            self.send("ping")
        elif frame.kind == "start":
            self._start(number, from_json(frame.payload.decode()), frame.fields)
        elif number in self._jobs:
            job = self._jobs[number]
            if frame.kind == "data":
                self._take_input(number, job, frame.payload)
            elif frame.kind == "taken":
                job.room[frame.fields["stream"]] += frame.fields["size"]
            elif frame.kind == "kill":
                sessions.kill(job.pid, job.mark, reaped=job.ended)
                self.send("kill", job=number)
            elif frame.kind == "close":
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
        """Write what a process takes of its input now."""
        try:
            size = os.write(job.stdin, job.unwritten) if job.unwritten else 0
        except BlockingIOError:
            return
        except OSError:  # nothing reads it
            job.close_stdin()
            self.send("unread", job=number)
            return
        del job.unwritten[:size]
        job.taken += size
        if job.taken >= TELL_AFTER:
            self.send("taken", job=number, size=job.taken)
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
        self.send("data", data, job=number, stream=stream)
        if not data:
            os.close(job.outputs.pop(stream))

    # Requests

    def _start(self, number: int, request: Request, fields: dict[str, Any]) -> None:
        """Do what is requested, or start a process that does."""
        count = fields.get("descriptors", 0)
        given, self.descriptors = self.descriptors[:count], self.descriptors[count:]
        try:
            if request["do"] in self.operations:
                report = self.operations[request["do"]](request, given)
                self._report(number, to_json(report).encode())
            else:
                self._jobs[number] = self.begin(request, given)
        except (OSError, ValueError) as error:
            if given and request["do"] in self.tasks:
                _write(given[REPORT], _complaint(error))
            else:
                self._report(number, _complaint(error))
                self.send("unread", job=number)
        finally:
            for descriptor in given:
                os.close(descriptor)

    def _report(self, number: int, report: bytes) -> None:
        self.send("data", report, job=number, stream=REPORT)
        self.send("data", job=number, stream=REPORT)

    def _become(self, task: str, act: Act, mark: int, descriptors: list[int]) -> None:
        """Perform a task in a fork of the daemon, as the leader of a session."""
        code = FAILED
        try:
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number, inheritable=number != REPORT)
            signal.set_wakeup_fd(-1)  # its number may become that of a file which the task writes
            self.close_from(REPORT + 1)
            self.prepare(task, mark)
            act()
            code = 0
        except (OSError, ValueError) as error:
            os.write(REPORT, _complaint(error))
        finally:
            os._exit(code)

    def _wake_up(self) -> None:
        try:
            os.read(self._ended, CHUNK)
        except BlockingIOError:
            return
        self._reap()

    def _reap(self) -> None:
        """Wait for processes that have ended, and report those of jobs to the host."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for number, job in self._jobs.items():
                if job.pid == pid and not job.ended:
                    job.ended = True
                    self.explain_end(job, status)
                    job.close_errors()
                    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
                    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
                    self.send("exit", job=number, code=code, signal=killed)

    # Tasks

    def run(self, request: Request) -> Act:
        """Become a program."""
        directory = encoded(request["cwd"])
        argv = [encoded(argument) for argument in request["argv"]]
        added = {encoded(name): encoded(value) for name, value in request["env"].items()}

        def act() -> None:
            try:
                os.chdir(directory)
            except FileNotFoundError:
                if not request["make_cwd"]:
                    raise
                os.makedirs(directory, exist_ok=True)
                os.chdir(directory)
            _reset_signals()
            _execute(argv, {**self.environment, **added})

        return act

    def read(self, request: Request) -> Act:
        """Copy a file to standard output."""

        def act() -> None:
            file = file_tasks.open_to_read(encoded(request["path"]), request["offset"])
            os.dup2(STDERR, REPORT)  # which ends it: the file is open, and errors are written there
            file_tasks.send(file, request["length"])

        return act

    def write(self, request: Request) -> Act:
        """Copy standard input to a file, which then replaces the old one, and report its size."""

        def act() -> None:
            new = file_tasks.Replacement(encoded(request["path"]), request["mode"])
            try:
                self.admit(new.file)
                size = file_tasks.receive(new.file)
                new.finish()
            finally:
                new.discard()
            os.write(REPORT, b"%d" % size)

        return act


class _Pipes:
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
        self._ours.append(ours)
        self.theirs.append(theirs)
        os.set_blocking(ours, False)
        return ours

    def keep_ours(self) -> None:
        """Leave our ends open, as the process was started."""
        self._ours.clear()

    def __enter__(self) -> _Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (*self.theirs, *self._ours):
            os.close(descriptor)


def encoded(text: str) -> bytes:
    """The bytes that a string of a request stands for."""
    return text.encode("utf-8", "surrogateescape")


def _execute(argv: list[bytes], environment: dict[bytes, bytes]) -> None:
    """Become the program, looked for in PATH. Returns only by raising `OSError`."""
    program = argv[0]
    if b"/" in program:
        os.execve(program, argv, environment)  # noqa: S606 - this is the machine's program
    refused: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for directory in environment.get(b"PATH", os.defpath.encode()).split(b":"):
        try:
            os.execve(directory + b"/" + program, argv, environment)  # noqa: S606 - as above
        except (FileNotFoundError, NotADirectoryError):  # noqa: PERF203 - each may fail
            continue
        except PermissionError as error:
            refused = error
    raise refused


def _reset_signals() -> None:
    """Reset the signals that Python's start, this daemon and what started it have changed.

    What runs under `nohup`, or in the background of a script, ignores signals, and so would all
    that it starts.
    """
    for number in range(1, signal.NSIG):
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):  # noqa: PERF203 - some cannot be changed
            continue
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _wake(_signal: int, _frame: object) -> None:
    """Python writes to the descriptor that was set for it only where there is a handler."""


def _widen(pipes: list[int]) -> None:
    """Enlarge pipes, so that much content needs fewer turns."""
    for descriptor in pipes:
        try:
            fcntl.fcntl(descriptor, F_SETPIPE_SZ, WIDE)
        except OSError:  # noqa: PERF203 - the user may have no more of it
            continue


def _write(descriptor: int, data: bytes) -> None:
    """Write to a pipe that a host may have closed."""
    try:  # noqa: SIM105 - contextlib takes milliseconds to import
        os.write(descriptor, data)
    except OSError:
        pass


def _complaint(error: OSError | ValueError) -> bytes:
    if not isinstance(error, OSError):
        return f"!0 {error}".encode(errors="replace")
    place = f" ({error.filename})" if isinstance(error.filename, str) else ""
    text = f"!{error.errno or 0} {error.strerror or error}{place}"
    return text.encode("utf-8", "surrogateescape")


def main() -> None:
    """Serve the host at standard input and output."""
    os.chdir("/")
    with open("/proc/self/comm", "w") as file:
        file.write(NAME)
    daemon = Daemon(0, 1)
    with open("/proc/self/environ", "rb") as file:  # `os.environ` also has what Python sets
        items = [item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item]
    daemon.environment.update((name, value) for name, value in items)
    daemon.serve()
