"""A directory of this host (or mounted on it) as an under-store: file:///data.

Published by write to a temporary, fsync, rename, fsync of the directory: whole and durable, or not there. The
bytes go from file to file inside the kernel. Temporaries lie in ROOT/.tier-tmp and are locked by their
writers, so that a start can tell those of the dead from those of another living server.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage_tier.errors import DirectoryNotEmpty, UnderChanged, UnderFailed, UnderNotFound
from storage_tier.under.base import (
    STEP_BYTES,
    TEMPORARY_NAME,
    Reader,
    Sink,
    Traits,
    UnderInfo,
    age_of_temporary_s,
    can_be_named,
    check_same,
    new_temporary_name,
    not_empty,
)
from storage_tier.under.calls import Call

# Through memory a step is what stays in a cache: it is copied twice.
_BOUNCE_BYTES = 1 << 20
# Some network filesystems have no locks; there only age tells what nobody writes any more.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class FileBackend:
    """A directory. Other programs may read and write there at the same time.

    A symbolic link to a regular file below the root is read as that file. Nothing is at any other: one to a directory,
    to what lies outside, to nothing, in a loop. Listings leave it out, and no path leads through it. A link is removed,
    renamed and replaced as itself. This keeps mistakes in; against whoever may make links in the root while it is read,
    give the server no rights beyond it.
    """

    traits = Traits(
        whole=True,
        atomic_rename=True,
        directories=True,
        note="Objects appear whole, by rename, and are on disk when the call returns.",
    )

    def __init__(self, root: Path) -> None:
        self._root = root
        self._uploads = root / TEMPORARY_NAME

    def check(self) -> None:
        if not self._root.exists():
            raise UnderNotFound("there is no such directory on this host: make it, or mount another one")
        if not self._root.is_dir():
            raise UnderNotFound("it is not a directory: mount the directory that it lies in")
        with os.scandir(self._root):
            pass

    def info(self, path: str) -> UnderInfo:
        try:
            return _info(path, os.stat(self._followed(path)))
        except NotADirectoryError:
            raise UnderNotFound("a name above it is that of a file") from None

    def list(self, path: str) -> tuple[list[UnderInfo], int]:
        found, left_out_count = [], 0
        with os.scandir(self._followed(path)) as entries:
            for entry in entries:
                if not can_be_named(entry.name):
                    left_out_count += entry.name != TEMPORARY_NAME
                    continue
                try:
                    linked = entry.is_symlink()
                    status = os.stat(self._followed(f"{path}/{entry.name}")) if linked else entry.stat()
                except FileNotFoundError:  # removed since, or a link that is not followed
                    left_out_count += os.path.lexists(entry.path)
                    continue
                if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                    found.append(_info(f"{path}/{entry.name}", status))
                else:
                    left_out_count += 1
        return found, left_out_count

    def find(self, path: str, limit: int) -> None:
        """No cheaper than one directory after the other."""

    def read(self, path: str, start: int, stop: int | None, stamp: str | None, sink: Sink, call: Call) -> UnderInfo:
        # Not to hang on a pipe that somebody put there.
        fd = os.open(self._followed(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
        try:
            info = _info(path, os.fstat(fd))
            if info.is_directory:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            check_same(path, stamp, info.stamp, "is not the object that was asked for")
            end = info.size_bytes if stop is None else min(stop, info.size_bytes)
            sink.expect(end - start)
            copy = _copy_through_memory if sink.view is not None else _copy_in_kernel
            copy(fd, start, end, sink, call)
            check_same(path, info.stamp, _info(path, os.fstat(fd)).stamp, "was written to while it was read")
            return info
        finally:
            os.close(fd)

    def publish(self, path: str, source: Reader, call: Call) -> UnderInfo:
        final = self._file(path)
        temporary, fd = self._new_temporary()
        try:
            _write(fd, source, call)
            os.fsync(fd)
            info = _info(path, os.fstat(fd))
            self._make(final.parent)
            call.moved()  # the last look: a call that was given up publishes nothing any more
            os.replace(temporary, final)
            _sync(final.parent)
            return info
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    def remove(self, path: str) -> None:
        try:
            file = self._file(path)
            file.unlink()
            _sync(file.parent)
        except (FileNotFoundError, NotADirectoryError):
            return

    def rename(self, source: str, target: str, call: Call) -> None:
        old, new = self._file(source), self._file(target)
        old.lstat()  # before directories are made for nothing
        self._make(new.parent)
        call.moved()
        try:
            os.replace(old, new)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise DirectoryNotEmpty(f"{source} cannot become {target}: there is something in that directory") from None
        _sync(new.parent)
        _sync(old.parent)

    def make_directory(self, path: str) -> None:
        self._make(self._file(path))

    def remove_directory(self, path: str) -> None:
        with _refusing_what_is_full(path), suppress(FileNotFoundError):
            directory = self._file(path)
            directory.rmdir()
            _sync(directory.parent)

    def remove_tree(self, path: str, call: Call) -> None:
        with _refusing_what_is_full(path), suppress(FileNotFoundError):
            directory = self._file(path)
            _remove_tree(directory, call)
            _sync(directory.parent)

    def clean(self, older_than_s: float) -> int:
        removed_count = 0
        try:
            names = os.listdir(self._uploads)
        except FileNotFoundError:
            return 0
        for name in names:
            age_s = age_of_temporary_s(name)
            if age_s is not None:
                removed_count += _remove_if_dead(self._uploads / name, age_s >= older_than_s)
        try:
            self._uploads.rmdir()
        except OSError as error:
            # Somebody is at work there, or put something there.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
        return removed_count

    def close(self) -> None:
        """Nothing is held open."""

    def _file(self, path: str) -> Path:
        """Where it lies. It may be a link itself.

        Raises:
            FileNotFoundError: a name above it is that of a link.
        """
        file = self._root
        for name in path.split("/")[1:]:
            if file is not self._root and file.is_symlink():
                raise FileNotFoundError(errno.ENOENT, "a name above it is that of a symbolic link: not followed")
            file /= name
        return file

    def _followed(self, path: str) -> Path:
        """`_file`, or the file below the root that it is a link to.

        Raises:
            FileNotFoundError: it is a link that is not followed.
        """
        file = self._file(path)
        if not path or not file.is_symlink():
            return file
        with suppress(OSError):  # it leads to nothing, or in a loop
            found = Path(os.path.realpath(file, strict=True))
            if found.is_relative_to(os.path.realpath(self._root)) and stat.S_ISREG(found.lstat().st_mode):
                return found
        raise FileNotFoundError(errno.ENOENT, "a symbolic link, and not one to a file below the root of the mount")

    def _make(self, directory: Path) -> None:
        """Make a directory and those above it; each is on disk before the next.

        The root itself is never made: on a host where its disk is not mounted, an empty directory would fill.
        """
        if directory == self._root:
            if not directory.is_dir():
                raise UnderNotFound("the root of the mount is gone")
            return
        try:
            directory.mkdir()
        except FileExistsError:
            if not directory.is_dir() or directory.is_symlink():
                raise
            return
        except FileNotFoundError:
            self._make(directory.parent)
            directory.mkdir(exist_ok=True)
        _sync(directory.parent)

    def _new_temporary(self) -> tuple[Path, int]:
        """An empty, locked file in ROOT/.tier-tmp. The lock ends with this process, however that ends."""
        while True:
            temporary = self._uploads / new_temporary_name()
            try:
                # Readable by whom the umask says: these are files for other programs too.
                fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:
                self._uploads.mkdir(mode=0o777, exist_ok=True)
                continue
            try:
                if _lock(fd) and os.fstat(fd).st_nlink:
                    return temporary, fd
            except BaseException:
                os.close(fd)
                temporary.unlink(missing_ok=True)
                raise
            os.close(fd)  # somebody who cleans up was faster


def _info(path: str, status: os.stat_result) -> UnderInfo:
    if stat.S_ISDIR(status.st_mode):
        return UnderInfo(path, True, 0, "", status.st_mtime_ns)
    if not stat.S_ISREG(status.st_mode):
        raise UnderFailed(f"{path} is neither a file nor a directory")
    # The inode, because two writes can come within one tick of the filesystem's clock.
    stamp = f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"
    return UnderInfo(path, False, status.st_size, stamp, status.st_mtime_ns)


def _write(fd: int, source: Reader, call: Call) -> None:
    done = 0
    while done < source.size_bytes:
        call.moved()
        step = min(STEP_BYTES, source.size_bytes - done)
        if source.view is not None:
            done += os.write(fd, source.view[done : done + step])
        elif (count := os.sendfile(fd, source.fd, source.offset_bytes + done, step)) > 0:
            done += count
        else:
            raise UnderFailed(f"the source ends {source.size_bytes - done:,} bytes early: nothing was published")


def _copy_in_kernel(fd: int, start: int, end: int, sink: Sink, call: Call) -> None:
    # The position is the caller's descriptor's as well; it says so in `read_into`.
    os.lseek(sink.fd, sink.offset_bytes, os.SEEK_SET)
    while start < end:
        call.moved()
        with sink.room():
            count = os.sendfile(sink.fd, fd, start, min(STEP_BYTES, end - start))
        if count == 0:
            raise UnderChanged("it became shorter while it was read")
        start += count


def _copy_through_memory(fd: int, start: int, end: int, sink: Sink, call: Call) -> None:
    """Not straight into the caller's memory: a read that hangs and was given up would write there later."""
    first = start
    bounce = memoryview(bytearray(min(_BOUNCE_BYTES, max(end - start, 0))))
    while start < end:
        count = os.preadv(fd, [bounce[: end - start]], start)
        if count == 0:
            raise UnderChanged("it became shorter while it was read")
        sink.write(call, start - first, bounce[:count])
        start += count


@contextmanager
def _refusing_what_is_full(path: str) -> Iterator[None]:
    """Around the removal of a directory: what has come into it meanwhile is told."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise not_empty(path) from None


def _remove_tree(directory: Path, call: Call) -> None:
    """A link is removed, and what it leads to stays."""
    if directory.is_symlink():
        directory.unlink()
        return
    with os.scandir(directory) as entries:
        for entry in list(entries):
            call.moved()
            if entry.is_dir(follow_symlinks=False):
                _remove_tree(Path(entry.path), call)
            else:
                Path(entry.path).unlink(missing_ok=True)
    directory.rmdir()


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    """Whether the lock was got; where there are no locks, True."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _remove_if_dead(temporary: Path, is_old: bool) -> bool:
    with _opened_for_lock(temporary) as fd:
        if fd < 0:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            if not is_old:
                return False
        # Under the lock: a writer that made it but has not locked it yet will see that it is gone.
        try:
            temporary.unlink()
        except FileNotFoundError:  # published meanwhile
            return False
        return True


@contextmanager
def _opened_for_lock(file: Path) -> Iterator[int]:
    """-1 when it is gone, or another user's: then it is his to remove."""
    try:
        # For writing, because locks over NFS want that.
        fd = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, PermissionError):
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)
