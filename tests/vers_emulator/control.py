"""The emulator's own endpoints, outside of the service: faults and counts, for use by hand.

``GET /emulator/faults`` lists what is set, ``POST`` sets one (``{"kind": "refuse", "at": "* /vms",
"times": 3}``), ``DELETE`` clears all; ``GET /emulator/counts`` tells what happened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .faults import FAULT

if TYPE_CHECKING:
    from starlette.requests import Request

    from .counts import Counts
    from .faults import Faults


class Control:
    """Lets people at a terminal do what tests do in-process."""

    def __init__(self, faults: Faults, counts: Counts) -> None:
        self._faults = faults
        self._counts = counts

    def routes(self) -> list[Route]:
        """The endpoints."""
        return [
            Route("/health", self._health, methods=["GET"]),
            Route("/emulator/faults", self._list, methods=["GET"]),
            Route("/emulator/faults", self._set, methods=["POST"]),
            Route("/emulator/faults", self._clear, methods=["DELETE"]),
            Route("/emulator/counts", self._count, methods=["GET"]),
        ]

    async def _health(self, _: Request) -> Response:
        """The service's own, which lies outside of its API and wants no key."""
        return JSONResponse({"status": "ok"})

    async def _list(self, _: Request) -> Response:
        return JSONResponse([fault.model_dump() for fault in self._faults.left()])

    async def _set(self, request: Request) -> Response:
        try:
            self._faults.set(FAULT.validate_json(await request.body()))
        except ValidationError as error:
            return PlainTextResponse(f"{error}\n", 422)
        return await self._list(request)

    async def _clear(self, request: Request) -> Response:
        self._faults.clear()
        return await self._list(request)

    async def _count(self, _: Request) -> Response:
        return JSONResponse(self._counts.as_dict())
