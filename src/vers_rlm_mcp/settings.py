"""Every setting, once: its name, meaning, default and environment variable.

A setting comes from a command-line flag, else from the environment, else from its default. The
table in the README is made from this class (`python -m vers_rlm_mcp.settings`). Keys of model
providers are not here: they stay in the environment, where only the provider's SDK reads them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def default_state_dir() -> Path:
    """Where machines, commits and runs are kept: the XDG state directory of the user."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "vers-rlm-mcp"


class Settings(BaseSettings):
    """The settings of the server and the command line."""

    model_config = SettingsConfigDict(env_prefix="VERS_RLM_", extra="forbid", frozen=True)

    backend: Literal["auto", "bubblewrap"] = Field(
        "auto", description="Where machines come from. `auto` takes the best that works here."
    )
    model: str | None = Field(
        None,
        description="The model that writes the code, as `provider:model`: `anthropic:…`, "
        "`openai:…` (any OpenAI-compatible endpoint), `scripted:PATH` or `sampling`. Without it, "
        "the provider whose key is set.",
    )
    sub_model: str | None = Field(
        None, description="The model that `llmQuery` asks. Without it, the same as `model`."
    )
    state_dir: Path = Field(
        default_factory=default_state_dir,
        description="The directory under which everything durable lies.",
    )
    allow_dir: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="Host directories whose files a run may take into its machine. In the "
        "environment, separated by `:`.",
    )
    network: Literal["off", "on", "host"] = Field(
        "off",
        description="Network of bubblewrap machines: `off`; `on` (isolated, through pasta or "
        "slirp4netns); `host` (the host's own network, its local services included).",
    )
    base: Path | None = Field(
        None,
        description="What a bubblewrap machine starts from: a root directory or a docker-archive. "
        "Without it, the host's own system directories, shown selectively.",
    )
    vcpu_count: int = Field(2, ge=1, description="Processors of a machine.")
    mem_size_mib: int = Field(2048, ge=128, description="Memory of a machine, in MiB.")
    fs_size_mib: int = Field(8192, ge=64, description="What a machine may write, in MiB.")
    max_processes: int = Field(512, ge=16, description="Processes and threads in a machine.")
    max_machines: int = Field(16, ge=1, description="Machines alive at once, per server.")
    exec_timeout: float = Field(120, gt=0, description="Seconds a command may take.")
    cell_timeout: float = Field(300, gt=0, description="Seconds a cell may take.")
    max_seconds: float = Field(1800, gt=0, description="Seconds a run may take.")
    max_tokens: int | None = Field(None, gt=0, description="Tokens a run may use.")
    max_usd: float | None = Field(None, gt=0, description="Money a run may spend, in USD.")
    token: str | None = Field(
        None, repr=False, description="Bearer token that HTTP clients must present."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much is written to standard error."
    )

    @field_validator("allow_dir", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(os.pathsep) if part)
        return value
