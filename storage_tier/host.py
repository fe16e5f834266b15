"""Whether a server is on this host: it is when this process can read the server's nonce in shared memory.

Host names, boot ids and loopback addresses lie in containers and network namespaces; a file that only a
process with the same shared memory and the same user can read does not.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

NONCE_BYTES = 32
NONCE_NAME = "nonce"
# Names of this beginning in a server's directory are half-written files; a start removes them.
TEMPORARY_PREFIX = ".tmp-"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 in place of what is at `path`. Atomic: readers see the old one or the new."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_nonce(directory: Path) -> bytes:
    """Make the nonce of this start of a server: random, in `directory`/nonce, mode 0600. Returns it."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    write_whole(directory / NONCE_NAME, nonce)
    return nonce


def proof_of(nonce: bytes, challenge: bytes = b"") -> bytes:
    """HMAC-SHA256 of the client's challenge under the nonce: shows that the server knows it, tells it not."""
    return hmac.new(nonce, b"storage_tier nonce\0" + challenge, hashlib.sha256).digest()


def is_near(nonce_path: str | os.PathLike[str], expected: bytes, challenge: bytes = b"") -> bool:
    """Whether the file at `nonce_path` is the nonce whose `proof_of(nonce, challenge)` is `expected`.

    Never blocks and reads at most 33 bytes: the path comes from a server that is not trusted yet. False for a
    missing or unreadable file, for anything but a regular file of 32 bytes, and for another nonce.
    """
    try:
        fd = os.open(nonce_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError):
        # Not there, not ours to read, not a path: each means that this process does not share the server's
        # memory.
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        nonce = os.read(fd, NONCE_BYTES + 1)
    finally:
        os.close(fd)
    return len(nonce) == NONCE_BYTES and hmac.compare_digest(proof_of(nonce, challenge), expected)
