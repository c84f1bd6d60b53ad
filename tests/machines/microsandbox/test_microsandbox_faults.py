"""What the library raises comes out as an error of the project, with what to do next."""

from __future__ import annotations

from importlib import import_module

import pytest

from vers_rlm_mcp.errors import BackendUnavailable, MachineError, MachineFull
from vers_rlm_mcp.machines.microsandbox import faults


class LibraryError(Exception):
    code = "microsandbox-error"


def raised(code: str, words: str = "it went wrong") -> LibraryError:
    error = LibraryError(words)
    error.code = code
    return error


@pytest.mark.parametrize("code", [*faults.MEANS, "microsandbox-error", "new in 0.8"])
def test_every_code_says_what_was_tried_what_went_wrong_and_what_to_do(code: str) -> None:
    error = faults.meaning("branch machine X", raised(code))
    assert isinstance(error, faults.MEANS.get(code, (MachineError, ""))[0])
    words = str(error)
    assert words.startswith("Cannot branch machine X: it went wrong. ")
    assert words.endswith(".")


def test_what_is_gone_is_told_apart() -> None:
    gone = faults.meaning("look", raised("sandbox-not-found"))
    assert isinstance(gone, faults.NoSuchSandbox)


def test_a_full_host_is_a_limit_that_was_hit() -> None:
    error = raised("io-error", "write failed: No space left on device (os error 28)")
    assert isinstance(faults.meaning("snapshot", error), MachineFull)


def test_a_pull_that_fails_says_how_to_do_without_a_network() -> None:
    error = faults.meaning("pull image x", raised("image-pull-failed"))
    assert isinstance(error, BackendUnavailable)
    assert "docker save" in str(error)
    assert "VERS_RLM_IMAGE" in str(error)


def test_long_words_are_cut() -> None:
    assert len(str(faults.meaning("look", raised("io-error", "x" * 10_000)))) < 700


@pytest.mark.parametrize("kind", [OSError, ValueError, TypeError, LibraryError])
def test_nothing_that_bindings_raise_slips_through(kind: type[Exception]) -> None:
    wanted = pytest.raises(MachineError, match="Cannot do it: boom")
    with wanted, faults.translated("do it", LibraryError):
        raise kind("boom")


@pytest.mark.parametrize("kind", [ValueError, LibraryError])
def test_a_commit_that_is_gone_is_told_apart_whatever_raises_it(kind: type[Exception]) -> None:
    with pytest.raises(faults.NoSuchSnapshot), faults.translated("delete commit c", LibraryError):
        raise kind("snapshot not found: group:c")


def test_every_error_of_the_package_is_translated() -> None:
    pytest.importorskip("microsandbox.errors", reason="the extra microvm is not installed")
    errors = import_module("microsandbox.errors")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 20
    assert all(
        issubclass(kind, (errors.MicrosandboxError, str)) for kind in kinds if hasattr(kind, "code")
    )
