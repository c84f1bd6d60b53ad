"""Which backend the settings choose, and the fleet on it.

A backend is registered by its row in `settings.BACKENDS`: its name, which is also the name of its
package here, and a description. The package offers a `FACTORY`, which selection, `doctor` and the
settings use.
`docs/adding-a-backend.md` is the guide, with a whole example.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from anyio import to_thread

from vers_rlm_mcp.errors import BackendUnavailable
from vers_rlm_mcp.settings import BACKENDS
from vers_rlm_mcp.store import Ledger, in_thread, make_state_directory

from .fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from vers_rlm_mcp.settings import Settings

    from .base import Backend, BackendFactory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and the reason for choosing it."""

    name: str
    reason: str
    factory: BackendFactory


def load_factory(name: str) -> BackendFactory:
    """The factory of a backend in `BACKENDS`."""
    return cast("BackendFactory", import_module(f".{name}", __package__).FACTORY)


def choose_backend(settings: Settings, *, forget: bool = False) -> Choice:
    """The backend that the settings name or, with ``auto``, the first one that is usable.

    It may block: where microsandbox is installed, the first call after a boot of this computer
    tries a machine, which takes about a second. With `forget`, every call does.

    Raises:
        BackendUnavailable: None is usable.
    """
    if settings.backend != "auto":
        return Choice(settings.backend, "it was asked for", load_factory(settings.backend))
    reasons: list[str] = []
    for name in BACKENDS:
        factory = load_factory(name)
        if forget:
            factory.forget(settings)
        found = factory.usable(settings)
        reasons.append(found.reason)
        if found.yes:
            return Choice(name, ", and ".join(filter(None, reasons)), factory)
    raise BackendUnavailable(f"No machine can be made here: {', and '.join(reasons)}.")


@asynccontextmanager
async def open_fleet(settings: Settings, backend: Backend | None = None) -> AsyncGenerator[Fleet]:
    """The machines of one server. At the end those that are not kept are deleted.

    Args:
        settings: The settings of the server.
        backend: Where machines come from instead of the backend that the settings choose.

    Raises:
        BackendUnavailable: No machine can be made here; the message says what to do.
    """
    _make_state_dir(settings)
    reason = "it was given"
    if backend is None:
        choice = await to_thread.run_sync(choose_backend, settings)
        backend, reason = choice.factory.open(settings), choice.reason
    async with backend:
        can = backend.capabilities
        logger.info(
            "Machines come from %s, since %s (isolation: %s, fidelity: %s).",
            backend.name,
            reason,
            can.isolation,
            can.fidelity,
        )
        with closing(await in_thread(Ledger, settings.state_dir)) as ledger:
            async with Fleet(backend, ledger, max_machines=settings.max_machines) as fleet:
                yield fleet


def _make_state_dir(settings: Settings) -> None:
    try:
        make_state_directory(settings.state_dir)
    except OSError as error:
        raise BackendUnavailable(
            f"The state directory {settings.state_dir} cannot be used: {error.strerror}. "
            "Set VERS_RLM_STATE_DIR to one that you may write to."
        ) from error
