"""Settings files: the user's, and one in the working directory that may set little.

A file is TOML, with settings by their names: ``max_usd = 2.0``. The user's own may set everything.
The one in the working directory comes with whatever was opened there, so it may only choose models
by name and lower limits: opening a repository must not run, reach or leak anything.
"""

from __future__ import annotations

import os
import stat
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PROJECT_FILE: Final = Path("vers-rlm-mcp.toml")

MOST_BYTES: Final = 64 * 1024
"""Size of a file that is still read: more than all settings take."""

PROJECT_MODELS: Final = ("model", "sub_model")
PROJECT_PROVIDERS: Final = ("anthropic:", "openai:")
"""Models that a project may name: a plain name of a provider whose key the user has set."""

PROJECT_LIMITS: Final = (
    "vcpu_count", "mem_size_mib", "fs_size_mib", "max_processes", "max_machines",
    "exec_timeout", "cell_timeout", "max_seconds", "max_tokens", "max_usd", "max_calls",
)  # fmt: skip
"""Limits that a project may lower."""


def user_file() -> Path:
    """The user's settings file, whether it exists or not."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path("~/.config").expanduser()) / "vers-rlm-mcp" / "config.toml"


def read_user_file(known: Iterable[str]) -> dict[str, Any]:
    """The settings in the user's file; none if there is no file.

    Raises:
        SettingsError: The file cannot be read, or names an unknown setting.
    """
    try:
        path = user_file()
    except RuntimeError:  # there is no home
        return {}
    return _read(path, known)


def read_project_file(known: Iterable[str], otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in the working directory's file.

    Args:
        known: The names of all settings.
        otherwise: What holds without the file; None for no limit.

    Raises:
        SettingsError: The file cannot be read, or sets what a project may not set.
    """
    path = Path.cwd() / PROJECT_FILE if PROJECT_FILE.exists() else PROJECT_FILE
    values = _read(path, known)
    for name, value in values.items():
        if name in PROJECT_MODELS:
            if not str(value).startswith(PROJECT_PROVIDERS):
                raise SettingsError(
                    f"{path} may not set {name} to {value!r}: a project may only name models of "
                    f"{' and '.join(PROJECT_PROVIDERS)}. Set it in {user_file()}."
                )
        elif name not in PROJECT_LIMITS:
            raise SettingsError(
                f"{path} may not set {name}: a project may only name models and lower limits "
                f"({', '.join((*PROJECT_MODELS, *PROJECT_LIMITS))}). Set it in {user_file()} or "
                "the environment."
            )
        elif _is_higher(value, otherwise.get(name)):
            raise SettingsError(
                f"{path} may not raise {name} from {otherwise[name]} to {value}: a project may "
                f"only lower limits. Raise it in {user_file()} or the environment."
            )
    return values


def suggest(name: str, known: Iterable[str]) -> str:
    """A remark on the known name that is meant, or an empty string."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _read(path: Path, known: Iterable[str]) -> dict[str, Any]:
    try:
        # Opening a FIFO that a hostile project holds would wait for a writer.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SettingsError(f"{path} is not a regular file; remove it.")
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise SettingsError(f"{path} is larger than {MOST_BYTES >> 10} KiB; shorten it.")
        values = tomllib.loads(text.decode())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}. Correct or remove it.") from None
    named = {name.replace("-", "_"): value for name, value in values.items()}
    names = list(known)
    for name in named.keys() - set(names):
        raise SettingsError(
            f"{path}: {name} is not a setting{suggest(name, names)}. "
            "`vers-rlm-mcp help settings` lists them."
        )
    return named


def _is_higher(value: object, otherwise: object) -> bool:
    """Whether a limit is higher than another; None is no limit. Other types are checked later."""
    try:
        return otherwise is not None and float(str(value)) > float(str(otherwise))
    except ValueError:
        return False
