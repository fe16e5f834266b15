"""A directory, memory, S3 over HTTP and other filesystems of fsspec as under-stores, for one suite."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage_tier.under.store import UnderStore

from .s3_endpoint import S3Endpoint

BUCKET = "of-the-module"


@dataclass
class Under:
    """A store, and a way to its objects that bypasses it."""

    store: UnderStore
    put: Callable[[str, bytes], None]
    get: Callable[[str], bytes | None]


class OneByOne(MemoryFileSystem):
    """An fsspec filesystem like any: not asynchronous, no upload that is atomic, no move, real directories."""

    protocol = "onebyone"
    cachable = False
    store: dict[str, object] = {}  # noqa: RUF012 - as fsspec has it
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix(f"{cls.protocol}://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        raise NotImplementedError


class Mover(OneByOne):
    """The same with a move, but only to a free name, as SFTP has it."""

    protocol = "mover"
    store: dict[str, object] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def mv(self, path1: str, path2: str, **kwargs: object) -> None:
        old, new = self._strip_protocol(path1), self._strip_protocol(path2)
        if new in self.store:
            raise FileExistsError(new)
        for name in [name for name in self.store if name == old or name.startswith(old + "/")]:
            self.store[new + name[len(old) :]] = self.store.pop(name)
        for name in [name for name in self.pseudo_dirs if name == old or name.startswith(old + "/")]:
            self.pseudo_dirs.remove(name)
            self.pseudo_dirs.append(new + name[len(old) :])


class Flat(OneByOne):
    """What gs: and abfs: are: objects that appear whole, and directories that are only parts of their names."""

    protocol = "gs"
    store: dict[str, object] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        MemoryFileSystem.pipe_file(self, path, value, mode)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise AssertionError("there are none to be made")

    mkdir = rmdir = makedirs


for kind in (OneByOne, Mover, Flat):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)


def under_file(root: Path) -> Under:
    def put(path: str, content: bytes) -> None:
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / path[1:]).write_bytes(content)

    def get(path: str) -> bytes | None:
        file = root / path[1:]
        return file.read_bytes() if file.is_file() else None

    return Under(UnderStore(f"file://{root}"), put, get)


def under_fsspec(protocol: str) -> Under:
    fs = fsspec.filesystem(protocol)
    fs.store.clear()
    fs.pseudo_dirs[:] = [""] if protocol == "gs" else ["", "/root"]

    def put(path: str, content: bytes) -> None:
        MemoryFileSystem.pipe_file(fs, "/root" + path, content)

    def get(path: str) -> bytes | None:
        found = fs.store.get("/root" + path)
        return None if found is None else found.getvalue()

    return Under(UnderStore(f"{protocol}://root"), put, get)


@pytest.fixture(scope="module")
def s3_store(s3_server: S3Endpoint) -> Iterator[UnderStore]:
    """One for all tests, for its library takes long to begin; each test has the bucket anew."""
    s3_server.make_bucket(BUCKET)
    made = UnderStore(f"s3://{BUCKET}/pre fix/x", s3_server.options)
    made.check()
    yield made
    made.close()
    s3_server.forget()


def under_s3(endpoint: S3Endpoint, store: UnderStore) -> Under:
    endpoint.forget()
    bucket = endpoint.make_bucket(BUCKET)
    return Under(
        store,
        lambda path, content: endpoint.put(bucket, "pre fix/x" + path, content),
        lambda path: endpoint.get(bucket, "pre fix/x" + path),
    )


@pytest.fixture(params=["file", "memory", "s3", "onebyone", "mover", "gs"])
def under(request: pytest.FixtureRequest, directory: Path) -> Iterator[Under]:
    if request.param == "file":
        made = under_file(directory)
    elif request.param == "s3":
        made = under_s3(request.getfixturevalue("s3"), request.getfixturevalue("s3_store"))
    else:
        made = under_fsspec(request.param)
    made.store.check(writable=True)
    yield made
    if request.param != "s3":
        made.store.close()


@pytest.fixture
def store(under: Under) -> UnderStore:
    return under.store


@pytest.fixture
def file() -> Iterator[Path]:
    with tempfile.NamedTemporaryFile() as made:
        yield Path(made.name)
