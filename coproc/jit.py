"""Functions as machine code that runs without the interpreter lock, kept on disk for the next process.

Needs numba, the `server` extra, which is imported when the first function is compiled and not before.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from coproc.errors import Unsupported

_FREE_BYTES_FOR_CACHE = 64 << 20

_compiling = threading.RLock()
_made: dict[Callable[..., Any], Callable[..., Any]] = {}


def numba() -> Any:
    """The module.

    Raises:
        Unsupported: it is not installed.
    """
    try:
        import numba
    except ImportError as error:
        raise Unsupported("a server compiles with numba: pip install 'coproc[server]'") from error
    return numba


def compiled(function: Callable[..., Any], sources: Callable[[], Iterable[Path]]) -> Callable[..., Any]:
    """The function compiled, lazily: at the first call with arguments of each kind.

    The same object for whoever asks, from any thread. It releases the interpreter lock and checks nothing.

    Args:
        function: a module's function, in the part of Python that numba knows. A closure is never found again.
        sources: tells the files whose text decides what it does, its own among them. Asked once a function.

    Raises:
        Unsupported: numba is missing.
    """
    made = _made.get(function)
    if made is None:
        with _compiling:
            made = _made.get(function) or _made.setdefault(function, _decorated(function, sources()))
    return made


def _decorated(function: Callable[..., Any], sources: Iterable[Path]) -> Callable[..., Any]:
    """Decorate with the project's one set of options.

    Not fastmath: it would delete NaNs, make results depend on where a range is cut, and gains nothing. The
    numpy error model has no exception in a division, which would keep loops from being vector code.
    """
    module = numba()
    directory = cache_directory(sources)
    config = module.config
    # Read when a function is decorated. Not left set: it holds for every function of the process.
    before = config.CACHE_DIR
    config.CACHE_DIR = "" if directory is None else str(directory)
    try:
        made: Callable[..., Any] = module.njit(nogil=True, error_model="numpy", cache=directory is not None)(function)
    finally:
        config.CACHE_DIR = before
    return made


def cache_directory(sources: Iterable[Path]) -> Path | None:
    """Where what is compiled of these sources is kept: a directory of this user alone, or None if there can't be one.

    Its name says what the machine code was made of, since numba's cache looks only at the file of the
    function itself: all sources, numba, llvmlite, the processor. What is in it gets executed, so it is never
    shared.
    """
    import llvmlite.binding

    made_of = hashlib.sha256(
        f"{numba().__version__} {llvmlite.__version__} {llvmlite.binding.get_host_cpu_name()}".encode()
    )
    for path in sources:
        made_of.update(path.read_bytes())
    for root in _cache_roots():
        directory = root / f"compiled-{made_of.hexdigest()[:16]}"
        if _is_ours(root) and _is_ours(directory):
            return directory
    return None


def _cache_roots() -> Iterator[Path]:
    """$XDG_CACHE_HOME, ~/.cache, the directory for temporary files: the first that can be used."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        yield Path(named) / "coproc"
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        yield Path(home) / ".cache" / "coproc"
    yield Path(tempfile.gettempdir()) / f"coproc-{os.geteuid()}"


def _is_ours(directory: Path) -> bool:
    """Make a directory of mode 0700; whether it is one, belongs to this user, and has room."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(directory)
        room = os.statvfs(directory)
    except OSError:  # read-only, full, or not a directory: the next root may do
        return False
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & 0o077
        and os.access(directory, os.R_OK | os.W_OK | os.X_OK)
        and room.f_bavail * room.f_frsize >= _FREE_BYTES_FOR_CACHE
    )
