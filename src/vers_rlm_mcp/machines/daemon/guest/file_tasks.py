"""Reading and writing one file, in a separate process: a hanging file system hangs nothing else.

SFTP would do for most files. It cannot say that a disk is full (its errors have no number for
that), it hangs on a FIFO, and takes three round trips where this takes one.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from .frames import COMPLETE

CHUNK = 256 * 1024

TEMPORARY = (b"/tmp", b"/var/tmp", b"/dev/shm", b"/run")
"""Where new content waits if the directory of its file admits no other."""

NOT_HERE = frozenset(
    {
        errno.EACCES,
        errno.EBUSY,
        errno.EINVAL,
        errno.EISDIR,
        errno.ENOENT,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EROFS,
        errno.EXDEV,
    }
)
"""Errors of a directory that admits no other file, or none without a name; of a mounted file."""


def open_to_read(path: bytes, offset: int) -> int:
    """Open a regular file at a byte; a negative one counts from the end."""
    file = _reopen(path, os.O_RDONLY)
    start = offset if offset >= 0 else max(0, os.fstat(file).st_size + offset)
    os.lseek(file, start, os.SEEK_SET)
    return file


class Replacement:
    """A regular file's new content, which takes the file's place once it is complete.

    Until then, the old content stays. A new file gets the given mode, and its parents are made. An
    existing one keeps its mode, owner and attributes, and the symlinks that lead to it.
    """

    def __init__(self, path: bytes, mode: int) -> None:
        self._old: os.stat_result | None = None
        self._mode = mode
        try:
            probe = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            os.umask(0o022)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self._path = os.path.realpath(path)
        else:
            _check_regular(probe)
            link = b"/proc/self/fd/%d" % probe
            if not os.access(link, os.W_OK):
                os.close(os.open(link, os.O_WRONLY | os.O_CLOEXEC))  # The error says why.
            self._old = os.fstat(probe)
            self._path = os.readlink(link)
        self._place, self._name = os.path.split(self._path)
        self._directory = -1
        self._temporary = b""
        """The name of the new file; empty when it has none."""
        self.file = self._make_file()

    def finish(self) -> None:
        """Put the new content in place of the old."""
        os.close(os.dup(self.file))  # which is when some file systems notice that they are full
        if self._is_shared() or not self._has_taken_attributes():
            self._copy()
        else:
            self._move()

    def discard(self) -> None:
        """Leave nothing of the new file."""
        if self._temporary:
            os.unlink(self._temporary, dir_fd=self._directory)
            self._temporary = b""

    def _make_file(self) -> int:
        """Make a file beside the old one or, where that is not allowed, for temporary files.

        It has no name, where the file system supports that: then nothing of it is ever left.
        """
        name = b".vers-rlm-%d" % time.monotonic_ns()
        refused = OSError(errno.EACCES, os.strerror(errno.EACCES))
        for place in (self._place, *TEMPORARY) if self._old else (self._place,):
            try:
                self._directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    return self._open(b".", os.O_TMPFILE)
                except OSError as error:
                    if error.errno not in NOT_HERE:
                        raise
                file = self._open(name, os.O_CREAT | os.O_EXCL)
            except OSError as error:  # noqa: PERF203 - each may refuse
                if error.errno not in NOT_HERE:
                    raise
                refused = error
            else:
                self._temporary = name
                return file
        raise refused

    def _open(self, name: bytes, flags: int) -> int:
        flags |= os.O_RDWR | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self._directory)

    def _is_shared(self) -> bool:
        """Whether the old file has other names, which have to lead to the new content, too."""
        return self._old is not None and self._old.st_nlink > 1

    def _has_taken_attributes(self) -> bool:
        """Give the new file the owner, attributes and mode of the old one, if that is allowed."""
        if self._old:
            try:
                os.fchown(self.file, self._old.st_uid, self._old.st_gid)
                for name in os.listxattr(self._path):
                    os.setxattr(self.file, name, os.getxattr(self._path, name))
            except OSError:
                return False
        os.fchmod(self.file, stat.S_IMODE(self._old.st_mode) if self._old else self._mode)
        return True

    def _move(self) -> None:
        """Take the old file's place in its directory."""
        try:
            if not self._temporary:
                if not self._old and self._has_linked(self._name):
                    return
                name = b".vers-rlm-%d" % time.monotonic_ns()
                if self._has_linked(name):
                    self._temporary = name
            os.rename(self._temporary, self._path, src_dir_fd=self._directory)
            self._temporary = b""
        except OSError as error:
            if not self._old or error.errno not in NOT_HERE:
                raise
            self._copy()

    def _has_linked(self, name: bytes) -> bool:
        """Give the new file a name in its directory, unless there is such a file."""
        try:
            # Given a directory, Python has the link in /proc followed.
            os.link(b"/proc/self/fd/%d" % self.file, name, dst_dir_fd=self._directory)
        except FileExistsError:
            return False
        return True

    def _copy(self) -> None:
        """Copy the new content into the old file."""
        old = _reopen(self._path, os.O_WRONLY | os.O_TRUNC)
        os.lseek(self.file, 0, os.SEEK_SET)
        while True:
            chunk = os.read(self.file, CHUNK)
            if not chunk:
                break
            _write_all(old, chunk)
        os.close(old)


def send(file: int, length: int) -> None:
    """Copy at most `length` bytes to standard output; all when it is negative."""
    while length:
        chunk = os.read(file, CHUNK if length < 0 else min(CHUNK, length))
        if not chunk:
            break
        _write_all(1, chunk)
        length -= len(chunk) if length > 0 else 0


def receive(file: int) -> int:
    """Copy standard input to a file, and return the number of bytes.

    Raises `OSError` unless `COMPLETE` follows them: then the host has given up, or is gone.
    """
    size, rest = 0, b""
    while True:
        chunk = os.read(0, CHUNK)
        if not chunk:
            break
        rest += chunk
        _write_all(file, rest[: -len(COMPLETE)])
        size += max(0, len(rest) - len(COMPLETE))
        rest = rest[-len(COMPLETE) :]
    if rest != COMPLETE:
        raise OSError(errno.ECANCELED, "the content did not come to its end")
    return size


def _reopen(path: bytes, flags: int) -> int:
    """Open a regular file that exists, without ever opening anything else."""
    probe = os.open(path, os.O_PATH | os.O_CLOEXEC)
    _check_regular(probe)
    return os.open(f"/proc/self/fd/{probe}", flags | os.O_CLOEXEC)


def _check_regular(file: int) -> None:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
