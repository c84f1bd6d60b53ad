"""Every setting: its name, meaning, default and environment variable.

A setting is taken from its command-line flag, else from the environment, else from the settings
file of the working directory or the user (see `settings_files`), else from its default.
Providers' keys are not settings: each stays in the environment until the code that needs it reads
it.

The tables in the README are generated from this module: `python -m vers_rlm_mcp.settings` prints
them, and `python -m vers_rlm_mcp.settings FILE` writes them between the marks in a file.
"""

from __future__ import annotations

import json
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

from .errors import SettingsError
from .settings_files import PROJECT_FILE, read_project_file, read_user_file, suggest, user_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo


PREFIX = "VERS_RLM_"
"""Prefix of the settings' environment variables."""

TEST_PREFIX = f"{PREFIX}TEST_"
"""Prefix of variables that only the tests read."""

PROVIDER_VARIABLES = {
    "VERS_API_KEY": "Key for Vers machines. If unset, it is read from Vers's own tools' files.",
    "VERS_BASE_URL": "Address of the Vers service. `VERS_URL` is a synonym.",
    "ANTHROPIC_API_KEY": "Key for `anthropic:` models.",
    "ANTHROPIC_BASE_URL": "Address to use instead of Anthropic's, for example a proxy's.",
    "OPENAI_API_KEY": "Key for `openai:` models.",
    "OPENAI_BASE_URL": "Address of an OpenAI-compatible server, which may need no key.",
}
"""Environment variables that keep the names their providers gave them."""

SEPARATORS = {
    "allow_dir": os.pathsep,
    "token": ",",
    "allowed_hosts": ",",
    "network_domains": ",",
    "allowed_origins": ",",
    "toolsets": ",",
}
"""Settings with several values, and the separator between them in the environment."""

MODEL_FIELDS = frozenset({"messages", "model", "stream", "stream_options", "system"})
"""Fields of requests to models that are not the user's to set."""

MARKS = ("<!-- settings -->\n", "<!-- /settings -->\n")
"""Lines that enclose the tables in the README."""

BACKENDS = {
    "vers": "VMs of a paid service",
    "microsandbox": "micro-VMs on this computer",
    "bubblewrap": "namespaces on this computer",
}
"""Backends and what they provide, in the order in which ``auto`` tries them. Each is a package in
`machines`."""

if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal[("auto", *BACKENDS)]


def default_state_dir() -> Path:
    """The user's XDG state directory for this program. Raises `SettingsError` without a home."""
    if base := os.environ.get("XDG_STATE_HOME"):
        return Path(base) / "vers-rlm-mcp"
    try:
        return Path.home() / ".local" / "state" / "vers-rlm-mcp"
    except RuntimeError:
        raise SettingsError(
            f"There is no place for the state: HOME is not set, and user {os.getuid()} has no "
            "account. Set VERS_RLM_STATE_DIR to a directory that you may write to."
        ) from None


def _described(choices: Mapping[str, str]) -> str:
    return ", ".join(f"`{name}` ({what})" for name, what in choices.items())


class Settings(BaseModel):
    """The settings of the server and the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    backend: BackendName = Field(
        default="auto",
        description=f"Backend that provides machines: {_described(BACKENDS)}. `auto` selects Vers "
        "if there is a key for it, else microsandbox if it is installed and can boot a machine, "
        "else bubblewrap.",
    )
    model: str | None = Field(
        default=None,
        description="Model that writes the code, as `provider:model`: `anthropic:…`, `openai:…` "
        "(any OpenAI-compatible endpoint), `scripted:PATH` or `sampling`. By default, the default "
        "model of the provider whose key is set.",
    )
    sub_model: str | None = Field(
        default=None, description="Model that answers `llmQuery`. By default, the same as `model`."
    )
    state_dir: Path = Field(
        default_factory=default_state_dir,
        description="Directory for everything durable: machines, commits, runs and the ledger. By "
        "default, it is in `$XDG_STATE_HOME` if that is set.",
    )
    allow_dir: tuple[Path, ...] = Field(
        default=(),
        description="Host directories whose files may be copied into a run's machine. Separated "
        "by `:` in the environment.",
    )
    network: Literal["off", "on", "host"] = Field(
        default="off",
        description="Network of machines on this computer: `off`; `on` (isolated: through pasta "
        "or slirp4netns for bubblewrap, limited to public addresses for microsandbox); `host` "
        "(the host's own network, including its local services).",
    )
    network_domains: tuple[str, ...] = Field(
        default=(),
        description="The only domains that microsandbox machines may reach if the network is "
        "`on`. Separated by `,` in the environment.",
    )
    image: str = Field(
        default="python:3.12-slim",
        description="Image that microsandbox machines start from: an OCI image with `python3`, "
        "fetched on first use, or the path of a docker-archive.",
    )
    base: Path | None = Field(
        default=None,
        description="Root file system that bubblewrap machines start from: a directory or a "
        "docker-archive. By default, a selection of the host's own system directories.",
    )
    vers_ssh_domain: str | None = Field(
        default=None,
        description="Domain of the host names of Vers machines. By default, `vm.X` for a service "
        "at `api.X`.",
    )
    vers_ssh_address: str | None = Field(
        default=None,
        description="`HOST:PORT` to connect to for every Vers machine, instead of port 443 of its "
        "own host name: for an emulator or a relay.",
    )
    vers_ca_file: Path | None = Field(
        default=None,
        description="Certificate authorities to trust for Vers instead of the system's.",
    )
    vers_insecure: bool = Field(
        default=False,
        description="Accept any certificate and SSH host key from Vers. For testing only.",
    )
    vers_fidelity: Literal["memory", "disk"] = Field(
        default="memory",
        description="What copies of Vers machines preserve. An emulator may preserve only the "
        "`disk`.",
    )
    vcpu_count: int = Field(default=2, ge=1, description="Processors per machine.")
    mem_size_mib: int = Field(default=2048, ge=128, description="Memory per machine, in MiB.")
    fs_size_mib: int = Field(
        default=8192, ge=64, description="Disk space that a machine may write, in MiB."
    )
    max_processes: int = Field(default=512, ge=16, description="Processes and threads per machine.")
    max_machine_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Seconds after which a microsandbox machine is ended, even if in use.",
    )
    max_machines: int = Field(default=16, ge=1, description="Machines alive at once, per client.")
    exec_timeout: float = Field(default=120, gt=0, description="Seconds a command may take.")
    cell_timeout: float = Field(default=300, gt=0, description="Seconds a cell may take.")
    checkpoints: Literal["off", "change", "step", "destructive"] = Field(
        default="change",
        description="When a run commits its machine, so that it can be resumed from there: after "
        "each `step`; after a step that may have made a `change`, as long as checkpoints take no "
        "more than a tenth of the run's time; before code that looks `destructive`; or never "
        "(`off`).",
    )
    max_recoveries: int = Field(
        default=3,
        ge=0,
        description="How often a run may restore a machine that it broke from a checkpoint.",
    )
    repeats_told: int = Field(
        default=3,
        ge=0,
        description="After how many equal failures in a row a model is told to take another way; "
        "0 for never.",
    )
    repeats_ended: int = Field(
        default=5,
        ge=0,
        description="After how many equal failures in a row a run stops and extracts its outputs; "
        "0 for never.",
    )
    max_record_mib: int = Field(
        default=1024,
        ge=1,
        description="Disk space for records of runs, in MiB, per client. The oldest are deleted "
        "first.",
    )
    max_seconds: float = Field(default=1800, gt=0, description="Seconds a run may take.")
    max_tokens: int | None = Field(default=None, gt=0, description="Tokens a run may use.")
    max_reply_tokens: int = Field(
        default=32_000,
        gt=0,
        description="Tokens of one reply of `model`, thoughts included. A smaller remainder of "
        "`max_tokens` is the limit instead.",
    )
    max_sub_reply_tokens: int | None = Field(
        default=None,
        gt=0,
        description="The same for `sub_model`. By default, as for `model`.",
    )
    model_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of requests to `model`, as JSON: "
        '`{"temperature": 0.6, "top_p": 0.95}`.',
    )
    sub_model_options: dict[str, Any] = Field(
        default_factory=dict, description="The same for `sub_model`."
    )
    max_model_calls: int = Field(
        default=32,
        ge=1,
        description="Requests to one model at once. It is halved when the provider is overloaded, "
        "and recovers. A server that answers one request at a time needs `1`.",
    )
    max_usd: float | None = Field(default=None, gt=0, description="Money a run may spend, in USD.")
    confirm_usd: float | None = Field(
        default=None,
        ge=0,
        description="Budget in USD above which the user is asked to confirm a run, if the client "
        "supports asking. By default, no confirmation is requested.",
    )
    token: tuple[str, ...] = Field(
        default=(),
        repr=False,
        description="Bearer tokens of HTTP clients, each with its own machines and runs. "
        "Separated by `,` in the environment.",
    )
    token_file: Path | None = Field(
        default=None, description="File with further bearer tokens, one per line."
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(),
        description="`Host` headers to accept over HTTP in addition to this computer's own, as "
        "`NAME` (with a default port or none), `NAME:PORT` or `NAME:*`. Separated by `,` in the "
        "environment.",
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(),
        description="`Origin` headers to accept over HTTP in addition to this computer's own, as "
        "`https://NAME` or `https://NAME:PORT`. Pages from there can use the server in a browser. "
        "Separated by `,` in the environment.",
    )
    toolsets: tuple[Literal["vm", "rlm"], ...] = Field(
        default=("vm", "rlm"),
        description="Tools to offer: those for machines (`vm`), those for runs (`rlm`), or both. "
        "Separated by `,`.",
    )
    always_load: bool = Field(
        default=False,
        description="Tell clients that defer tools behind a search (Claude Code) to load the most "
        "important ones at once.",
    )
    read_only: bool = Field(
        default=False, description="Offer only tools that create, change and delete nothing."
    )
    max_calls: int = Field(
        default=32, ge=1, description="Concurrent calls, and concurrent runs, per client."
    )
    wait_seconds: float | None = Field(
        default=None,
        ge=0,
        description="Seconds after which a call that waits for a run answers that the run is "
        "still in progress. By default 50, or more for clients known to wait longer.",
    )
    answer_chars: int | None = Field(
        default=None,
        ge=4_000,
        description="Characters of an answer, beyond which it is cut and the rest becomes a "
        "resource. By default what the client is known to show, else 40000.",
    )
    max_requests: float = Field(
        default=50, gt=0, description="HTTP requests per second, per client."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log format: text for people, or one line of JSON per record."
    )
    log_file: Path | None = Field(
        default=None, description="File to append the log to, instead of standard error."
    )

    @model_validator(mode="before")
    @classmethod
    def _add_environment_and_files(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Fill in missing settings from the other sources."""
        return {name: value for name, (value, _) in find_settings(given).items()}

    @field_validator("state_dir", "base", "token_file", "log_file", "vers_ca_file", mode="before")
    @classmethod
    def _expand_path(cls, value: object) -> object:
        return expand(value) if isinstance(value, str) else value

    @field_validator("allow_dir", mode="after")
    @classmethod
    def _expand_paths(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(Path(expand(str(path))) for path in value)

    @field_validator(*SEPARATORS, mode="before")
    @classmethod
    def _split(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            parts = value.split(SEPARATORS[str(info.field_name)])
            return tuple(part.strip() for part in parts if part.strip())
        return value

    @field_validator("model_options", "sub_model_options", mode="before")
    @classmethod
    def _read_options(cls, value: object) -> object:
        options: object = json.loads(value) if isinstance(value, str) else value
        if not isinstance(options, dict):
            return options
        named = cast("dict[str, object]", options)
        if ours := MODEL_FIELDS & named.keys():
            raise ValueError(f"{', '.join(sorted(ours))} cannot be set here")
        return named

    def environment(self) -> dict[str, str]:
        """Environment variables that give a child process the same settings."""
        values = {name: getattr(self, name) for name in self.model_fields_set}
        for name in values.keys() & SEPARATORS.keys():
            values[name] = SEPARATORS[name].join(map(str, values[name]))
        for name in values.keys() & {"model_options", "sub_model_options"}:
            values[name] = json.dumps(values[name])
        return {variable(name): str(value) for name, value in values.items() if value is not None}


def find_settings(given: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """The value of each setting that is not left to its default, and where it comes from.

    Args:
        given: Settings from command-line flags or keywords, which win.

    Raises:
        SettingsError: A settings file is invalid.
    """
    known = list(Settings.model_fields)
    found: dict[str, tuple[Any, str]] = {
        name: (value, str(user_file())) for name, value in read_user_file(known).items()
    }
    # An empty variable counts as unset.
    variables = {
        name: (value, variable(name)) for name in known if (value := os.environ.get(variable(name)))
    }
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    values = {name: value for name, (value, _) in (found | variables).items()}
    for name, value in read_project_file(known, defaults | values).items():
        found[name] = (value, str(PROJECT_FILE))
    return found | variables | {name: (value, "given") for name, value in given.items()}


def unknown_variables() -> Mapping[str, str]:
    """Environment variables with the settings' prefix that are none, with a suggestion each."""
    known = [variable(name) for name in Settings.model_fields]
    return {
        name: suggest(name, known)
        for name in sorted(os.environ)
        if name.startswith(PREFIX) and not name.startswith(TEST_PREFIX) and name not in known
    }


def expand(path: str) -> str:
    """A path with ``~`` and variables expanded."""
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 - a missing home is no error


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
    """Replace what is between the marks in a file by the tables."""
    before, opening, rest = path.read_text().partition(MARKS[0])
    _, closing, after = rest.partition(MARKS[1])
    if not (opening and closing):
        sys.exit(f"{path} has no lines {' and '.join(map(repr, MARKS))}.")
    path.write_text(f"{before}{opening}\n{markdown()}\n{closing}{after}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write_tables(Path(sys.argv[1]))
    else:
        print(markdown(), end="")  # noqa: T201 - its output
