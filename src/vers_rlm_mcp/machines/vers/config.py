"""The address and key of the Vers service, found where its own tools look for them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from vers_rlm_mcp.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..base import Fidelity

KEY_VARIABLE: Final = "VERS_API_KEY"
URL_VARIABLES: Final = ("VERS_BASE_URL", "VERS_URL")
"""SDKs read the first, with or without `API_PATH` at its end; the CLI reads the second."""

DEFAULT_URL: Final = "https://api.vers.sh"
API_PATH: Final = "/api/v1"
DEFAULT_DOMAIN: Final = "vm.vers.sh"
SSH_PORT: Final = 443

_UNPRINTABLE = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, and where it was found."""

    value: str = field(repr=False)
    source: str


@dataclass(frozen=True, slots=True)
class VersConfig:
    """How to reach the service, and defaults for machines.

    Raises `SettingsError` if a value cannot be used.
    """

    key: Key
    url: str = DEFAULT_URL
    """The service's address, without the path of the API."""
    ssh_domain: str | None = None
    """Machines are ``ID.DOMAIN``. None derives it from `url`: ``api.X`` gives ``vm.X``."""
    ssh_address: str | None = None
    """``HOST`` or ``HOST:PORT`` to dial instead of the machine's own name, which TLS still asks
    for. An emulator needs it, and so does a network that reaches the service through a relay."""
    ca_file: Path | None = None
    """Certificate authorities to trust instead of the system's."""
    insecure: bool = False
    """Do not verify TLS certificates and SSH host keys."""
    fidelity: Fidelity = "memory"
    """What commits and branches carry; the service keeps memory, an emulator of it may not."""
    vcpu_count: int = 2
    mem_size_mib: int = 2048
    fs_size_mib: int = 8192

    def __post_init__(self) -> None:
        # The key itself is not shown, whatever is wrong with it.
        if _UNPRINTABLE.search(self.key.value):
            raise SettingsError(
                f"The Vers key in {self.key.source} has characters that no key has; copy it again."
            )
        parts = _split(self.url)
        if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SettingsError(
                f"{' or '.join(URL_VARIABLES)} is not the address of a server: "
                f"use one like {DEFAULT_URL}."
            )
        if parts.username or parts.password or parts.query:
            raise SettingsError(
                f"{' or '.join(URL_VARIABLES)} may hold no user, password or query."
            )
        if self.ca_file and not self.ca_file.is_file():
            raise SettingsError(f"The file of certificate authorities, {self.ca_file}, is missing.")
        self._dial_target()

    @property
    def api_url(self) -> str:
        """The address of the API, without a slash at its end."""
        return f"{self.url}{API_PATH}"

    @property
    def domain(self) -> str:
        """The domain of machines' host names."""
        if self.ssh_domain:
            return self.ssh_domain
        host = urlsplit(self.url).hostname or ""
        return f"vm.{host.removeprefix('api.')}" if host.startswith("api.") else DEFAULT_DOMAIN

    def ssh_target(self, machine_id: str) -> tuple[str, int, str]:
        """Host and port to dial for a machine, and the name to ask for in TLS."""
        name = f"{machine_id}.{self.domain}"
        host, port = self._dial_target()
        return host or name, port, name

    def _dial_target(self) -> tuple[str, int]:
        host, _, port = (self.ssh_address or "").rpartition(":")
        if not host:
            return self.ssh_address or "", SSH_PORT
        try:
            return host.strip("[]"), int(port)
        except ValueError:
            raise SettingsError(
                f"The address of Vers machines, {self.ssh_address!r}, is not HOST or HOST:PORT."
            ) from None


def find_url(env: Mapping[str, str]) -> str:
    """The address of the service: from the environment, or the public one."""
    given = next((env[name].strip() for name in URL_VARIABLES if env.get(name)), DEFAULT_URL)
    return given.rstrip("/").removesuffix(API_PATH).rstrip("/")


def find_key(env: Mapping[str, str], home: Path) -> Key | None:
    """The key that the service's own tools would use; None if there is none.

    Files that are missing or malformed are skipped.
    """
    if key := env.get(KEY_VARIABLE, "").strip():
        return Key(key, KEY_VARIABLE)
    for name, read in _FILES.items():
        try:
            found = read((home / name).read_text())
        except (OSError, ValueError, AttributeError):  # no such file, no JSON, or no object
            continue
        if isinstance(found, str) and found.strip():
            return Key(found.strip(), f"~/{name}")
    return None


def _in_keys(text: str) -> Any:
    return json.loads(text).get("keys", {}).get(KEY_VARIABLE)


def _in_config(text: str) -> Any:
    data = json.loads(text)
    return data.get("versApiKey") or data.get("api_key")


def _in_versrc(text: str) -> Any:
    return json.loads(text).get("apiKey") if text.lstrip().startswith("{") else text


_FILES: Final[Mapping[str, Callable[[str], Any]]] = {
    ".vers/keys.json": _in_keys,
    ".vers/config.json": _in_config,
    ".versrc": _in_versrc,
}


def _split(url: str) -> Any:
    try:
        return urlsplit(url)
    except ValueError:
        return None
