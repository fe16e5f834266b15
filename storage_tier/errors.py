"""Every error of storage_tier; each message is a sentence: what was expected and found, who, what to do.

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
 +-- Unsupported          asked for what this machine or this file system cannot do
 +-- Unreachable          no server answers (also a ConnectionError)
 +-- Unauthenticated      the token is missing or wrong
 +-- DeadlineExceeded     something did not happen in the time given (also a TimeoutError)
 +-- ServerFailed         a server failed in a way it did not foresee; its log has the traceback
"""

from __future__ import annotations


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


class BlockExists(TierError, FileExistsError):
    """The name is taken; a block never changes after it was committed."""


class CorruptBlock(TierError):
    """A file that is not a whole block. It is reported and never served."""


class ReservationLost(TierError):
    """The server no longer keeps the memory for this write."""


class RegionNotFound(TierError, FileNotFoundError):
    """No region of this name, or not readable by this process."""


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


class Unsupported(TierError):
    """Asked for what this machine or this file system cannot do."""


class Unreachable(TierError, ConnectionError):
    """No server answers at this address."""


class Unauthenticated(TierError, PermissionError):
    """The token is missing or wrong."""


class DeadlineExceeded(TierError, TimeoutError):
    """Something did not happen in the time given. Whether it happened later is not known."""


class ServerFailed(TierError):
    """A server failed in a way it did not foresee; its log has the traceback."""
