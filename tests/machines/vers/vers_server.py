"""A process that makes a machine and copies it, until it is killed.

python -m machines.vers.vers_server FACTS STATE restore|branch|kept
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio

from vers_emulator import config_from
from vers_rlm_mcp.machines import Fleet
from vers_rlm_mcp.machines.vers import VersBackend
from vers_rlm_mcp.store import Ledger


async def main(facts: str, state: str, how: str) -> None:
    async with VersBackend(config_from(json.loads(facts))) as backend:
        fleet = Fleet(backend, Ledger(Path(state)), max_machines=8)
        machine = await fleet.create(run="run", keep=how == "kept")
        commit = await fleet.snapshot(machine, run="run")
        print(machine.id, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        if how == "restore":
            await fleet.restore(commit.id, run="run")
        else:
            await fleet.branch(machine, 2, run="run")
    raise AssertionError("was to be killed before")


if __name__ == "__main__":
    _, given_facts, given_state, given_how = sys.argv
    anyio.run(main, given_facts, given_state, given_how)
