"""What the project ships besides the package: it must fit the package, and itself."""

from __future__ import annotations

import ast
import base64
import json
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from vers_rlm_mcp import __version__
from vers_rlm_mcp.settings import PREFIX, PROVIDER_VARIABLES, Settings

ROOT = Path(__file__).parents[2]

MANIFEST: dict[str, Any] = json.loads((ROOT / "packaging/manifest.json").read_text())

SERVER: dict[str, Any] = json.loads((ROOT / "packaging/server.json").read_text())

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

VARIABLES = {*PROVIDER_VARIABLES, *(PREFIX + name.upper() for name in Settings.model_fields)}


def test_the_bundle_the_registry_and_the_changelog_name_this_version():
    (package,) = SERVER["packages"]
    assert MANIFEST["version"] == SERVER["version"] == package["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_bundle_asks_for_what_it_passes_on_and_keeps_keys_secret():
    passed = MANIFEST["server"]["mcp_config"]["env"]
    assert passed.keys() <= VARIABLES
    assert set(passed.values()) == {f"${{user_config.{name}}}" for name in MANIFEST["user_config"]}
    for name, option in MANIFEST["user_config"].items():
        assert option["default"] == "", name
        assert option.get("sensitive", False) == name.endswith("_key")
    assert (ROOT / MANIFEST["server"]["entry_point"]).is_file()
    assert (ROOT / "packaging" / MANIFEST["icon"]).read_bytes().startswith(b"\x89PNG")


def test_an_option_left_empty_in_the_bundle_is_as_if_it_were_not_there(
    monkeypatch: pytest.MonkeyPatch,
):
    for name in MANIFEST["server"]["mcp_config"]["env"]:
        monkeypatch.setenv(name, "")
    assert Settings.model_validate({}).model_fields_set == set()


def test_the_registrys_entry_keeps_to_its_rules():
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", SERVER["name"])
    assert len(SERVER["description"]) <= 100
    (package,) = SERVER["packages"]
    for variable in package["environmentVariables"]:
        assert variable["name"] in VARIABLES
        assert variable.get("isSecret", False) == variable["name"].endswith("_KEY")
    assert f"<!-- mcp-name: {SERVER['name']} -->" in (ROOT / "README.md").read_text()


def test_both_examples_start_the_same_server():
    usual = json.loads((ROOT / "mcp.json.example").read_text())["mcpServers"]["vers-rlm"]
    code = json.loads((ROOT / "mcp.vscode.json.example").read_text())
    assert code["servers"]["vers-rlm"]["type"] == "stdio"
    for key in ("command", "args"):
        assert code["servers"]["vers-rlm"][key] == usual[key]
    assert usual["env"].keys() == code["servers"]["vers-rlm"]["env"].keys() <= VARIABLES
    (asked,) = code["inputs"]
    assert f"${{input:{asked['id']}}}" in code["servers"]["vers-rlm"]["env"].values()


@pytest.mark.parametrize("path", ["package-lock.json", "tests/audit/package-lock.json"])
def test_a_lock_file_names_digests_and_no_download_addresses(path: str):
    packages: dict[str, dict[str, Any]] = json.loads((ROOT / path).read_text())["packages"]
    del packages[""]
    assert packages
    for name, package in packages.items():
        assert "resolved" not in package, name
        assert package["integrity"].startswith("sha512-"), name


def test_every_test_that_security_claims_are_backed_by_exists():
    text = (ROOT / "SECURITY.md").read_text()
    names = set(re.findall(r"`((?:tests/|attacks/|test_)[\w/]+\.py)`", text))
    assert len(names) > 15
    for name in names:
        folder = ROOT if name.startswith("tests/") else ROOT / "tests/machines/escapes"
        assert (folder / name).is_file(), name


def links(host: str) -> list[dict[str, list[str]]]:
    found: list[str] = [
        link
        for page in PAGES
        for link in re.findall(r"\]\((https://[^)]+)\)", page.read_text())
        if link.startswith(f"https://{host}/")
    ]
    return [parse_qs(urlsplit(link).query) for link in found]


def test_links_to_install_it_hold_the_command_of_the_examples():
    usual = json.loads((ROOT / "mcp.json.example").read_text())["mcpServers"]["vers-rlm"]
    cursor, code = links("cursor.com"), links("insiders.vscode.dev")
    assert len(cursor) == len(code) == 2
    configs = [json.loads(base64.b64decode(link["config"][0])) for link in cursor]
    configs += [json.loads(link["config"][0]) for link in code]
    for config in configs:
        assert config == {key: usual[key] for key in ("command", "args")}
    assert {link["name"][0] for link in (*cursor, *code)} == {"vers-rlm"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_guide_says_can_be_read(page: Path):
    text = page.read_text()
    for language, block in re.findall(r"```(json|toml|python)\n(.*?)```", text, re.DOTALL):
        match language:
            case "json":
                json.loads(block)
            case "toml":
                tomllib.loads(block)
            case _:
                compile(block, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(rf"\b{PREFIX}[A-Z_]+\b", text):
        assert name in VARIABLES
