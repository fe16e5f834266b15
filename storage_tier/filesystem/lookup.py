"""The filesystem's address, its paths, and what is at them: no bytes of files."""

from __future__ import annotations

import hashlib
import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from storage_tier.errors import InvalidAddress, InvalidPath, PathNotDirectory, VersionConflict

if TYPE_CHECKING:
    from storage_tier.client import TierClient

DEFAULT_TIMEOUT_S = 60.0
# Where the token is that URLs have no place for; `coprocessor fs` looks there too.
TOKEN_VARIABLE = "COPROC_TOKEN"

_SLASHES = re.compile("//+")

Info = dict[str, Any]
"""What fsspec's `info` answers."""


class _TokenOfEnvironment:
    """As an attribute of a class: the token in the environment, now."""

    def __get__(self, instance: object, owner: type | None = None) -> str | None:
        return os.environ.get(TOKEN_VARIABLE) or None


class TierLookup(AbstractFileSystem):  # type: ignore[misc]
    """The filesystem for readers of its names. `TierFileSystem` reads and writes bytes, too.

    Nothing is cached. Where fsspec takes every error for "not there", only what is not there is: an unreachable server
    is told as one.
    """

    protocol = "tier"
    root_marker = "/"
    _token_of_environment = _TokenOfEnvironment()
    # fsspec gives out an instance again only where these are the same as when it was made.
    _extra_tokenize_attributes = ("_token_of_environment",)

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        address: str | None = None,
        token: str | None = None,
        tls: Any = None,
        near: bool | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **storage_options: Any,
    ) -> None:
        """Does no I/O.

        Args:
            host, port: one server; or, as the only argument, an address.
            address: of one or several: 'coproc://HOST:PORT[,HOST:PORT...]'.
            token: what the servers were started with; None takes that of COPROC_TOKEN, if it is set. Of these two only
                the one that was given goes along when this is pickled: the environment is each process's own.
            tls: when they speak TLS: a `TlsClient`, or its fields as a mapping, as files of settings have them.
            near: None finds out whether this is the server's host; False never touches shared memory; True insists.
            timeout_s: of each call. Opening a file that has to come from elsewhere first takes that long at most.
            storage_options: of fsspec itself.

        Raises:
            InvalidAddress, InvalidRequest.
        """
        super().__init__(**storage_options)
        if address is None and port is None and host is not None and "://" in host:
            address, host = host, None
        if (address is None) == (host is None):
            raise InvalidAddress("a tier filesystem needs the address of its servers: host= and port=, or address=")
        if address is None:
            if port is None:
                raise InvalidAddress(f"the server {host} needs a port: a tier has none that is always the same")
            address = f"coproc://[{host}]:{port}" if ":" in str(host) else f"coproc://{host}:{port}"
        token = self._token_of_environment if token is None else token
        self.address = address
        self.timeout_s = timeout_s
        self._identity = (address, token, tls, near, timeout_s)
        self.client = _client(address, token, tls, near)
        """What is underneath, for what fsspec has no words for: pin, persist, mount, attach, explain, ..."""
        # Nobody who opens a file by its URL closes a filesystem.
        weakref.finalize(self, self.client.close)

    def close(self) -> None:
        """Close this process's connection. Idempotent; a later call connects again; open files stay open."""
        self.client.close()

    @property
    def fsid(self) -> str:
        """Names the tier across sessions: its protocol and servers."""
        return f"tier_{self.address.partition('://')[2]}"

    def __eq__(self, other: object) -> bool:
        """Whether it does the same: that of another thread or process, or unpickled, too."""
        return isinstance(other, TierLookup) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self.address)

    def to_dict(self, *, include_password: bool = True) -> dict[str, Any]:
        """As fsspec; without the password means without the token."""
        made: dict[str, Any] = super().to_dict(include_password=include_password)
        if not include_password:
            made.pop("token", None)
        return made

    # ------------------------------------------------------------------- paths

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """'tier://HOST:PORT/a/b/' and 'a/b' are '/a/b'.

        Raises:
            InvalidPath: 'tier://a/b', where 'a' may be meant as a server or as a directory.
        """
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = stringify_path(path)
        if not isinstance(text, str):
            raise InvalidPath(f"a path must be a string like '/runs/a/00003', and {path!r:.100} was given")
        text = text.removeprefix("tier::")
        if text.startswith("tier:"):
            authority, text = _parts(text)
            if authority and not _has_port(authority):
                raise InvalidPath(
                    f"tier://{authority}{text} has no port: a URL is tier://HOST:PORT/path, or tier:///path where the "
                    "servers are known already"
                )
        return "/" + _SLASHES.sub("/", text).strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        text = stringify_path(path)
        authority = _parts(text)[0] if isinstance(text, str) and text.startswith("tier:") else ""
        if not authority or not _has_port(authority):
            return {}
        if "," in authority:
            return {"address": f"coproc://{authority}"}
        host, _, port = authority.rpartition(":")
        return {"host": host.removeprefix("[").removesuffix("]"), "port": int(port)}

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path, with the servers: whoever opens it finds the same file."""
        if name.startswith("tier://") and _parts(name)[0]:
            return name
        return f"tier://{self.address.partition('://')[2].rstrip('/')}{self._strip_protocol(name)}"

    # ----------------------------------------------------------------- looking

    def info(self, path: str, version: int | None = None, **kwargs: Any) -> Info:
        """What is at a path. One round trip.

        Returns:
            name, size (bytes), type ('file' or 'directory'), kind (the same, or 'mount'), version, created and mtime
            (seconds since 1970), created_ns, modified_ns, metadata, pinned, persisted ('not_needed', 'waiting' or
            'done'), expires_ns, and location: the addresses of the servers that hold the bytes.

        Raises:
            PathNotFound, PathNotDirectory, InvalidPath; VersionConflict: it has another version than asked for.
        """
        path = self._strip_protocol(path)
        found = describe(self.client.stat(path, locations=True, timeout_s=self.timeout_s))
        if version is not None and found["version"] != version:
            raise VersionConflict(f"{path} has version {found['version']}, and version {version} was asked for")
        return found

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """The entries of a directory, by name; of a file, the file. A round trip a thousand. `location` is empty.

        Raises:
            PathNotFound, InvalidPath.
        """
        path = self._strip_protocol(path)
        try:
            found = [describe(one) for one in self.client.list(path, timeout_s=self.timeout_s)]
        except PathNotDirectory:
            # A file, or else nothing at all, which this tells.
            found = [self.info(path)]
        return found if detail else [one["name"] for one in found]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """All files below a path, as fsspec; nothing where nothing is. A round trip a thousand, however deep."""
        path = self._strip_protocol(path)
        if maxdepth is not None:
            if maxdepth < 1:
                raise ValueError("maxdepth must be at least 1")
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        found: dict[str, Info] = {}
        try:
            for one in self.client.find(path, timeout_s=self.timeout_s):
                if withdirs or one.kind == "file":
                    found[one.path] = describe(one)
            if withdirs:
                found[path] = self.info(path)
        except PathNotDirectory:
            # A file, or else nothing at all: a name above it is that of a file.
            info = self._look(path)
            if info is not None:
                found[path] = info
        except FileNotFoundError:
            found = {}
        names = sorted(found)
        return {name: found[name] for name in names} if detail else names

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: str | Callable[[OSError], None] = "omit",
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As fsspec, but only what is not there is omitted: an unreachable server is no empty directory."""
        handler = _omit_missing if on_error == "omit" else on_error
        yield from super().walk(path, maxdepth=maxdepth, topdown=topdown, on_error=handler, **kwargs)

    def du(
        self, path: str, total: bool = True, maxdepth: int | None = None, withdirs: bool = False, **kwargs: Any
    ) -> Any:
        """As fsspec, without asking for each file. Bytes that several paths share count for each."""
        found = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
        sizes = {name: info["size"] for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    def exists(self, path: str, version: int | None = None, **kwargs: Any) -> bool:
        """Whether something is at a path, or exactly this version. A path that cannot be has nothing.

        Raises:
            Unreachable, DeadlineExceeded, Unauthenticated, ...: it is not known.
        """
        found = self._look(path)
        return found is not None and version in (None, found["version"])

    def isdir(self, path: str) -> bool:
        """Whether a directory or mount point is at a path. Raises as `exists`."""
        found = self._look(path)
        return found is not None and found["type"] == "directory"

    def isfile(self, path: str) -> bool:
        """Whether a file is at a path. Raises as `exists`."""
        found = self._look(path)
        return found is not None and found["type"] == "file"

    def created(self, path: str) -> datetime:
        """When the first version was committed."""
        return _moment(self.info(path)["created_ns"])

    def modified(self, path: str) -> datetime:
        """When this version was committed."""
        return _moment(self.info(path)["modified_ns"])

    def checksum(self, path: str) -> int:
        """Another number with each version of each path: a version's bytes never change."""
        return int(self.ukey(path), 16)

    def ukey(self, path: str) -> str:
        """The same in letters."""
        info = self.info(path)
        # The time tells apart tiers that were made anew and count from 1 again.
        state = repr((info["name"], info["type"], info["version"], info["modified_ns"], info["size"]))
        return hashlib.sha256(state.encode()).hexdigest()

    def _look(self, path: str) -> Info | None:
        """What is at a path, without its location; None where nothing is, or can be."""
        try:
            return describe(self.client.stat(self._strip_protocol(path), timeout_s=self.timeout_s))
        except (FileNotFoundError, NotADirectoryError, InvalidPath):
            return None


def _client(address: str, token: str | None, tls: Any, near: bool | None) -> TierClient:
    # Here and not above: it opens grpc, which who only looks for the class of a protocol does not need.
    from storage_tier.client import TierClient
    from storage_tier.wire import TlsClient

    if isinstance(tls, Mapping):
        fields: dict[str, Any] = {name: value if name == "server_name" else Path(value) for name, value in tls.items()}
        tls = TlsClient(**fields)
    return TierClient(address, token=token, tls=tls, near=near)


def describe(info: Any) -> Info:
    """A `FileInfo` as fsspec has it."""
    return {
        "name": info.path,
        "size": info.size_bytes,
        "type": "file" if info.kind == "file" else "directory",
        "kind": info.kind,
        "version": info.version,
        "created": info.created_ns / 1e9,
        "mtime": info.modified_ns / 1e9,
        "created_ns": info.created_ns,
        "modified_ns": info.modified_ns,
        "metadata": dict(info.metadata),
        "pinned": info.pinned,
        "persisted": info.persisted,
        "expires_ns": info.expires_ns,
        "location": list(info.locations),
    }


def _parts(url: str) -> tuple[str, str]:
    """Servers and path of 'tier://SERVERS/path'; no servers in 'tier:/path'."""
    rest = url.removeprefix("tier:")
    if not rest.startswith("//"):
        return "", rest
    servers, slash, path = rest[2:].partition("/")
    return servers, slash + path


def _has_port(servers: str) -> bool:
    return all(part.rpartition(":")[2].isdigit() for part in servers.split(","))


def _omit_missing(error: OSError) -> None:
    """For `walk`: what is not there has nothing below it. All else is told."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _moment(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns / 1e9, UTC)
