"""Commands and files through the REST interface."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import math
import posixpath
import uuid
from typing import TYPE_CHECKING, Final

import anyio
from starlette.responses import JSONResponse, Response

from vers_rlm_mcp.errors import MachineError, PathRefused
from vers_rlm_mcp.machines import read_bytes, run_command

from .answers import failed, plain
from .requests import Exec, PutFile, read_body, read_id

if TYPE_CHECKING:
    from anyio.abc import ByteReceiveStream, ByteSendStream
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from vers_rlm_mcp.machines import ExitStatus

    from .options import Options
    from .vms import Cloud, Vm

HOME: Final = "/root"

OUTPUT_LIMIT: Final = 64 * 1024 * 1024
FILE_LIMIT: Final = 64 * 1024 * 1024
"""Bytes that are held in memory for one request."""

DEFAULT_MODE: Final = 0o644

TEST_SECONDS: Final = 10.0
"""How long a look at a directory may take."""


class Execution:
    """The endpoints exec, exec/stream and files."""

    def __init__(self, cloud: Cloud, options: Options) -> None:
        self._cloud = cloud
        self._options = options

    async def run(self, request: Request) -> Response:
        """POST exec: text both ways, lossy, and a hard cap in time."""
        vm, wanted = await self._asked(request)
        seconds = self._options.exec_seconds
        if wanted.timeout_secs:
            seconds = min(seconds, wanted.timeout_secs)
        result = await run_command(
            vm.machine,
            wanted.command,
            timeout=seconds,
            stdin=(wanted.stdin or "").encode(),
            env=wanted.env,
            cwd=wanted.working_dir or HOME,
            limit=OUTPUT_LIMIT,
        )
        if result.status is None:
            raise failed(504, f"exec timed out after {seconds:g}s")
        return JSONResponse(
            {
                "exit_code": _exit_code(result.status),
                "stdout": result.stdout.text,
                "stderr": result.stderr.text,
                "exec_id": wanted.exec_id,
            }
        )

    async def stream(self, request: Request) -> Response:
        """POST exec/stream: a line of JSON per chunk."""
        vm, wanted = await self._asked(request)
        return _Streamed(vm, wanted, self._options)

    async def read_file(self, request: Request) -> Response:
        """GET files."""
        vm = self._cloud.running(read_id(request, "vm_id"))
        path = request.query_params.get("path")
        if path is None:
            raise plain(400, "Failed to deserialize query string: missing field `path`")
        try:
            content = await read_bytes(vm.machine, path, length=FILE_LIMIT)
        except PathRefused as error:
            raise failed(404, str(error)) from error
        return JSONResponse({"content_b64": base64.b64encode(content).decode()})

    async def write_file(self, request: Request) -> Response:
        """PUT files."""
        vm = self._cloud.running(read_id(request, "vm_id"))
        wanted = await read_body(request, PutFile)
        try:
            content = base64.b64decode(wanted.content_b64, validate=True)
        except binascii.Error as error:
            raise failed(400, f"content_b64: {error}") from error
        if not wanted.create_dirs:
            await _need_directory(vm, posixpath.dirname(wanted.path))
        mode = DEFAULT_MODE if wanted.mode is None else wanted.mode
        try:
            await vm.machine.write(wanted.path, content, mode=mode)
        except PathRefused as error:
            raise failed(400, str(error)) from error
        return Response()

    async def _asked(self, request: Request) -> tuple[Vm, Exec]:
        vm = self._cloud.running(read_id(request, "vm_id"))
        return vm, await read_body(request, Exec)


class _Streamed(Response):
    """A command's output as it comes, one JSON object a line, in either of the published shapes."""

    media_type = "application/x-ndjson"

    def __init__(self, vm: Vm, wanted: Exec, options: Options) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._vm = vm
        self._wanted = wanted
        self._options = options
        self._exec_id = wanted.exec_id or str(uuid.uuid4())
        self._cursor = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        try:
            await self._run()
        except (PathRefused, MachineError) as error:
            await self._line({"type": "error", "code": "exec_failed", "message": str(error)})
        await send({"type": "http.response.body"})

    async def _run(self) -> None:
        wanted = self._wanted
        directory = wanted.working_dir or HOME
        async with await self._vm.machine.spawn(
            wanted.command, env=wanted.env, cwd=directory
        ) as process:
            with anyio.move_on_after(wanted.timeout_secs or math.inf):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._feed, process.stdin)
                    tasks.start_soon(self._relay, process.stdout, "stdout")
                    tasks.start_soon(self._relay, process.stderr, "stderr")
                await self._end(_exit_code(await process.wait()))
                return
        message = f"exec timed out after {wanted.timeout_secs}s"
        await self._line({"type": "error", "code": "timeout", "message": message})

    async def _feed(self, target: ByteSendStream) -> None:
        with contextlib.suppress(anyio.BrokenResourceError):
            await target.send((self._wanted.stdin or "").encode())
        await target.aclose()

    async def _relay(self, source: ByteReceiveStream, stream: str) -> None:
        async for chunk in source:
            await self._chunk(stream, chunk)

    async def _chunk(self, stream: str, chunk: bytes) -> None:
        self._cursor += 1
        data = base64.b64encode(chunk).decode()
        kind = {"type": "chunk"} if self._options.stream_types else {}
        await self._line({**kind, "stream": stream, "data_b64": data, "cursor": self._cursor})

    async def _end(self, code: int) -> None:
        if self._options.stream_types:
            await self._line({"type": "exit", "exit_code": code})
        else:
            await self._line({"stream": "stdout", "data_b64": "", "exit_code": code})

    async def _line(self, fields: dict[str, object]) -> None:
        line = json.dumps({**fields, "exec_id": self._exec_id}).encode() + b"\n"
        await self._send({"type": "http.response.body", "body": line, "more_body": True})


async def _need_directory(vm: Vm, directory: str) -> None:
    """Refuse to make what the request does not want made."""
    result = await run_command(vm.machine, ["test", "-d", directory], timeout=TEST_SECONDS)
    if result.status is None or not result.status.ok:
        raise failed(400, f"no such directory: {directory}")


def _exit_code(status: ExitStatus) -> int:
    """One number, as a shell tells it."""
    return 128 + (status.signal or 0) if status.code is None else status.code
