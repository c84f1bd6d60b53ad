"""An SFTP server of version 3, as OpenSSH's, on standard input and output.

It is sent into a machine and run there by the machine's own Python, as root: what it does to files
is done by the machine, its names are bytes, and of a file it holds one packet at a time. The
format is draft-ietf-secsh-filexfer-02; where OpenSSH differs (the order of a symlink's arguments,
a rename that does not replace, which error is which status) so does this. Standard library only.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import time
from collections.abc import Callable

VERSION, STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED_REPLY = 2, 101, 102, 103, 104, 105, 201

OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE, UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8

MESSAGES = {
    OK: b"Success",
    EOF: b"End of file",
    NO_SUCH_FILE: b"No such file",
    PERMISSION_DENIED: b"Permission denied",
    FAILURE: b"Failure",
    BAD_MESSAGE: b"Bad message",
    UNSUPPORTED: b"Operation unsupported",
}

STATUSES = {
    errno.ENOENT: NO_SUCH_FILE,
    errno.ENOTDIR: NO_SUCH_FILE,
    errno.EBADF: NO_SUCH_FILE,
    errno.ELOOP: NO_SUCH_FILE,
    errno.EPERM: PERMISSION_DENIED,
    errno.EACCES: PERMISSION_DENIED,
    errno.EFAULT: PERMISSION_DENIED,
    errno.ENAMETOOLONG: BAD_MESSAGE,
    errno.EINVAL: BAD_MESSAGE,
    errno.ENOSYS: UNSUPPORTED,
}

HAS_SIZE, HAS_OWNER, HAS_MODE, HAS_TIMES = 1, 2, 4, 8

FOR_READING, FOR_WRITING, APPEND, CREATE, TRUNCATE, EXCLUSIVE = 1, 2, 4, 8, 16, 32

MAX_PACKET = 256 * 1024
MAX_DATA = MAX_PACKET - 1024
"""OpenSSH's own limits, which `limits@openssh.com` tells."""

MAX_HANDLES = 1024

NAMES_AT_ONCE = 100

EXTENSIONS = {
    b"posix-rename@openssh.com": b"1",
    b"hardlink@openssh.com": b"1",
    b"fsync@openssh.com": b"1",
    b"limits@openssh.com": b"1",
}


class Ended(Exception):
    """The client has closed its side."""


class Fields:
    """What is left of a request."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def take(self, layout: str) -> int:
        (value,) = struct.unpack_from(layout, self._data)
        self._data = self._data[struct.calcsize(layout) :]
        return value

    def number(self) -> int:
        return self.take(">I")

    def long(self) -> int:
        return self.take(">Q")

    def string(self) -> bytes:
        size = self.number()
        if size > len(self._data):
            raise OSError(errno.EINVAL, "a string is cut off")
        value, self._data = bytes(self._data[:size]), self._data[size:]
        return value

    def attributes(self) -> dict[int, tuple[int, ...]]:
        flags = self.number()
        found: dict[int, tuple[int, ...]] = {}
        if flags & HAS_SIZE:
            found[HAS_SIZE] = (self.long(),)
        for flag, count in ((HAS_OWNER, 2), (HAS_MODE, 1), (HAS_TIMES, 2)):
            if flags & flag:
                found[flag] = tuple(self.number() for _ in range(count))
        return found


def string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def attributes(info: os.stat_result) -> bytes:
    flags = HAS_SIZE | HAS_OWNER | HAS_MODE | HAS_TIMES
    times = (int(moment) & 0xFFFFFFFF for moment in (info.st_atime, info.st_mtime))
    return struct.pack(
        ">IQIIIII", flags, info.st_size, info.st_uid, info.st_gid, info.st_mode, *times
    )


def long_name(name: bytes, info: os.stat_result) -> bytes:
    when = time.strftime("%b %d %H:%M", time.localtime(info.st_mtime))
    mode, owner = stat.filemode(info.st_mode), f"{info.st_uid:<8} {info.st_gid:<8}"
    return f"{mode} {info.st_nlink:>3} {owner} {info.st_size:>8} {when} ".encode() + name


Reply = tuple[int, bytes]
Operation = Callable[[Fields], Reply]


class Server:
    """One SFTP session."""

    def __init__(self) -> None:
        self._files: dict[bytes, int] = {}
        self._directories: dict[bytes, list[bytes]] = {}
        self._paths: dict[bytes, bytes] = {}
        self._made = 0
        self._operations: dict[int, Operation] = {
            3: self._open,
            4: self._close,
            5: self._read,
            6: self._write,
            7: lambda fields: (ATTRS, attributes(os.lstat(fields.string()))),
            8: lambda fields: (ATTRS, attributes(os.fstat(self._file(fields)))),
            9: lambda fields: self._set(fields.string(), fields),
            10: lambda fields: self._set(self._file(fields), fields),
            11: self._open_directory,
            12: self._read_directory,
            13: lambda fields: self._done(os.unlink(fields.string())),
            14: self._make_directory,
            15: lambda fields: self._done(os.rmdir(fields.string())),
            16: self._real_path,
            17: lambda fields: (ATTRS, attributes(os.stat(fields.string()))),
            18: self._rename,
            19: lambda fields: self._names([(os.readlink(fields.string()), None)]),
            20: lambda fields: self._done(os.symlink(fields.string(), fields.string())),
            200: self._extended,
        }

    def serve(self) -> None:
        """Answer requests, in their order, until the client closes its side."""
        while True:
            try:
                packet = receive()
            except Ended:
                return
            if packet[0] == 1:
                names = b"".join(string(key) + string(value) for key, value in EXTENSIONS.items())
                send(VERSION, struct.pack(">I", 3) + names)
                continue
            fields = Fields(packet[1:])
            number = fields.take(">I")
            kind, body = self._answer(packet[0], fields)
            send(kind, struct.pack(">I", number) + body)

    def _answer(self, kind: int, fields: Fields) -> Reply:
        operation = self._operations.get(kind)
        if operation is None:
            return status(UNSUPPORTED)
        try:
            return operation(fields)
        except OSError as error:
            return status(STATUSES.get(error.errno or 0, FAILURE))
        except (struct.error, ValueError):  # ValueError: a NUL in a path
            return status(BAD_MESSAGE)

    # Files

    def _open(self, fields: Fields) -> Reply:
        path, wanted, given = fields.string(), fields.number(), fields.attributes()
        writing = wanted & FOR_WRITING
        flags = (os.O_RDWR if wanted & FOR_READING else os.O_WRONLY) if writing else os.O_RDONLY
        for bit, flag in (
            (APPEND, os.O_APPEND),
            (CREATE, os.O_CREAT),
            (TRUNCATE, os.O_TRUNC),
            (EXCLUSIVE, os.O_EXCL),
        ):
            flags |= flag if wanted & bit else 0
        (mode,) = given.get(HAS_MODE, (0o666,))
        handle = self._new_handle()
        self._files[handle] = os.open(path, flags | os.O_CLOEXEC, mode & 0o7777)
        return HANDLE, string(handle)

    def _close(self, fields: Fields) -> Reply:
        handle = fields.string()
        if handle in self._directories:
            del self._directories[handle], self._paths[handle]
        else:
            os.close(self._known(handle))
            del self._files[handle]
        return status(OK)

    def _read(self, fields: Fields) -> Reply:
        file, offset, size = self._file(fields), fields.long(), fields.number()
        data = os.pread(file, min(size, MAX_DATA), offset)
        return (DATA, string(data)) if data else status(EOF)

    def _write(self, fields: Fields) -> Reply:
        file, offset, data = self._file(fields), fields.long(), fields.string()
        written = 0
        while written < len(data):
            written += os.pwrite(file, data[written:], offset + written)
        return status(OK)

    def _set(self, target: bytes | int, fields: Fields) -> Reply:
        given = fields.attributes()
        if HAS_SIZE in given:
            os.truncate(target, given[HAS_SIZE][0])
        if HAS_MODE in given:
            os.chmod(target, given[HAS_MODE][0] & 0o7777)
        if HAS_TIMES in given:
            accessed, modified = given[HAS_TIMES]
            os.utime(target, (accessed, modified))
        if HAS_OWNER in given:
            user, group = given[HAS_OWNER]
            os.chown(target, user, group)
        return status(OK)

    # Directories and names

    def _open_directory(self, fields: Fields) -> Reply:
        path = fields.string()
        names = [b".", b"..", *os.listdir(path)]
        handle = self._new_handle()
        self._directories[handle], self._paths[handle] = names, path
        return HANDLE, string(handle)

    def _read_directory(self, fields: Fields) -> Reply:
        handle = fields.string()
        if handle not in self._directories:
            return status(NO_SUCH_FILE)
        found: list[tuple[bytes, os.stat_result | None]] = []
        left = self._directories[handle]
        while left and len(found) < NAMES_AT_ONCE:
            name = left.pop(0)
            try:
                found.append((name, os.lstat(os.path.join(self._paths[handle], name))))
            except FileNotFoundError:  # It was removed meanwhile.
                continue
        return self._names(found) if found else status(EOF)

    def _make_directory(self, fields: Fields) -> Reply:
        path, given = fields.string(), fields.attributes()
        (mode,) = given.get(HAS_MODE, (0o777,))
        return self._done(os.mkdir(path, mode & 0o7777))

    def _real_path(self, fields: Fields) -> Reply:
        return self._names([(os.path.realpath(fields.string() or b"."), None)])

    def _rename(self, fields: Fields) -> Reply:
        """OpenSSH's rename of version 3 does not replace what is there."""
        old, new = fields.string(), fields.string()
        if not stat.S_ISREG(os.lstat(old).st_mode):
            if os.path.lexists(new):
                return status(FAILURE)
            return self._done(os.rename(old, new))
        os.link(old, new, follow_symlinks=False)
        return self._done(os.unlink(old))

    def _extended(self, fields: Fields) -> Reply:
        request = fields.string()
        if request == b"posix-rename@openssh.com":
            return self._done(os.replace(fields.string(), fields.string()))
        if request == b"hardlink@openssh.com":
            return self._done(os.link(fields.string(), fields.string()))
        if request == b"fsync@openssh.com":
            return self._done(os.fsync(self._file(fields)))
        if request == b"limits@openssh.com":
            return EXTENDED_REPLY, struct.pack(">QQQQ", MAX_PACKET, MAX_DATA, MAX_DATA, MAX_HANDLES)
        return status(UNSUPPORTED)

    # Helpers

    def _new_handle(self) -> bytes:
        if len(self._files) + len(self._directories) >= MAX_HANDLES:
            raise OSError(errno.EMFILE, "too many handles")
        self._made += 1
        return b"%d" % self._made

    def _file(self, fields: Fields) -> int:
        return self._known(fields.string())

    def _known(self, handle: bytes) -> int:
        if handle not in self._files:
            raise OSError(errno.EBADF, "no such handle")
        return self._files[handle]

    def _names(self, entries: list[tuple[bytes, os.stat_result | None]]) -> Reply:
        body = struct.pack(">I", len(entries))
        for name, info in entries:
            shown = long_name(name, info) if info else name
            body += string(name) + string(shown)
            body += attributes(info) if info else struct.pack(">I", 0)
        return NAME, body

    def _done(self, _: None) -> Reply:
        return status(OK)


def status(code: int) -> Reply:
    return STATUS, struct.pack(">I", code) + string(MESSAGES[code]) + string(b"")


def receive() -> bytes:
    (size,) = struct.unpack(">I", take(4))
    if not 0 < size <= MAX_PACKET:
        raise Ended  # As OpenSSH does with a packet that is too long.
    return take(size)


def take(size: int) -> bytes:
    data = sys.stdin.buffer.read(size)
    if len(data) < size:
        raise Ended
    return data


def send(kind: int, body: bytes) -> None:
    sys.stdout.buffer.write(struct.pack(">IB", len(body) + 1, kind) + body)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    os.umask(0o022)
    Server().serve()
