"""URLs, paths and construction of the filesystem: all that needs no server."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import tomllib
from pathlib import Path, PurePosixPath

import fsspec
import pytest
from fsspec.core import url_to_fs

from storage_tier.errors import InvalidAddress, InvalidPath, InvalidRequest
from storage_tier.filesystem import TierFileSystem

# As the entry point does where the package is installed.
fsspec.register_implementation("tier", TierFileSystem, clobber=True)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "/"),
        ("/", "/"),
        ("a", "/a"),
        ("/a/b", "/a/b"),
        ("a/b/", "/a/b"),
        ("//a//b///c", "/a/b/c"),
        ("tier://h:1/a/b", "/a/b"),
        ("tier://h:1", "/"),
        ("tier://h:1/", "/"),
        ("tier://h:1,g:2/a", "/a"),
        ("tier://[::1]:7/a/", "/a"),
        ("tier:///a/b", "/a/b"),
        ("tier:/a", "/a"),
        ("tier::a", "/a"),
        ("/a/../b", "/a/../b"),
        (PurePosixPath("/a/b"), "/a/b"),
        (["tier://h:1/a", "b/"], ["/a", "/b"]),
    ],
)
def test_paths(given: object, path: object) -> None:
    assert TierFileSystem._strip_protocol(given) == path


@pytest.mark.parametrize("given", ["tier://models/a", "tier://h", "tier://h:x/a", 7, None, b"/a"])
def test_what_is_no_path(given: object) -> None:
    with pytest.raises(InvalidPath):
        TierFileSystem._strip_protocol(given)


@pytest.mark.parametrize(("path", "parent"), [("/a/b", "/a"), ("/a", "/"), ("/", "/"), ("tier://h:1/a/b", "/a")])
def test_parents(path: str, parent: str) -> None:
    assert TierFileSystem._parent(path) == parent


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("tier://127.0.0.1:4711/a", "127.0.0.1:4711"),
        ("tier://h:1,g:2/a", "h:1,g:2"),
    ],
)
def test_a_url_leads_to_its_servers_and_back(url: str, servers: str) -> None:
    fs, path = url_to_fs(url, skip_instance_cache=True)
    assert isinstance(fs, TierFileSystem)
    assert fs.address == f"coproc://{servers}"
    assert path == "/a"
    assert fs.unstrip_protocol(path) == fs.unstrip_protocol(url) == url
    assert fs.fsid == f"tier_{servers}"


def test_an_ipv6_host() -> None:
    # Not by URL: fsspec takes '::' for the link between chained filesystems.
    fs = TierFileSystem("::1", 7, skip_instance_cache=True)
    assert fs.address == "coproc://[::1]:7"
    assert fs._get_kwargs_from_urls(fs.unstrip_protocol("/a")) == {"host": "::1", "port": 7}


def test_a_url_without_servers_takes_them_from_the_options() -> None:
    fs, path = url_to_fs("tier:///a", host="h", port=1, skip_instance_cache=True)
    assert (fs.address, path) == ("coproc://h:1", "/a")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "needs the address"),
        ({"host": "h"}, "needs a port"),
        ({"host": "h", "port": 1, "address": "coproc://h:1"}, "needs the address"),
        ({"address": "h:1"}, "coproc://"),
        ({"host": "h", "port": 99_999}, "port must be"),
    ],
)
def test_addresses_that_cannot_be(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidAddress, match=sentence):
        TierFileSystem(**arguments)


def test_a_token_that_cannot_be() -> None:
    with pytest.raises(InvalidRequest, match="token"):
        TierFileSystem("h", 1, token="two words")


def test_making_one_opens_nothing() -> None:
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    fs = fsspec.filesystem("tier", host="192.0.2.1", port=9, token="t", skip_instance_cache=True)
    again = pickle.loads(pickle.dumps(fs))
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
    assert again == fs
    assert again.address == fs.address
    assert hash(again) == hash(fs)


def test_the_same_arguments_are_the_same_filesystem() -> None:
    one = fsspec.filesystem("tier", host="192.0.2.1", port=9)
    assert one is fsspec.filesystem("tier", host="192.0.2.1", port=9)
    assert one != fsspec.filesystem("tier", host="192.0.2.1", port=10)
    TierFileSystem.clear_instance_cache()


def test_json_keeps_the_token_only_if_asked() -> None:
    fs = TierFileSystem("h", 1, token="secret-word", tls={"ca": "/ca.pem"}, skip_instance_cache=True)
    told = json.loads(fs.to_json(include_password=False))
    assert "secret-word" not in json.dumps(told)
    assert told["tls"] == {"ca": "/ca.pem"}
    again = fsspec.AbstractFileSystem.from_json(fs.to_json())
    assert isinstance(again, TierFileSystem)
    assert again.storage_options["token"] == "secret-word"
    TierFileSystem.clear_instance_cache()


def test_the_package_says_that_it_has_the_protocol() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["fsspec.specs"] == {"tier": "storage_tier.filesystem:TierFileSystem"}


def test_looking_for_the_class_of_the_protocol_does_not_open_grpc() -> None:
    program = (
        "import sys, storage_tier.filesystem; assert not {'grpc', 'sqlalchemy', 's3fs', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
