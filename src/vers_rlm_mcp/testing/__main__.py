"""Run the contract checks on a backend from a terminal.

python -m vers_rlm_mcp.testing my_package.my_module:open_backend [CHECK ...]
"""

# ruff: noqa: T201 - printing is its output

from __future__ import annotations

import argparse
import pkgutil
import sys
from typing import TYPE_CHECKING
from unittest import SkipTest

import anyio

from vers_rlm_mcp.errors import VersRlmError

from . import CHECKS, CheckFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from . import Check, OpenBackend


async def run_checks(checks: Sequence[Check], open_backend: OpenBackend) -> int:
    """Run checks one after another, print what came of each, and return how many failed."""
    failures = 0
    for check in checks:
        try:
            await check(open_backend)
            print(f"passed   {check.name}")
        except SkipTest as reason:
            print(f"skipped  {check.name}: {reason}")
        except (CheckFailed, VersRlmError) as error:
            failures += 1
            print(f"FAILED   {check.name}: {check.promise} {error}")
    return failures


def main() -> int:
    """Entry point: 0 if no check failed."""
    parser = argparse.ArgumentParser("python -m vers_rlm_mcp.testing", description=__doc__)
    parser.add_argument("backend", help="MODULE:FUNCTION that returns a backend")
    by_name = {check.name: check for check in CHECKS}
    parser.add_argument("check", nargs="*", help="the checks to run; all by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.check) - by_name.keys():
        parser.error(f"no such check: {', '.join(sorted(unknown))}")
    checks = [by_name[name] for name in arguments.check] or CHECKS
    return 1 if anyio.run(run_checks, checks, pkgutil.resolve_name(arguments.backend)) else 0


if __name__ == "__main__":
    sys.exit(main())
