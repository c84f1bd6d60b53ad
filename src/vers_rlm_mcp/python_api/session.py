"""What `RLM` and `Machines` share: settings by keyword, and a fleet while they are open."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from vers_rlm_mcp.errors import SettingsError
from vers_rlm_mcp.machines import Backend, open_fleet
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from vers_rlm_mcp.machines import Fleet


class Session:
    """An open fleet and its settings, between ``__aenter__`` and ``__aexit__``."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        backend = settings.get("backend")
        self._backend = backend if isinstance(backend, Backend) else None
        if self._backend:
            settings = {name: value for name, value in settings.items() if name != "backend"}
        try:
            self._settings = Settings(**settings)
        except ValidationError as error:
            faults = [f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors()]
            raise SettingsError(
                f"{'; '.join(faults)}. The settings are {', '.join(Settings.model_fields)}."
            ) from None
        self._resources = AsyncExitStack()
        self._fleet: Fleet | None = None

    @property
    def settings(self) -> Settings:
        """The settings in force: keywords, else the environment, else defaults."""
        return self._settings

    async def __aenter__(self) -> Self:
        try:
            self._fleet = await self._resources.enter_async_context(
                open_fleet(self._settings, self._backend)
            )
            await self._fleet.sweep()
        except BaseException:
            await self._resources.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._fleet = None
        await self._resources.aclose()

    def _require_open(self) -> Fleet:
        if self._fleet is None:
            name = type(self).__name__
            raise RuntimeError(f"{name} is not open; use it inside `async with {name}(…) as …:`.")
        return self._fleet
