"""Checks whether the service can be used, as far as that costs nothing."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

from vers_rlm_mcp.errors import MachineError

from ..base import Finding
from .api import VersApi
from .faults import NotThere
from .schema import KeyLimits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .config import VersConfig

KEY_SHAPE: Final = re.compile(
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}[0-9a-f]{64}", re.IGNORECASE
)


async def probe(config: VersConfig) -> Sequence[Finding]:
    """Check the key, the service and what the key may do, up to the first failure.

    Nothing is made, and no machine is connected to.
    """
    api = VersApi(config)
    findings = [_key(config)]
    try:
        for name, look in (("Service", _service), ("Rights", _rights), ("Quota", _quota)):
            findings.append(await _finding(name, look, api))
            if not findings[-1].ok:
                break
    finally:
        await api.aclose()
    return findings


async def _finding(name: str, look: Callable[[VersApi], Awaitable[str]], api: VersApi) -> Finding:
    try:
        return Finding(name, True, await look(api))
    except MachineError as error:
        return Finding(name, False, str(error))


def _key(config: VersConfig) -> Finding:
    usual = KEY_SHAPE.fullmatch(config.key.value)
    doubt = "" if usual else "; it has not the shape of one (a UUID and 64 hexadecimal digits)"
    return Finding("Key", True, f"found in {config.key.source}{doubt}")


async def _service(api: VersApi) -> str:
    started = time.monotonic()
    await api.health()
    milliseconds = (time.monotonic() - started) * 1000
    trust = "its certificates are NOT verified" if api.config.insecure else "verified by TLS"
    if api.config.url.startswith("http:"):
        trust = "without TLS"
    return (
        f"{api.config.url} answers in {milliseconds:.0f} ms, {trust}; "
        f"machines are at *.{api.config.domain}"
    )


async def _rights(api: VersApi) -> str:
    count = len(await api.vms())
    return f"the key is accepted; its organisation has {count} machine{'' if count == 1 else 's'}"


async def _quota(api: VersApi) -> str:
    try:
        identity = await api.whoami()
    except NotThere:
        return "not told by this server, which is an older one"
    key = identity.api_key or KeyLimits()
    processors = "any number of" if key.max_vcpus is None else str(key.max_vcpus)
    memory = "any memory" if key.max_memory_mib is None else f"{key.max_memory_mib} MiB of memory"
    owner = f" of {identity.org.name}" if identity.org and identity.org.name else ""
    return f"the key{owner} may have {processors} processors and {memory}"
