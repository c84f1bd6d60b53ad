"""Files of the host, of other machines and of the layers."""

from __future__ import annotations

import glob
import os
import socket
import stat

from .attempt import Bait, attempt, call, check, contains, libc, worked

MS_REMOUNT, MS_BIND, MS_MOVE, MS_PRIVATE = 0x20, 0x1000, 0x2000, 1 << 18
MNT_DETACH = 2
IN_LAYERS = ("/tmp", "/workspace", "/usr", "/etc")
PLACES = (*IN_LAYERS, "/run", "/dev/shm", "/dev", "/")
FILE_SYSTEMS = (
    *("proc", "sysfs", "tmpfs", "devpts", "devtmpfs", "cgroup", "cgroup2", "mqueue", "overlay"),
    *("fuse", "bpf", "debugfs", "tracefs", "securityfs", "binfmt_misc", "hugetlbfs", "ext4"),
)


def _processes() -> list[str]:
    return [*glob.glob("/proc/[0-9]*"), *glob.glob("/proc/[0-9]*/task/[0-9]*"), "/proc/self"]


@attempt
def read_the_hosts_files_by_their_paths(bait: Bait) -> object:
    return contains(bait.secret, bait.paths)


@attempt
def read_the_hosts_accounts(bait: Bait) -> object:
    private = ["/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh/ssh_host_ed25519_key"]
    return [path for path in private if os.path.exists(path)]


@attempt
def find_the_hosts_files_anywhere(bait: Bait) -> object:
    names = {os.path.basename(path) for path in bait.paths}
    skipped = {"/proc", "/usr", "/sys"}
    found: list[str] = []
    for directory, below, files in os.walk("/"):
        below[:] = [name for name in below if os.path.join(directory, name) not in skipped]
        found += [os.path.join(directory, name) for name in names & {*files, *below}]
    return found


@attempt
def see_a_home_directory(bait: Bait) -> object:
    return [path for path in ("/home", "/root") if os.listdir(path)]


@attempt
def follow_the_links_of_processes_to_the_hosts_root(bait: Bait) -> object:
    ways = ("root", "cwd", "root/../../..", "cwd/../../../../../../../..", "root/proc/1/root")
    places = [f"{process}/{way}" for process in _processes() for way in ways]
    return contains(bait.secret, [place + path for place in places for path in bait.paths])


@attempt
def reach_the_layers_through_the_hidden_directory(bait: Bait) -> object:
    ways = ["/.vers", "/.vers/..", "/.vers/.vers", "/proc/1/cwd", "/proc/1/root/.vers"]
    tops = {"live", "layers", "machine", "base", "guest", "c"}
    return [way for way in ways if os.path.isdir(way) and tops & set(_names(way))]


@attempt
def reach_a_place_that_the_mount_table_names(bait: Bait) -> object:
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    hidden = [fields[4] for fields in mounts if fields[4].startswith("/.vers/")]
    assert hidden, "the table does not name what is hidden: the attempt has no aim"
    sources = [fields[3] for fields in mounts if fields[3] != "/"]
    return [path for path in hidden if os.path.lexists(path)] + [
        path for path in sources if "/layers" in path and os.path.lexists(path)
    ]


@attempt
def climb_out_through_an_open_directory(bait: Bait) -> object:
    """The old way out of a chroot: keep a directory open that lies outside of the next root."""
    outside = os.open("/", os.O_RDONLY)
    os.makedirs("/tmp/jail", exist_ok=True)
    os.chroot("/tmp/jail")
    os.fchdir(outside)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    return contains(bait.secret, bait.paths) or (set(_names("/")) & {"layers", "machine", "live"})


@attempt
def change_the_root_to_that_of_another_process(bait: Bait) -> object:
    return worked({way: lambda way=way: os.chroot(way) for way in ("/proc/1/root", "/proc/1/cwd")})


@attempt
def write_to_the_root_directory(bait: Bait) -> object:
    return worked({
        "file": lambda: os.open("/new", os.O_CREAT | os.O_WRONLY),
        "directory": lambda: os.mkdir("/new"),
        "below /dev": lambda: os.mkdir("/dev/new"),
        "below /.vers": lambda: os.mkdir("/.vers/new"),
    })  # fmt: skip


@attempt
def mount_file_systems(bait: Bait) -> object:
    def mount(kind: str) -> int:
        return check(libc.mount(b"none", b"/mnt", kind.encode(), 0, None))

    return worked({kind: lambda kind=kind: mount(kind) for kind in FILE_SYSTEMS})


@attempt
def mount_what_is_there_elsewhere(bait: Bait) -> object:
    def mount(source: bytes, target: bytes, flags: int) -> int:
        return check(libc.mount(source, target, b"", flags, None))

    return worked({
        "bind": lambda: mount(b"/etc", b"/mnt", MS_BIND),
        "bind of PID 1's root": lambda: mount(b"/proc/1/root", b"/mnt", MS_BIND),
        "remount": lambda: mount(b"none", b"/", MS_REMOUNT | MS_BIND),
        "remount of /proc/sys": lambda: mount(b"none", b"/proc/sys", MS_REMOUNT | MS_BIND),
        "move": lambda: mount(b"/workspace", b"/mnt", MS_MOVE),
        "propagation": lambda: mount(b"none", b"/", MS_PRIVATE),
    })  # fmt: skip


@attempt
def take_away_what_hides_the_layers(bait: Bait) -> object:
    targets = ("/.vers", "/proc", "/proc/sys", "/proc/keys", "/dev", "/workspace", "/")
    return worked({
        f"{target} {flags}": lambda target=target, flags=flags: check(
            libc.umount2(target.encode(), flags)
        )
        for target in targets
        for flags in (0, MNT_DETACH)
    })  # fmt: skip


@attempt
def mount_through_the_new_calls(bait: Bait) -> object:
    names = ("fsopen", "open_tree", "fspick", "fsmount", "move_mount", "mount_setattr")
    variants = {name: bait.numbers[name] for name in names}
    return worked({
        name: lambda number=number: call(number, -100, b"/", 1, 0, 0)
        for name, number in variants.items()
    })  # fmt: skip


@attempt
def change_the_root_by_pivoting(bait: Bait) -> object:
    os.makedirs("/tmp/new/old", exist_ok=True)
    return call(bait.numbers["pivot_root"], b"/tmp/new", b"/tmp/new/old") == 0


@attempt
def make_device_nodes(bait: Bait) -> object:
    devices = {
        "the disk": (stat.S_IFBLK, os.makedev(254, 0)),
        "another disk": (stat.S_IFBLK, os.makedev(8, 0)),
        "memory": (stat.S_IFCHR, os.makedev(1, 1)),
        "kernel messages": (stat.S_IFCHR, os.makedev(1, 11)),
        "a tunnel": (stat.S_IFCHR, os.makedev(10, 200)),
    }
    return worked({
        f"{name} in {place}": lambda place=place, kind=kind, number=number: os.mknod(
            f"{place}/node", kind | 0o666, number
        )
        for name, (kind, number) in devices.items()
        for place in PLACES
    })  # fmt: skip


@attempt
def hide_files_of_lower_layers_with_forged_marks(bait: Bait) -> object:
    """To overlayfs, the device 0/0 says that a name is gone."""
    whiteout = stat.S_IFCHR | 0o666
    return worked({place: lambda place=place: os.mknod(f"{place}/node", whiteout, 0)
                   for place in IN_LAYERS})  # fmt: skip


@attempt
def open_a_file_by_a_forged_handle(bait: Bait) -> object:
    handle = bytes([8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])  # ext4: inode 2, the root
    directory = os.open("/usr", os.O_RDONLY)
    return check(libc.open_by_handle_at(directory, handle, os.O_RDONLY)) > 0


@attempt
def make_a_file_that_the_host_cannot_remove(bait: Bait) -> object:
    import fcntl

    get_flags, set_flags, immutable = 0x80086601, 0x40086602, 0x10
    with open("/workspace/immutable", "w") as file:
        flags = int.from_bytes(fcntl.ioctl(file, get_flags, bytes(8)), "little")
        fcntl.ioctl(file, set_flags, (flags | immutable).to_bytes(8, "little"))
    return True


@attempt
def write_to_what_the_kernel_offers_below_proc(bait: Bait) -> object:
    """All files of /proc but those of processes, the masked ones among them."""
    harmless = {"/proc/keys", "/proc/timer_list", "/proc/kcore", "/proc/sysrq-trigger"}
    there = filter(os.path.exists, harmless)
    masked = {path for path in there if stat.S_ISCHR(os.stat(path).st_mode)}
    found: list[str] = []
    for directory, below, names in os.walk("/proc"):
        below[:] = [name for name in below if not (name.isdigit() or name.endswith("self"))]
        for name in names:
            path = os.path.join(directory, name)
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
            except OSError:
                continue
            found.append(path)
    # Anybody may ask to be woken when the processors are busy.
    return [path for path in found if path not in masked and "/pressure/" not in path]


@attempt
def send_a_descriptor_through_standard_streams(bait: Bait) -> object:
    def send(number: int) -> object:
        return socket.socket(fileno=os.dup(number)).sendmsg([b"x"], [(1, 1, bytes(4))])

    return [number for number in range(3) if stat.S_ISSOCK(os.fstat(number).st_mode)] and send(1)


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
