"""Every error of storage_tier; each message is a sentence: what was expected and found, who, what to do.

Those that are an OSError too have its `errno`, here and on the other side of the wire.

TierError
 +-- InvalidPath          a name that no block can have
 +-- InvalidAddress       not of the form coproc://HOST:PORT[,HOST:PORT...]
 +-- InvalidRequest       an argument that cannot work: a size, a range, metadata, a buffer
 +-- BlockNotFound        no block of this name (also a FileNotFoundError)
 +-- BlockExists          the name is taken (also a FileExistsError)
 +-- CorruptBlock         a file that is not a whole block
 +-- ReservationLost      a write took longer than its reservation lasted, or the server was started anew
 +-- RegionNotFound       no region of this name, or not readable here
 +-- CorruptRegion        a file that is not a whole region
 +-- OutOfMemory          the tier's memory budget or the shared memory is used up (also a MemoryError)
 +-- DirectoryInUse       another live server owns the directory
 +-- DirectoryRefused     a directory that is not a tier's and holds other files
 +-- AddressInUse         another process listens on the port
 +-- Unsupported          asked for what this machine or this file system cannot do (also an io.UnsupportedOperation)
 +-- Unreachable          no server answers (also a ConnectionError)
 +-- Unauthenticated      the token is missing or wrong
 +-- DeadlineExceeded     something did not happen in the time given (also a TimeoutError)
 +-- ServerFailed         a server failed in a way it did not foresee; its log has the traceback
 |
 +-- PathNotFound         nothing is at this path, or nothing is where a parent must be (also a FileNotFoundError)
 +-- PathExists           something is at this path already (also a FileExistsError)
 +-- PathIsDirectory      a directory is where a file must be (also an IsADirectoryError)
 +-- PathNotDirectory     a file is where a directory must be (also a NotADirectoryError)
 +-- DirectoryNotEmpty    a directory that must be empty is not (also an OSError)
 +-- VersionConflict      the file has another version than the caller expected
 +-- MountConflict        a mount point is in the way
 +-- Fenced               the server was started anew, or retired: this process may write no more
 +-- CatalogRefused       the database is not a catalog that this program can use
 +-- BytesLost            no server that answers has the bytes of a file, nor does an under-store
 +-- NotMounted           asked to persist a file that is below no mount point
 |
 +-- Vetoed               an observer refused a file before it was committed (also a PermissionError)
 +-- ObserverFailed       an observer that is needed for this failed, or is quarantined
 +-- ObserverNotFound     no observer is attached under this id (also a LookupError)
 |
 +-- UnderError           root of what the filesystem below a mount answers
      +-- UnderNotFound     no such object, directory, bucket (also a FileNotFoundError)
      +-- UnderRefused      credentials or rights (also a PermissionError)
      +-- UnderFull         no room, or a quota is used up (also an OSError); retryable
      +-- UnderUnreachable  does not answer, too slow, or busy (also a ConnectionError); retryable
      +-- UnderChanged      another object came to this name while it was read; retryable
      +-- UnderFailed       anything else: it would fail again
"""

from __future__ import annotations

import io
from errno import (
    EACCES,
    ECONNREFUSED,
    EEXIST,
    EISDIR,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    EOPNOTSUPP,
    EPERM,
    ETIMEDOUT,
)


class TierError(Exception):
    """Root of all errors of this package."""


class InvalidPath(TierError, ValueError):
    """A name that no block can have."""


class InvalidAddress(TierError, ValueError):
    """Not an address of servers."""


class InvalidRequest(TierError, ValueError):
    """An argument that cannot work."""


class BlockNotFound(TierError, FileNotFoundError):
    """No block of this name."""

    errno = ENOENT


class BlockExists(TierError, FileExistsError):
    """The name is taken; a block never changes after it was committed."""

    errno = EEXIST


class CorruptBlock(TierError):
    """A file that is not a whole block. It is reported and never served."""


class ReservationLost(TierError):
    """The server no longer keeps the memory for this write."""


class RegionNotFound(TierError, FileNotFoundError):
    """No region of this name, or not readable by this process."""

    errno = ENOENT


class CorruptRegion(TierError):
    """A file that is not a whole region."""


class OutOfMemory(TierError, MemoryError):
    """The tier's memory budget or the shared memory is used up. Nothing was written."""


class DirectoryInUse(TierError):
    """Another live server owns the directory."""


class DirectoryRefused(TierError):
    """A directory that is not a tier's and holds other files: they could be lost."""


class AddressInUse(TierError):
    """Another process listens on the port."""


class Unsupported(TierError, io.UnsupportedOperation):
    """Asked for what this machine or this file system cannot do."""

    errno = EOPNOTSUPP


class Unreachable(TierError, ConnectionError):
    """No server answers at this address."""

    errno = ECONNREFUSED


class Unauthenticated(TierError, PermissionError):
    """The token is missing or wrong."""

    errno = EACCES


class DeadlineExceeded(TierError, TimeoutError):
    """Something did not happen in the time given. Whether it happened later is not known."""

    errno = ETIMEDOUT


class ServerFailed(TierError):
    """A server failed in a way it did not foresee; its log has the traceback."""


class PathNotFound(TierError, FileNotFoundError):
    """Nothing is at this path, or nothing is where one of its parents must be."""

    errno = ENOENT


class PathExists(TierError, FileExistsError):
    """Something is at this path already."""

    errno = EEXIST


class PathIsDirectory(TierError, IsADirectoryError):
    """A directory is where a file must be."""

    errno = EISDIR


class PathNotDirectory(TierError, NotADirectoryError):
    """A file is where a directory must be."""

    errno = ENOTDIR


class DirectoryNotEmpty(TierError, OSError):
    """A directory that must be empty is not."""

    errno = ENOTEMPTY


class VersionConflict(TierError):
    """The file has another version than the caller expected. Nothing was changed."""


class MountConflict(TierError):
    """A mount point is in the way."""


class Fenced(TierError):
    """This process's server was started anew or retired: another one writes in its name. Nothing was changed."""


class CatalogRefused(TierError):
    """The database is not a catalog that this program can use."""


class BytesLost(TierError):
    """A file is in the catalog, and no server that answers has its bytes, nor does an under-store."""


class NotMounted(TierError, ValueError):
    """Asked to persist a file that is below no mount point."""


class Vetoed(TierError, PermissionError):
    """An observer refused a file before it was committed. Nothing was published."""

    errno = EPERM


class ObserverFailed(TierError):
    """An observer that is needed for this failed, or is quarantined; `status` has its traceback."""


class ObserverNotFound(TierError, LookupError):
    """No observer is attached under this id."""


class UnderError(TierError):
    """The filesystem below a mount did not do what it was asked."""

    retryable = False


class UnderNotFound(UnderError, FileNotFoundError):
    """No such object or directory below the mount."""

    errno = ENOENT


class UnderRefused(UnderError, PermissionError):
    """The filesystem below the mount refused the credentials, or they don't allow this."""

    errno = EACCES


class UnderFull(UnderError, OSError):
    """No room below the mount. Nothing was published."""

    errno = ENOSPC

    retryable = True


class UnderUnreachable(UnderError, ConnectionError):
    """The filesystem below the mount does not answer, or not in time. Whether it acted later is not known."""

    errno = ECONNREFUSED

    retryable = True


class UnderChanged(UnderError):
    """An object below the mount is not the one that was asked for, or changed while it was read."""

    retryable = True


class UnderFailed(UnderError):
    """The filesystem below the mount failed in a way that would happen again."""
