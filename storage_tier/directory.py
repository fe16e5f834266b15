"""A server's directory: who owns it, and its identity for life.

    DIRECTORY/lock            held (flock) by the one live owner; contains its pid
    DIRECTORY/identity.json   server id for life, epoch of the last start

The kernel drops the lock when the owner dies, however it dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from pathlib import Path

from storage_tier.errors import DirectoryInUse, DirectoryRefused
from storage_tier.host import NONCE_NAME, TEMPORARY_PREFIX, write_whole

LOCK_NAME = "lock"
IDENTITY_NAME = "identity.json"
BLOCKS_NAME = "blocks"


def make_directory(directory: Path) -> None:
    """Make it, mode 0700, if it is not there.

    Raises:
        DirectoryRefused: it belongs to another user, cannot be made, or has a name that is not UTF-8.
    """
    try:
        str(directory).encode()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise DirectoryRefused(f"{str(directory)!r:.200} cannot be a tier's directory: {error}") from None
    status = os.stat(directory, follow_symlinks=False)
    if status.st_uid != os.geteuid():
        raise DirectoryRefused(
            f"{directory} belongs to user {status.st_uid}, and this server runs as {os.geteuid()}: choose another"
        )


def take_lock(directory: Path) -> int:
    """Become the owner: returns the file descriptor that holds the lock while it is open. Never waits.

    Raises:
        DirectoryInUse: with the pid of the owner.
    """
    path = directory / LOCK_NAME
    while True:
        # Not inherited by programs that are started; a bare fork does inherit it, so servers are never
        # forked.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
                raise DirectoryInUse(
                    f"{directory} is in use by the server with process id {pid or 'unknown'}: stop that "
                    "one, or choose another directory"
                ) from None
            if _is_at(fd, path):
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        # The directory was removed between open and flock: what we hold is nobody's lock.
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def refuse_foreign(directory: Path) -> None:
    """A typo in --dir must not cost anybody their files. Looks before anything there is touched."""
    if (directory / IDENTITY_NAME).exists():
        return
    ours = {LOCK_NAME, NONCE_NAME, BLOCKS_NAME}
    others = sorted(
        entry.name
        for entry in directory.iterdir()
        if entry.name not in ours and not entry.name.startswith(TEMPORARY_PREFIX)
    )
    if others:
        raise DirectoryRefused(
            f"{directory} is not a tier's directory and holds {len(others)} other entries "
            f"({others[0]!r:.60}): give an empty or a new one"
        )


def next_epoch(directory: Path) -> tuple[str, int]:
    """Count a start, durably: (server id, epoch). Call with the lock held.

    Raises:
        DirectoryRefused: the file is damaged.
    """
    path = directory / IDENTITY_NAME
    server_id, epoch = str(uuid.uuid4()), 0
    if path.exists():
        try:
            identity = json.loads(path.read_bytes())
            server_id, epoch = str(uuid.UUID(identity["server_id"])), int(identity["epoch"])
        except (ValueError, KeyError, TypeError) as error:
            raise DirectoryRefused(
                f"{path} cannot be read ({type(error).__name__}: {error}): it was damaged. Restore it, or "
                "move the directory away"
            ) from None
    epoch += 1
    write_whole(path, json.dumps({"server_id": server_id, "epoch": epoch}).encode())
    return server_id, epoch


def count_held_bytes(directory: Path) -> int:
    """Memory of all files below `directory`, as the file system counts it."""
    total_bytes = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total_bytes += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                # A near writer or a client of the last start is still at work; it is not counted.
                continue
    return total_bytes


def remove_directory(directory: Path) -> None:
    """Delete a tier's directory with all it holds. A directory that does not exist is no error.

    Raises:
        DirectoryInUse: a live server owns it.
        DirectoryRefused: it is not a tier's.
    """
    if not directory.exists():
        return
    refuse_foreign(directory)
    lock_fd = take_lock(directory)
    try:
        shutil.rmtree(directory)
    finally:
        os.close(lock_fd)
