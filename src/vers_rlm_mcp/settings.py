"""Every setting, once: its name, meaning, default and environment variable.

A setting comes from a command-line flag, else from the environment, else from its default. Keys
of providers are not here: they stay in the environment, where only who needs them reads them.

The tables in the README are made from this module: `python -m vers_rlm_mcp.settings` prints them,
and with the name of a file writes them there, between the lines that mark their place.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo


PREFIX = "VERS_RLM_"
"""What the environment variables of the settings begin with."""

PROVIDER_VARIABLES = {
    "VERS_API_KEY": "The key for Vers machines; also looked for in the files of Vers's own tools.",
    "VERS_BASE_URL": "Another address of the Vers service; `VERS_URL` is the same.",
    "ANTHROPIC_API_KEY": "The key for `anthropic:` models.",
    "ANTHROPIC_BASE_URL": "Another address for them, e.g. of a proxy.",
    "OPENAI_API_KEY": "The key for `openai:` models.",
    "OPENAI_BASE_URL": "The address of another OpenAI-compatible server; it may need no key.",
}
"""What is read under the names that the providers gave it."""

SEPARATORS = {
    "allow_dir": os.pathsep,
    "token": ",",
    "allowed_hosts": ",",
    "network_domains": ",",
    "allowed_origins": ",",
    "toolsets": ",",
}
"""The settings that have several values, and what stands between them in the environment."""

MARKS = ("<!-- settings -->\n", "<!-- /settings -->\n")
"""The lines of the README between which the tables stand."""

BACKENDS = {
    "vers": "VMs of a service, which cost money",
    "microsandbox": "micro-VMs on this computer",
    "bubblewrap": "namespaces on it",
}
"""The backends, each with what it is, in the order in which ``auto`` tries them. Their names are
those of their rooms in `machines`."""

if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal[("auto", *BACKENDS)]


def default_state_dir() -> Path:
    """Where machines, commits and runs are kept: the XDG state directory of the user."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "vers-rlm-mcp"


def _described(choices: Mapping[str, str]) -> str:
    return ", ".join(f"`{name}` ({what})" for name, what in choices.items())


class Settings(BaseModel):
    """The settings of the server and the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    backend: BackendName = Field(
        "auto",
        description=f"Where machines come from: {_described(BACKENDS)}. `auto` takes Vers where "
        "there is a key for it, microsandbox where it is installed and a machine of it boots, and "
        "else bubblewrap.",
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
        description="The directory under which everything durable lies. By default in "
        "`$XDG_STATE_HOME`, where that is set.",
    )
    allow_dir: tuple[Path, ...] = Field(
        (),
        description="Host directories whose files a run may take into its machine. In the "
        "environment, separated by `:`.",
    )
    network: Literal["off", "on", "host"] = Field(
        "off",
        description="Network of machines on this computer: `off`; `on` (isolated: for bubblewrap "
        "through pasta or slirp4netns, for microsandbox public addresses only); `host` (the host's "
        "own network, its local services included).",
    )
    network_domains: tuple[str, ...] = Field(
        (),
        description="With network `on`, the only domains that microsandbox machines may reach. In "
        "the environment, separated by `,`.",
    )
    image: str = Field(
        "python:3.12-slim",
        description="What a microsandbox machine starts from: an OCI image that has `python3`, "
        "fetched when it is first needed, or the path of a docker-archive.",
    )
    base: Path | None = Field(
        None,
        description="What a bubblewrap machine starts from: a root directory or a docker-archive. "
        "Without it, the host's own system directories, shown selectively.",
    )
    vers_ssh_domain: str | None = Field(
        None,
        description="What names of Vers machines end with. Without it, `vm.X` for a service at "
        "`api.X`.",
    )
    vers_ssh_address: str | None = Field(
        None,
        description="`HOST:PORT` to dial for Vers machines instead of their names, port 443: for "
        "an emulator or a relay.",
    )
    vers_ca_file: Path | None = Field(
        None, description="Certificate authorities to trust for Vers, instead of the system's."
    )
    vers_insecure: bool = Field(
        False, description="Trust any certificate and SSH host key of Vers: for trials only."
    )
    vers_fidelity: Literal["memory", "disk"] = Field(
        "memory",
        description="What copies of Vers machines carry. An emulator may carry only the `disk`.",
    )
    vcpu_count: int = Field(2, ge=1, description="Processors of a machine.")
    mem_size_mib: int = Field(2048, ge=128, description="Memory of a machine, in MiB.")
    fs_size_mib: int = Field(8192, ge=64, description="What a machine may write, in MiB.")
    max_processes: int = Field(512, ge=16, description="Processes and threads in a machine.")
    max_machine_seconds: float | None = Field(
        None, gt=0, description="Seconds after which a microsandbox machine ends, whatever runs."
    )
    max_machines: int = Field(16, ge=1, description="Machines alive at once, for each client.")
    exec_timeout: float = Field(120, gt=0, description="Seconds a command may take.")
    cell_timeout: float = Field(300, gt=0, description="Seconds a cell may take.")
    checkpoints: Literal["off", "change", "step", "destructive"] = Field(
        "change",
        description="When a run commits its machine, so that it can go on from there: after each "
        "`step`; after a step that may have made a `change`, as long as that takes no more than a "
        "tenth of the run's time; before code that looks `destructive`; `off`, never.",
    )
    max_recoveries: int = Field(
        3, ge=0, description="How often a run may put a machine that it broke back to a checkpoint."
    )
    max_record_mib: int = Field(
        1024,
        ge=1,
        description="What the records of runs may take on disk, in MiB, for each client: the "
        "oldest go first.",
    )
    max_seconds: float = Field(1800, gt=0, description="Seconds a run may take.")
    max_tokens: int | None = Field(None, gt=0, description="Tokens a run may use.")
    max_usd: float | None = Field(None, gt=0, description="Money a run may spend, in USD.")
    confirm_usd: float | None = Field(
        None,
        ge=0,
        description="Money that a run may be allowed to spend, in USD, before the user is asked, "
        "where the client can ask. Without it, nobody is asked.",
    )
    token: tuple[str, ...] = Field(
        (),
        repr=False,
        description="Bearer tokens of HTTP clients; each has machines and runs of its own. In the "
        "environment, separated by `,`.",
    )
    token_file: Path | None = Field(
        None, description="A file of further bearer tokens, one on each line."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="`Host` headers to accept over HTTP besides this computer's own, as `NAME` or "
        "`NAME:PORT`. In the environment, separated by `,`.",
    )
    allowed_origins: tuple[str, ...] = Field(
        (),
        description="`Origin` headers to accept over HTTP besides this computer's own, as "
        "`https://NAME`. In the environment, separated by `,`.",
    )
    toolsets: tuple[Literal["vm", "rlm"], ...] = Field(
        ("vm", "rlm"),
        description="Which tools are offered: those for machines, those for runs, or both. "
        "Separated by `,`.",
    )
    read_only: bool = Field(
        False, description="Offer only tools that make, change and delete nothing."
    )
    max_calls: int = Field(
        32, ge=1, description="Calls at work at once, and runs under way, per client."
    )
    wait_seconds: float | None = Field(
        None,
        ge=0,
        description="Seconds after which a call that waits for a run answers that it still goes "
        "on. Without it 50, and more for clients known to wait longer.",
    )
    max_requests: float = Field(50, gt=0, description="HTTP requests per second, per client.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much is logged."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Whether the log is for people, or a line of JSON for each record."
    )
    log_file: Path | None = Field(
        None, description="A file to add the log to, instead of standard error."
    )

    @model_validator(mode="before")
    @classmethod
    def _add_environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Take from the environment what was not given; an empty variable says nothing."""
        found = {name: os.environ.get(variable(name)) for name in cls.model_fields}
        return {name: value for name, value in found.items() if value} | given

    @field_validator(*SEPARATORS, mode="before")
    @classmethod
    def _split(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            parts = value.split(SEPARATORS[str(info.field_name)])
            return tuple(part.strip() for part in parts if part.strip())
        return value

    def environment(self) -> dict[str, str]:
        """The settings that were made, by flag or environment, as variables for a child process."""
        values = {name: getattr(self, name) for name in self.model_fields_set}
        for name in values.keys() & SEPARATORS.keys():
            values[name] = SEPARATORS[name].join(map(str, values[name]))
        return {variable(name): str(value) for name, value in values.items() if value is not None}


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def markdown() -> str:
    """The tables for the README."""
    settings = [
        f"| `{variable(name)}` | `{flag(name)}` | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    providers = [f"| `{name}` | {meaning} |" for name, meaning in PROVIDER_VARIABLES.items()]
    return "\n".join(
        [
            "| environment variable | flag | default | meaning |",
            "|---|---|---|---|",
            *settings,
            "",
            "| providers' own variables | meaning |",
            "|---|---|",
            *providers,
            "",
        ]
    )


def _default(field: FieldInfo) -> str:
    if field.default_factory:
        return "`~/.local/state/vers-rlm-mcp`"
    default: object = field.default
    if isinstance(default, tuple):
        default = ",".join(map(str, cast("tuple[object, ...]", default))) or None
    return f"`{default}`" if default is not None else ""


def write_tables(path: Path) -> None:
    """Put the tables into a file, in place of what stands between the marks."""
    before, opening, rest = path.read_text().partition(MARKS[0])
    _, closing, after = rest.partition(MARKS[1])
    if not (opening and closing):
        sys.exit(f"{path} has no lines {' and '.join(map(repr, MARKS))}.")
    path.write_text(f"{before}{opening}\n{markdown()}\n{closing}{after}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write_tables(Path(sys.argv[1]))
    else:
        print(markdown(), end="")  # noqa: T201 - what it is run for
