"""Vectors as files: in the tier, whose memory they are on its host, or in a folder at any URL that fsspec knows."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from coproc.errors import ModelExists, ServerError
from coproc.layout import Flat
from coproc.modes.base import ModeSettings
from coproc.wire import as_coproc
from storage_tier.errors import TierError
from storage_tier.filesystem import TierFileSystem
from storage_tier.wire import trust

# Floats of each row that are summed before the next ones: they stay in a core's cache.
_PIECE = 1 << 15


class Vectors:
    """A folder of files, and folders of them, each file a float32 vector, raw. Used by one thread; a context manager.

    A file is there whole or not at all: the tier and object stores publish so, on a local disk it is renamed. Written
    again, it is replaced. Connects at its first call.
    """

    def __init__(self, place: Mapping[str, Any]) -> None:
        """`place` is what `place_of` gives. Does no I/O."""
        if place["url"] is None:
            self._fs: Any = TierFileSystem(
                address=place["address"],
                token=place["token"],
                tls=trust(place["tls_authority"]),
                skip_instance_cache=True,  # the connection ends with this object
            )
            self.folder = f"/modes/{place['name']}"
        else:
            self._fs, root = url_to_fs(place["url"])
            self.folder = f"{root.rstrip('/')}/{place['name']}"

    @property
    def near(self) -> bool:
        """Whether this process shares memory with the tier, and they are there. Asks the server once."""
        if not isinstance(self._fs, TierFileSystem):
            return False
        with _told(self.folder):
            return self._fs.client.near

    def make(self) -> None:
        """Make the folder.

        Raises:
            ModelExists: it is there.
        """
        with _told(self.folder):
            if self._fs.exists(self.folder):
                raise ModelExists(
                    f"there is a folder {self.folder} already, of another run that goes on or was left: choose another "
                    "name with --model, or remove it"
                )
            self._fs.makedirs(self.folder)

    def read(self, name: str) -> Flat:
        """A vector, read-only. On the tier's host a view of its memory, which stays; elsewhere a copy.

        Raises:
            ServerError, or what the tier raises: it is not there.
        """
        path = f"{self.folder}/{name}"
        with _told(path):
            if isinstance(self._fs, TierFileSystem):
                with self._fs.open(path) as file:
                    return np.frombuffer(file.getbuffer(), np.float32)
            return np.frombuffer(self._fs.cat_file(path), np.float32)

    def write(self, name: str, *rows: Flat) -> None:
        """Publish a vector, or several as one: on the tier's host one copy, straight into its memory."""
        path, content = f"{self.folder}/{name}", [row.data.cast("B") for row in rows]
        with _told(path):
            if isinstance(self._fs, TierFileSystem):
                self._fs.pipe_file(path, content)
            elif isinstance(self._fs, LocalFileSystem):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                part = f"{path}.{uuid.uuid4().hex}"
                with open(part, "wb", buffering=0) as file:
                    for each in content:
                        _write_all(file, each)
                os.replace(part, path)
            else:
                self._fs.pipe_file(path, b"".join(content))

    def remove(self, names: Iterable[str]) -> None:
        """Remove vectors, where they are there. A round trip each."""
        for name in names:
            with contextlib.suppress(FileNotFoundError), _told(name, missing=True):
                self._fs.rm_file(f"{self.folder}/{name}")

    def remove_folder(self, name: str = "") -> None:
        """Remove a folder of this one, or this one, with all in it, if it is there. One round trip in the tier."""
        path = f"{self.folder}/{name}".rstrip("/")
        with contextlib.suppress(FileNotFoundError), _told(path, missing=True):
            if isinstance(self._fs, TierFileSystem):
                self._fs.client.remove_directory(path, recursive=True)
            else:
                self._fs.rm(path, recursive=True)

    def close(self) -> None:
        """Close the connection, where there is one; vectors that were read stay. Idempotent."""
        if isinstance(self._fs, TierFileSystem):
            self._fs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def place_of(settings: ModeSettings, url: str | None = None) -> dict[str, Any]:
    """Where a run's vectors are: in the tier, or below a URL. Plain values, so that it travels in a task."""
    plain = {name: getattr(settings, name) for name in ("address", "token", "tls_authority")}
    return {**plain, "url": url, "name": settings.model}


def weighted_mean(rows: Sequence[Flat], weights: Sequence[float]) -> Flat:
    """The mean of `rows` (n,) each, summed in the order given. Each is read once."""
    total = sum(weights)
    shares = [np.float32(weight / total) for weight in weights]
    out, product = np.empty_like(rows[0]), np.empty(_PIECE, np.float32)
    for start in range(0, out.size, _PIECE):
        part = out[start : start + _PIECE]
        np.multiply(rows[0][start : start + _PIECE], shares[0], out=part)
        for row, share in zip(rows[1:], shares[1:], strict=True):
            part += np.multiply(row[start : start + _PIECE], share, out=product[: part.size])
    return out


def _write_all(file: Any, content: memoryview) -> None:
    while content:
        content = content[file.write(content) :]


@contextlib.contextmanager
def _told(path: str, *, missing: bool = False) -> Iterator[None]:
    """What a store raises as an error of this package; with `missing` what is not there as it is."""
    try:
        yield
    except FileNotFoundError as error:
        if missing:
            raise
        raise ServerError(
            f"{path} should be there, and is not ({error}): was it removed while the run goes on?"
        ) from None
    except TierError as error:
        raise as_coproc(error) from None
    except OSError as error:
        raise ServerError(f"{path} cannot be read or written: {error}") from error
