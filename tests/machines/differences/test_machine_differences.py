"""What two machines are said to differ in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import pytest
from trees import done, sh

from assumptions import needs_root
from vers_rlm_mcp.errors import PathRefused
from vers_rlm_mcp.machines import run_command
from vers_rlm_mcp.machines.differences import diff

if TYPE_CHECKING:
    from trees import Pair

    from vers_rlm_mcp.machines.differences import Difference


async def found(pair: Pair, old: str = "", new: str = "") -> Difference:
    """What two scripts, one in each machine, make different in the working directory."""
    first, second = pair
    await sh(first, f":\n{old}")
    await sh(second, f":\n{new}")
    return await diff(first, second, roots=["/workspace"])


async def test_a_machine_and_its_copy_are_the_same(pair: Pair) -> None:
    roots = ["/etc", "/opt", "/root", "/tmp", "/var", "/workspace"]  # all but /usr, which is large
    difference = await diff(*pair, roots=roots)
    assert difference.files == difference.facts == ()
    assert difference.text.startswith("Files: no difference\n")


async def test_each_way_in_which_a_path_can_differ_is_told(pair: Pair) -> None:
    both = "mkdir d; echo one > text; echo x > mode; ln -s a link; echo f > kind; "
    difference = await found(
        pair,
        both + "echo gone > gone; head -c 3000 /dev/zero > bytes",
        both + "echo two >> text; chmod 600 mode; ln -sfn b link; rm kind; mkfifo kind; chmod 700 d"
        "; head -c 3000 /dev/zero | tr '\\0' x > bytes; echo new > new",
    )
    assert difference.text.startswith(
        """\
Files: 1 added, 1 removed, 6 changed
~ /workspace/bytes (content)
~ /workspace/d (mode 0755 → 0700)
- /workspace/gone (5 bytes)
~ /workspace/kind (file → fifo)
~ /workspace/link (a → b)
~ /workspace/mode (mode 0644 → 0600)
+ /workspace/new (4 bytes)
~ /workspace/text (4 bytes → 8 bytes)

"""
    )
    assert difference.text.endswith("--- /workspace/text\n@@ -1,2 +1,3 @@\n one\n+two")


@needs_root
async def test_another_owner_is_told(pair: Pair) -> None:
    difference = await found(
        pair, "echo > f; chown 5:6 f", "echo > f; chmod 600 f; chown 7 f; echo > g"
    )
    assert "~ /workspace/f (mode 0644 → 0600, owner 5:6 → 7:0)\n" in difference.text


async def test_a_file_that_is_only_younger_is_no_difference(pair: Pair) -> None:
    script = "echo same > file; ln -s x link; mkdir d; mkfifo f"
    assert (await found(pair, script, f"{script}; touch -d 2001-01-01 file d f")).files == ()


async def test_files_written_in_the_same_tick_are_told_apart(pair: Pair) -> None:
    lately = "touch -d '1 hour ago 12:00' file; stat -c %Y file"
    difference = await found(pair, f"echo one > file; {lately}", f"echo two > file; {lately}")
    assert [change.content for change in difference.files] == [True]


async def test_a_directory_that_came_is_told_with_few_entries_and_summed_up_with_many(
    pair: Pair,
) -> None:
    script = "mkdir -p few many/deep; touch few/a few/b; seq 30 | sed s:^:many/deep/: | xargs touch"
    difference = await found(pair, "echo > many", f"rm -f many; {script}")
    assert [change.text for change in difference.files] == [
        "+ /workspace/few/",
        "+ /workspace/few/a (0 bytes)",
        "+ /workspace/few/b (0 bytes)",
        "~ /workspace/many (file → directory with 31 entries)",
    ]
    assert difference.counts["added"] == 3
    assert difference.counts["changed"] == 32
    again = await diff(pair[1], pair[0], roots=["/workspace/many"])
    assert [change.text for change in again.files] == [
        "~ /workspace/many (directory → file with 31 entries)"
    ]


async def test_names_that_are_not_text_are_told_apart_and_shown_on_one_line(pair: Pair) -> None:
    names = [b"a\nb", b"\xff", b"\x1b[31m", "\uffff".encode(), "\U00010000".encode(), b"0" * 255]
    for name in names:
        for machine, content in zip(
            pair, (b"same", b"same" if name == b"\xff" else b"x"), strict=True
        ):
            await machine.write(f"/workspace/{os.fsdecode(name)}", content)
    difference = await found(pair)
    assert [
        change.text.partition(" (")[0].partition("workspace/")[2] for change in difference.files
    ] == [
        r"\x1b[31m",
        "0" * 255,
        r"a\nb",
        r"\uffff",
        r"\U00010000" if not "\U00010000".isprintable() else "\U00010000",
    ]
    await sh(pair[0], r"rm $(printf '\377')")
    assert (await found(pair)).files[-1].text == r"+ /workspace/\udcff (4 bytes)"


async def test_more_changes_than_wanted_are_counted(pair: Pair) -> None:
    await sh(pair[1], "for i in $(seq 2000); do echo $i > f$i; done")
    difference = await diff(*pair, roots=["/workspace"], max_entries=10)
    assert len(difference.files) == 10
    assert difference.counts["added"] == 2000
    assert "… and 1,990 more" in difference.text


async def test_lines_that_differ_are_told_as_far_as_there_is_room(pair: Pair) -> None:
    lines = "for f in a b c; do seq {} > $f; done"
    await sh(pair[0], lines.format("1 900"))
    await sh(pair[1], lines.format("2 901"))
    difference = await diff(*pair, roots=["/workspace"], max_diff_chars=60)
    diffs = [change.diff for change in difference.files]
    assert diffs[0].startswith("@@ -1,4 +1,3 @@\n-1\n 2\n")
    assert "more lines" in diffs[0]
    assert diffs[1:] == ["", ""]


async def test_control_characters_of_a_file_do_not_reach_readers_of_the_lines(
    pair: Pair,
) -> None:
    difference = await found(pair, "echo > f", r"printf '\033[2J\tx\n' > f")
    assert "+\\x1b[2J\tx\n" in difference.files[0].diff


async def test_what_is_no_file_is_not_opened(pair: Pair) -> None:
    script = (
        "import os, socket; os.mkfifo('fifo'); s = socket.socket(socket.AF_UNIX); s.bind('sock')"
    )
    for machine in pair:
        await done(machine, "python3", "-c", script)
    difference = await found(pair, "touch -d 2001-01-01 fifo sock", "chmod 600 fifo")
    assert [change.path for change in difference.files] == ["/workspace/fifo"]


async def test_holes_take_no_time(pair: Pair) -> None:
    write = "printf {} | dd of=big bs=1 seek=2G conv=notrunc status=none; touch big"
    make = f"truncate -s 7G big; {write.format('x')}"
    with anyio.fail_after(5):
        assert (await found(pair, make, make)).files == ()
        difference = await found(pair, "", write.format("y"))
    assert [change.text for change in difference.files] == ["~ /workspace/big (content)"]


async def test_what_cannot_be_looked_at_is_named_and_not_called_different(pair: Pair) -> None:
    deep = "import os\nfor _ in range(40): os.mkdir('x' * 200); os.chdir('x' * 200)"
    await done(pair[1], "python3", "-c", deep)
    await done(pair[0], "python3", "-c", f"{deep}\nopen('y', 'w')")
    difference = await found(pair)
    assert difference.files == ()
    (path,) = difference.unread
    assert len(path) > 4096
    assert f"Cannot be read: {path}" in difference.text


async def test_packages_and_processes_are_compared(pair: Pair) -> None:
    first, second = pair
    status = "Package: {}\nStatus: install ok installed\nVersion: {}\n\n"
    for machine, packages in ((first, ["a 1", "b 1"]), (second, ["b 2", "c 1"])):
        text = "".join(status.format(*package.split()) for package in packages)
        await machine.write("/var/lib/dpkg/status", text.encode())
    await sh(first, "mkdir -p lib/x-1.0.dist-info lib/y-1.dist-info; sleep 1001 & sleep 1002 &")
    await sh(
        second,
        "mkdir -p lib/x-1.1.dist-info lib/z-2.0-py3.11.egg-info; sleep 1001 & "
        "sh -c 'true & exec sleep 1001' &",  # which never asks what became of `true`
    )
    difference = await diff(first, second, roots=["/workspace/lib"])
    assert [(fact.kind, fact.text) for fact in difference.facts] == [
        ("debian", "- a 1"),
        ("debian", "~ b: 1 → 2"),
        ("debian", "+ c 1"),
        ("process", "~ sleep 1001: 1 → 2"),
        ("process", "- sleep 1002"),
        ("python", "~ x in /workspace/lib: 1.0 → 1.1"),
        ("python", "- y in /workspace/lib 1"),
        ("python", "+ z in /workspace/lib 2.0"),
    ]


async def test_caches_and_what_is_the_kernels_or_ours_are_left_out_and_named(pair: Pair) -> None:
    difference = await found(
        pair,
        "",
        "mkdir -p p/__pycache__ .vers-rlm; touch p/__pycache__/x .vers-rlm/variables",
    )
    assert [change.path for change in difference.files] == ["/workspace/p"]
    assert "__pycache__" in difference.text


async def test_roots_within_others_are_looked_at_once(pair: Pair) -> None:
    await sh(pair[1], "mkdir -p p/q")
    difference = await diff(*pair, roots=["/workspace/p", "/workspace", "//workspace/p/../p"])
    assert [change.path for change in difference.files] == ["/workspace/p", "/workspace/p/q"]


async def test_a_file_that_grows_all_the_time_is_read_only_so_far(pair: Pair) -> None:
    _, second = pair
    await found(
        pair, "seq 100000 > log", "seq 100000 > log; (while :; do echo more; done >> log) &"
    )
    difference = await diff(*pair, roots=["/workspace"])
    assert [change.path for change in difference.files] == ["/workspace/log"]
    await run_command(second, ["pkill", "-f", "while"], timeout=10)


async def test_a_directory_with_very_many_entries_is_no_trouble(pair: Pair) -> None:
    make = "import os\nfor i in range(3_000): os.mknod(f'm/{i}')"
    for machine in pair:
        await done(machine, "python3", "-c", f"import os; os.mkdir('m')\n{make}")
    difference = await found(pair, "", "rm m/77; touch m/new")
    assert [change.text for change in difference.files] == [
        "- /workspace/m/77 (0 bytes)",
        "+ /workspace/m/new (0 bytes)",
    ]


async def test_a_root_that_is_no_absolute_path_is_refused(pair: Pair) -> None:
    with pytest.raises(PathRefused, match="absolute"):
        await diff(*pair, roots=["workspace"])
    assert (await diff(*pair, roots=["/nowhere"])).files == ()
