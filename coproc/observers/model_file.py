"""A model as a safetensors file in a sealed memfd: the header, then the parameters, copied once."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping

import numpy as np

from coproc.layout import Flat, ParamLayout
from storage_tier.observers.safetensors_header import make_header
from storage_tier.observers.sealed import seal

# As long as any version can be, so that a file's size does not depend on it.
_VERSION_DIGITS = 20


def size_bytes(layout: ParamLayout, metadata: Mapping[str, str]) -> int:
    """Of the file with these metadata and a version."""
    return len(_header(layout, metadata, 0)) + 4 * layout.size


def write(layout: ParamLayout, metadata: Mapping[str, str], read: Callable[[Flat], int]) -> tuple[int, int]:
    """Have `read` put one whole version into a vector (P,) and tell its number; (sealed memfd, number).

    The memfd is the caller's to close.
    """
    start = len(_header(layout, metadata, 0))
    fd = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, start + 4 * layout.size)
        with mmap.mmap(fd, 0) as mapped:
            flat = np.frombuffer(mapped, np.float32, layout.size, start)
            try:
                version = read(flat)
            finally:
                del flat  # or the map could not be closed
        os.pwrite(fd, _header(layout, metadata, version), 0)
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd, version


def _header(layout: ParamLayout, metadata: Mapping[str, str], version: int) -> bytes:
    number = str(version)
    tensors = ((name, "F32", shape) for name, shape in layout.shapes.items())
    return make_header(tensors, {**metadata, "version": number}, _VERSION_DIGITS - len(number))
