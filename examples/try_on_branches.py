"""Try two ways on two branches of one machine, and keep the better one."""

import anyio

from vers_rlm_mcp import VM, Machines

ATTEMPTS = [
    "gzip -k numbers.txt && stat -c %s numbers.txt.gz",
    "xz -k numbers.txt && stat -c %s numbers.txt.xz",
]


async def main() -> None:
    async with Machines() as machines:
        vm = await machines.create()
        await vm.exec("seq 200000 > numbers.txt")
        sizes: dict[str, int] = {}

        async def attempt(branch: VM, command: str) -> None:
            result = await branch.exec(command)
            if result.exit_code == 0:
                sizes[branch.id] = int(result.stdout)

        branches = await vm.branch(len(ATTEMPTS))
        async with anyio.create_task_group() as tasks:
            for branch, command in zip(branches, ATTEMPTS, strict=True):
                tasks.start_soon(attempt, branch, command)
        best = min(sizes, key=sizes.__getitem__)
        commit = await (await machines.attach(best)).snapshot()
        print(
            f"{sizes[best]} bytes is the smallest of {sorted(sizes.values())}; kept in {commit.id}"
        )


anyio.run(main)
