"""Random trees of conversations, with what must come of each, by a model that is plain dicts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

from family import Family
from lab import cell

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = "abcd"
OUTPUTS = "files: dict, marks: list, rank: int"
SIGNATURE = f"-> {OUTPUTS}"
MAX_DEPTH = 2
MOST_CHILDREN = 7
"""Of a whole tree: each is a machine and a kernel, which take their time."""
MOST_KILLS = 3
"""Of the run's own machine: as often as a run puts it back."""

LOOK = "{name: readFile(name) for name in exec('ls').stdout.split()}"
KILL = "import os; os.kill(os.getpid(), 9)"
DELETE = "import os; llmQuery(f'delete {currentVmId()} {os.urandom(4).hex()}')"
"""The end of the machine, as a sub-model that is asked anew each time brings it about."""
QUERY = """
try:
    rlmQuery({task!r}, outputs={outputs!r}, merge={merge!r})
except RuntimeError as error:
    print(error)
"""


@dataclass
class World:
    """What a conversation finds: files of its current machine, and variables it has made."""

    files: dict[str, str]
    marks: frozenset[str] = frozenset()
    commits: tuple[dict[str, str], ...] = ()
    moved: bool = False
    """Whether the current machine is another than that of its kernel."""

    def now(self) -> World:
        """As it is, whatever becomes of it."""
        return replace(self, files=dict(self.files))


@dataclass
class Garden:
    """A tree that grows as its seed wants it, and what has to come of its conversations."""

    seed: int
    replies: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    expected: dict[str, dict[str, Any] | None] = field(default_factory=dict[str, Any])
    """The outputs of each conversation, by its name; None for one that loses its machine."""

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self._children = 0
        self._kills = 0
        self._grow("own", World({}), 0)

    def model(self) -> Family:
        """Speaks for the whole tree."""
        others = {name: replies for name, replies in self.replies.items() if name != "own"}
        return Family(*self.replies["own"], **others)

    def _grow(self, name: str, world: World, depth: int) -> World | None:
        """Write a conversation, and return the world that it leaves, if it comes to its end."""
        self.replies[name], self.expected[name] = [], None
        for step in range(self.random.randint(1, 4 - depth)):
            before = world.now()
            code = [f"{name}_commits = globals().get('{name}_commits', [])"]
            for act in self.random.choices(self._acts(depth), k=self.random.randint(1, 3)):
                code += act(name, f"{name}_{step}", world, depth)
            after = self._end(code, world, before, depth)
            self.replies[name].append(cell("\n".join(code)))
            if after is None:
                return None
            world = after
        rank = len(self.replies)
        marks = f"sorted(name for name in globals() if name.startswith('{name}_mark'))"
        self.replies[name].append(cell(f"FINAL({LOOK}, {marks}, {rank})"))
        self.expected[name] = {"files": world.files, "marks": sorted(world.marks), "rank": rank}
        return world

    def _acts(self, depth: int) -> Sequence[Any]:
        acts = [self._write, self._write, self._mark, self._commit, self._restore]
        return [*acts, self._branch, self._query] if depth < MAX_DEPTH else acts

    def _end(self, code: list[str], world: World, before: World, depth: int) -> World | None:
        """How a cell ends: mostly well."""
        fate = self.random.random()
        if fate < 0.15:
            code.append("1/0")
        elif fate < 0.3 and self._may_kill(depth):
            code.append(KILL)
            # A run's own machine is put back; in another, the kernel is started anew.
            return before if depth == 0 else replace(world, marks=frozenset(), commits=())
        elif fate < 0.37 and not world.moved and self._may_kill(depth):
            code.append(DELETE)
            return before if depth == 0 else None
        return world

    def _may_kill(self, depth: int) -> bool:
        self._kills += depth == 0
        return depth > 0 or self._kills <= MOST_KILLS

    def _write(self, name: str, place: str, world: World, depth: int) -> list[str]:
        file, text = self.random.choice(NAMES), f"{place} {self.random.random()}"
        world.files[file] = text
        return [f"writeFile({file!r}, {text!r})"]

    def _mark(self, name: str, place: str, world: World, depth: int) -> list[str]:
        mark = f"{name}_mark_{self.random.randrange(100)}"
        world.marks |= {mark}
        return [f"{mark} = 1"]

    def _commit(self, name: str, place: str, world: World, depth: int) -> list[str]:
        world.commits += (dict(world.files),)
        return [f"{name}_commits.append(vmSnapshot())"]

    def _restore(self, name: str, place: str, world: World, depth: int) -> list[str]:
        if not world.commits:
            return []
        which = self.random.randrange(len(world.commits))
        world.files, world.moved = dict(world.commits[which]), True
        return [f"restored = vmRestore({name}_commits[{which}])"]

    def _branch(self, name: str, place: str, world: World, depth: int) -> list[str]:
        names = self._children_of(self.random.randint(2, 3))
        if not names:
            return []
        worlds = [self._grow(each, World(dict(world.files)), depth + 1) for each in names]
        if right := [place for place, left in enumerate(worlds) if left is not None]:
            best = max(right, key=lambda place: (self.expected[names[place]] or {})["rank"])
            left = worlds[best]
            assert left
            world.files, world.moved = dict(left.files), True
        plans = [f"like {each}." for each in names]
        return [f"results = branches({plans!r}, outputs={OUTPUTS!r}, score='rank')"]

    def _query(self, name: str, place: str, world: World, depth: int) -> list[str]:
        for child in self._children_of(1):
            left = self._grow(child, World(dict(world.files)), depth + 1)
            there = left.files if left else {}
            # A path that neither has is refused, and nothing is merged.
            known = sorted({*world.files, *there})
            merge = self.random.sample(known, min(len(known), self.random.randint(0, 2)))
            for file in merge if left else ():
                world.files.pop(file, None)
            world.files |= {file: text for file, text in there.items() if file in merge}
            return [QUERY.format(task=f"Do it like {child}.", outputs=OUTPUTS, merge=merge)]
        return []

    def _children_of(self, count: int) -> list[str]:
        """Names for children, if there may be so many more."""
        if self._children + count > MOST_CHILDREN:
            return []
        self._children += count
        return [f"c{self._children - number}" for number in range(count)]
