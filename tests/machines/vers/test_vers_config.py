"""Where the service is and which key is taken, in all the spellings of its own tools."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.errors import SettingsError
from vers_rlm_mcp.machines.vers import Key, VersConfig, find_key, find_url

if TYPE_CHECKING:
    from pathlib import Path

KEY = "12345678-1234-4234-8234-123456789abc" + "0123456789abcdef" * 4
SOURCES = {
    ".vers/keys.json": json.dumps({"keys": {"VERS_API_KEY": "from-keys"}}),
    ".vers/config.json": json.dumps({"versApiKey": "from-config"}),
    ".versrc": "from-versrc\n",
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a key in every file."""
    (tmp_path / ".vers").mkdir()
    for name, text in SOURCES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_first_source_that_has_a_key_wins(home: Path) -> None:
    assert find_key({"VERS_API_KEY": f" {KEY}\n"}, home) == Key(KEY, "VERS_API_KEY")
    found: list[str] = []
    for name in SOURCES:
        key = find_key({"VERS_API_KEY": ""}, home)
        assert key is not None
        assert key.source == f"~/{name}"
        found.append(key.value)
        (home / name).unlink()
    assert found == ["from-keys", "from-config", "from-versrc"]
    assert find_key({}, home) is None


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        (".vers/config.json", '{"api_key": "k"}', "k"),
        (".versrc", '{"apiKey": "k"}', "k"),
        (".versrc", " k \n", "k"),
        (".versrc", "", None),
        (".versrc", "{broken", None),
        (".versrc", '{"apiKey": 5}', None),
        (".vers/keys.json", "[]", None),
        (".vers/keys.json", '{"keys": null}', None),
        (".vers/keys.json", "\x00", None),
    ],
)
def test_a_file_is_read_as_its_tool_writes_it_or_passed_over(
    tmp_path: Path, name: str, text: str, wanted: str | None
) -> None:
    (tmp_path / ".vers").mkdir()
    (tmp_path / name).write_text(text)
    key = find_key({}, tmp_path)
    assert (key and key.value) == wanted


@pytest.mark.parametrize("end", ["", "/", "/api/v1", "/api/v1/"])
@pytest.mark.parametrize("variable", ["VERS_BASE_URL", "VERS_URL"])
def test_the_address_may_be_written_with_and_without_the_path_of_the_api(
    variable: str, end: str
) -> None:
    config = VersConfig(Key(KEY, "here"), url=find_url({variable: f"https://api.example.org{end}"}))
    assert config.api_url == "https://api.example.org/api/v1"
    assert config.url == "https://api.example.org"


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://api.vers.sh", "vm.vers.sh"),
        ("https://api.staging.example.org:8443", "vm.staging.example.org"),
        ("https://vers.example.org", "vm.vers.sh"),
        ("http://127.0.0.1:5000", "vm.vers.sh"),
    ],
)
def test_the_domain_of_machines_follows_that_of_the_service(url: str, domain: str) -> None:
    assert VersConfig(Key(KEY, "here"), url=url).domain == domain
    assert VersConfig(Key(KEY, "here"), url=url, ssh_domain="vm.other").domain == "vm.other"


@pytest.mark.parametrize(
    ("address", "dialled"),
    [
        (None, ("ID.vm.vers.sh", 443)),
        ("relay", ("relay", 443)),
        ("relay:8443", ("relay", 8443)),
        ("[::1]:8443", ("::1", 8443)),
    ],
)
def test_another_address_may_be_dialled_for_the_same_name(
    address: str | None, dialled: tuple[str, int]
) -> None:
    config = VersConfig(Key(KEY, "here"), ssh_address=address)
    assert config.ssh_target("ID") == (*dialled, "ID.vm.vers.sh")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"url": "vers.sh"}, "VERS_BASE_URL"),
        ({"url": "ftp://vers.sh"}, "VERS_BASE_URL"),
        ({"url": "https://[::1"}, "VERS_BASE_URL"),
        ({"url": "https://user:secret-word@vers.sh"}, "no user, password or query"),
        ({"ssh_address": "host:port"}, "HOST:PORT"),
        ({"key": Key("secret-word\x07", "VERS_API_KEY")}, "VERS_API_KEY"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_and_no_secret_is_shown(
    wrong: dict[str, object], said: str
) -> None:
    values: dict[str, object] = {"key": Key(KEY, "here"), **wrong}
    with pytest.raises(SettingsError, match=said) as caught:
        VersConfig(**values)  # pyright: ignore[reportArgumentType] - one of them at a time
    assert "secret-word" not in str(caught.value)


def test_a_missing_file_of_authorities_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        VersConfig(Key(KEY, "here"), ca_file=tmp_path / "nowhere")


def test_the_key_is_in_no_representation() -> None:
    config = VersConfig(Key(KEY, "here"))
    assert KEY not in f"{config!r} {config} {config.key!r}"
