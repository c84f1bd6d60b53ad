"""The functions of the REPL that need code in the machine; all others just call the host.

They are declared on the host, in `runs/repl_handlers.py`: a function without a method here needs
nothing in this module.
"""

from __future__ import annotations

import binascii
import errno
import os
import stat
import sys
import types

from ..wire import MAX_PAYLOAD, FrameError, dump
from .json_values import to_json
from .results import CommandOutput, Record
from .workplace import here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .host_calls import Calls
    from .workplace import Workplace

ALIASES = {
    "a": ("old", "first", "before", "commit", "id", "base"),
    "b": ("new", "second", "after", "other"),
    "command": ("cmd", "script", "code"),
    "commit": ("commit_id", "commitId", "commit_hash", "snapshot", "id"),
    "content": ("contents", "text", "data", "body"),
    "count": ("n", "num", "number"),
    "id": ("vm_id", "vmId", "machine", "machine_id", "vm"),
    "inputs": ("data", "context", "variables", "args"),
    "outputs": ("output", "signature", "returns", "schema"),
    "path": ("filename", "file", "file_path", "filePath", "filepath", "name"),
    "prompt": ("query", "question", "text", "message", "input"),
    "plans": ("approaches", "strategies", "ideas", "options", "prompts"),
    "prompts": ("queries", "questions", "messages", "inputs", "prompt_list", "batch"),
    "score": ("key", "scorer", "metric"),
    "task": ("query", "prompt", "question", "instructions"),
    "timeout": ("timeout_seconds", "seconds"),
}
"""Names that models invent for arguments, by the right one; the same for every function."""

_KINDS: dict[str, tuple[type, str]] = {"str": (str, "a str"), "int": (int, "an int")}
"""The types of parameters that are checked before the host is called, and how errors call them."""

_NOT_STARTED = {
    errno.E2BIG: "the command and os.environ are too long together; put what is long into a file",
    errno.EAGAIN: "the machine has as many processes as it may; os.kill(-1, 9) ends all but this "
    "REPL, commands in the background too",
    errno.EMFILE: "this REPL has as many files open as it may; close some",
}
"""What to do if a command cannot be started, by the number of the error."""


class Finished(BaseException):
    """FINAL was called. Not an Exception, so that ``except Exception`` lets it through.

    It holds the outputs, since it may be raised again: by a future, or in a later cell.
    """


class Value:
    """An argument of FINAL_VAR that is the value itself, whatever variables there are."""

    def __init__(self, value: Any) -> None:
        self.value = value


class ChildError(RuntimeError):
    """A forked process called what only the REPL's own process can do."""


class Functions:
    """The functions of the REPL, bound to the machines and to the host's calls.

    Args:
        namespace: Where FINAL_VAR finds variables.
        calls: The way to the host.
        workplace: Left while this machine is copied.
        save: Saves the variables before this machine is copied, and returns a report for the host.
    """

    def __init__(
        self,
        namespace: dict[str, Any],
        calls: Calls,
        workplace: Workplace,
        save: Callable[[], dict[str, Any] | None],
    ) -> None:
        self.home = ""
        self.current = ""
        self._pid = os.getpid()
        self.final: dict[str, Any] | None = None
        self._namespace = namespace
        self._calls = calls
        self._workplace = workplace
        self._save = save

    def call(self, name: str, arguments: dict[str, Any], *, copies: bool = False) -> Any:
        """Call a function of the host. Where it `copies` machines, the variables are saved before.

        Raises `HostError` with the host's words when it refuses.
        """
        if os.getpid() != self._pid:
            raise ChildError(
                f"{name} cannot be called in a forked process: use threads "
                "(concurrent.futures.ThreadPoolExecutor), or call it before and pass the result on"
            )
        if not copies:
            return self._calls.call(name, arguments)
        saved = self._save() if self._is_home else None
        with self._workplace.left():
            return self._calls.call(name, arguments, carried=saved)

    def exec(self, command: Any, timeout: Any = None) -> Any:
        """Run a shell command in the current machine and return what it printed."""
        from .python_or_shell import is_python

        if isinstance(command, types.CodeType) or isinstance(timeout, dict) or is_python(command):
            raise TypeError(
                "exec runs a shell command here, and this is Python: write it as plain code in the "
                "cell, or call builtins.exec(code, globals()) after `import builtins`"
            )
        _require(command, str, "exec", "command", "a str")
        if timeout is not None:
            _require(timeout, (int, float), "exec", "timeout", "a number of seconds")
        if self._is_home:
            from . import commands

            try:
                result = commands.run(command, timeout)
            except OSError as error:
                code = error.errno or 0
                raise OSError(code, _NOT_STARTED.get(code, error.strerror)) from None
        else:
            result = self.call("exec", {"command": command, "timeout": timeout})
        return CommandOutput(result["stdout"], result["stderr"], result["exit_code"])

    def readFile(self, path: str, binary: bool = False) -> Any:
        """The text of a file in the current machine, or with `binary` its bytes."""
        path = _path(path)
        if self._is_home:
            data = _read_regular(path)
        else:
            data = binascii.a2b_base64(self.call("readFile", {"path": path}))
        if binary:
            return data
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ValueError(
                f"{path!r} is not UTF-8 text; readFile(path, binary=True) returns its bytes"
            ) from None

    def writeFile(self, path: str, content: str | bytes) -> Any:
        """Write text or bytes into a file in the current machine; return the bytes written."""
        path = _path(path)
        _require(content, (str, bytes, bytearray), "writeFile", "content", "a str or bytes")
        if isinstance(content, str):
            content = content.encode(errors="surrogateescape")
        if self._is_home:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            with open(path, "wb") as file:
                return file.write(content)
        if len(content) * 4 // 3 > MAX_PAYLOAD - 8192:
            raise ValueError(f"{len(content)} bytes are too many to send to another machine")
        encoded = binascii.b2a_base64(content, newline=False).decode()
        return self.call("writeFile", {"path": path, "base64": encoded})

    def llmQuery(self, prompt: str) -> Any:
        """Ask a sub-model; return its answer."""
        if isinstance(prompt, (list, tuple)):
            raise TypeError("llmQuery takes one prompt; for a list call llmQueryBatched(prompts)")
        return self.call("llmQuery", {"prompt": _prompt(prompt, "llmQuery(prompt)")})

    def llmQueryBatched(self, prompts: list[str]) -> Any:
        """Ask a sub-model many things at once; return the answers in the same order."""
        texts = _texts(prompts, "llmQueryBatched", "prompts")
        return self.call("llmQueryBatched", {"prompts": texts}) if texts else []

    def rlmQuery(
        self,
        task: str,
        inputs: dict[str, Any] | None = None,
        outputs: str = "answer",
        merge: list[str] | None = None,
    ) -> Any:
        """Give a task to a model with a REPL on a copy of the machine; return its outputs."""
        given: dict[str, Any] = {"task": _prompt(task, "rlmQuery(task)"), "outputs": outputs}
        given["inputs"] = to_json(inputs or {}, "rlmQuery: inputs")
        paths = [merge] if isinstance(merge, (str, os.PathLike)) else list(merge or ())
        given["merge"] = [os.path.join(here(), path) for path in paths]
        with self._workplace.left():
            return self.call("rlmQuery", given)

    def branches(
        self,
        plans: list[str],
        outputs: str | None = None,
        score: Any = None,
        keep: str = "best",
        verify: str | None = None,
        seconds: float | None = None,
    ) -> Any:
        """Try plans at once, each on a copy of the machine; return what came of each."""
        judge = score if callable(score) else None
        given = {
            "plans": _texts(plans, "branches", "plans"),
            "outputs": outputs,
            "score": None if judge else score,
            "keep": "all" if judge and keep == "best" else keep,
            "verify": verify,
            "seconds": seconds,
        }
        results = [Record(result) for result in self.call("branches", given, copies=True)]
        if judge and keep == "best":
            return self._choose(results, judge)
        return results

    def FINAL(self, *args: Any, **kwargs: Any) -> None:
        """Hand in the outputs, by name or in the order of the signature, and end the task."""
        if os.getpid() != self._pid:
            raise ChildError(
                "FINAL: return the outputs from the worker, and call FINAL outside of it"
            )
        if not args and not kwargs:
            raise TypeError("FINAL needs the outputs, e.g. FINAL(answer=value)")
        final = {
            "args": [to_json(value, f"FINAL: value {i + 1}") for i, value in enumerate(args)],
            "kwargs": {name: to_json(value, f"FINAL: {name}") for name, value in kwargs.items()},
        }
        try:  # here, where the code can still react
            dump(final)
        except FrameError as error:
            raise ValueError(
                f"FINAL was given too much: {error}. Hand in less, such as a count or a summary, "
                "or write it to a file and hand in the path."
            ) from None
        # The first one counts: only code that swallowed `Finished` can get here again.
        self.final = self.final or final
        raise Finished(final)

    def FINAL_VAR(self, *args: Any, **kwargs: Any) -> None:
        """Hand in variables, by name or by value; names of several are the outputs' names."""
        by_output = {output: self._variable(arg) for output, arg in kwargs.items()}
        values = [self._variable(arg) for arg in args]
        if len(args) > 1 and all(isinstance(arg, str) for arg in args):
            self.FINAL(**dict(zip(args, values)), **by_output)
        self.FINAL(*values, **by_output)

    def _choose(self, results: list[Record], judge: Any) -> list[Record]:
        """Let the best of the right branches win, as a function of the cell judges."""
        best: Record | None = None
        try:
            for result in results:
                if result["right"]:
                    result["score"] = float(judge(result))
                    if best is None or result["score"] > best["score"]:
                        best = result
        finally:
            scores: dict[str, float | None] = {r["branch"]: r["score"] for r in results}
            winner: str | None = best["branch"] if best else None
            self.call("chooseBranch", {"scores": scores, "winner": winner})
        for result in results:
            if result is not best:
                result["machine"] = None
        return results

    @property
    def _is_home(self) -> bool:
        return self.current == self.home

    def _variable(self, arg: Any) -> Any:
        """What an argument of FINAL_VAR stands for: text is a name, unless it cannot be one."""
        if isinstance(arg, Value):
            return arg.value
        if not isinstance(arg, str) or not arg.isidentifier():
            return arg
        frame: Any = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while frame and not frame.f_code.co_filename.startswith("Cell "):
            frame = frame.f_back
        for variables in (frame.f_locals if frame else {}, self._namespace):
            if arg in variables:
                return variables[arg]
        raise NameError(
            f"FINAL_VAR: there is no variable {arg[:80]!r}; to hand in the text itself, call "
            f"FINAL({arg[:80]!r})"
        )


def bind(functions: Functions, declared: list[dict[str, Any]]) -> dict[str, Any]:
    """FINAL and the functions that the host declares, by each of their names.

    A function whose name is a method of `Functions` runs that method; any other calls the host.
    """
    bound = {"FINAL": _plain(functions.FINAL), "FINAL_VAR": _plain(functions.FINAL_VAR)}
    bound["FINAL_VAR"].value = Value  # see `compiler`
    for function in declared:
        method = getattr(functions, function["name"], None)
        bound[function["name"]] = bound[function["twin"]] = (
            _from_method(function, method) if method else _from_host(function, functions)
        )
    return bound


def _plain(method: Any) -> Any:
    """A method as a function of the cells' module, which can be pickled by its name."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    call.__name__ = call.__qualname__ = method.__name__
    call.__doc__, call.__module__ = method.__doc__, "__main__"
    return call


def _from_method(function: dict[str, Any], method: Any) -> Callable[..., Any]:
    code = method.__code__
    names = code.co_varnames[1 : code.co_argcount]
    defaults = method.__defaults__ or ()
    required = names[: len(names) - len(defaults)]
    return _accept_aliases(function, required, dict(zip(names[len(required) :], defaults)), method)


def _from_host(function: dict[str, Any], functions: Functions) -> Callable[..., Any]:
    name, parameters = function["name"], function["parameters"]
    kinds = {each["name"]: _KINDS[each["type"]] for each in parameters if each["type"]}

    def act(**given: Any) -> Any:
        for key, value in given.items():
            if key in kinds:
                _require(value, kinds[key][0], name, key, kinds[key][1])
        arguments = {key: to_json(value, f"{name}: {key}") for key, value in given.items()}
        return functions.call(name, arguments, copies=function["copies"])

    required = tuple(each["name"] for each in parameters if each["required"])
    optional = {each["name"]: each["default"] for each in parameters if not each["required"]}
    return _accept_aliases(function, required, optional, act)


def _accept_aliases(
    function: dict[str, Any], required: tuple[str, ...], optional: dict[str, Any], act: Any
) -> Callable[..., Any]:
    """`act`, which also takes the argument names that models invent. Errors name the right ones."""
    names = (*required, *optional)
    usage = ", ".join([*required, *(f"{name}={value!r}" for name, value in optional.items())])
    right = f"call {function['name']}({usage})"
    aliases = {alias: name for name in reversed(names) for alias in ALIASES.get(name, ())}

    def call(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args))
        for key, value in kwargs.items():
            name = key if key in names else aliases.get(key, key)
            if name not in names or name in given:
                raise TypeError(f"{key}= does not fit: {right}")
            given[name] = value
        if len(args) > len(names) or not given.keys() >= set(required):
            raise TypeError(f"wrong arguments: {right}")
        return act(**given)

    call.__name__ = call.__qualname__ = function["name"]
    call.__doc__, call.__module__ = f"{function['call']}\n\n{function['usage']}", "__main__"
    return call


def _require(value: Any, kind: Any, function: str, name: str, wanted: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{function}: {name} must be {wanted}, not {type(value).__name__}")


def _path(path: Any) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise TypeError(f"a path must be a str, not {type(path).__name__}") from None


def _prompt(prompt: Any, where: str) -> str:
    _require(prompt, str, where.partition("(")[0], where, "a str")
    return to_json(prompt, where)


def _texts(values: Any, function: str, name: str) -> list[str]:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{function} takes a list of {name}, each a str")
    return [_prompt(value, f"{function}({name}[{i}])") for i, value in enumerate(values)]


def _read_regular(path: str) -> bytes:
    """The bytes of a regular file. Never blocks, as opening a FIFO or a device could."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{path!r} is a directory; os.listdir({path!r}) lists it")
        if not stat.S_ISREG(mode):
            raise OSError(f"{path!r} is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)
