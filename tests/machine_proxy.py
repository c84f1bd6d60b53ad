"""A machine in front of another one, for tests that change single methods of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vers_rlm_mcp.machines import Machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Mapping, Sequence

    from anyio.abc import ByteReceiveStream

    from vers_rlm_mcp.machines import Commit, MachineInfo, Process


class MachineProxy(Machine):
    """Passes every call on to `machine`."""

    def __init__(self, machine: Machine) -> None:
        self.id = machine.id
        self.backend = machine.backend
        self.capabilities = machine.capabilities
        self._machine = machine

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        return await self._machine.spawn(argv, env=env, cwd=cwd)

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> ByteReceiveStream:
        return await self._machine.read(path, offset=offset, length=length)

    async def write(
        self, path: str, data: bytes | AsyncIterable[bytes], *, mode: int = 0o644
    ) -> int:
        return await self._machine.write(path, data, mode=mode)

    async def snapshot(self, *, intent: str | None = None) -> Commit:
        return await self._machine.snapshot(intent=intent)

    async def branch(
        self, count: int = 1, *, labels: Mapping[str, str] | None = None
    ) -> Sequence[Machine]:
        return await self._machine.branch(count, labels=labels)

    async def info(self) -> MachineInfo:
        return await self._machine.info()

    async def delete(self) -> None:
        await self._machine.delete()

    async def aclose(self) -> None:
        await self._machine.aclose()
