"""`coprocessor fs`: bytes go in and come out, whole or not at all."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import storage_tier.client
from coproc.cli import fs_bytes
from storage_tier.client import TierClient

from . import fs_commands
from .fs_commands import BIG, local

client = fs_commands.client
cluster = fs_commands.cluster
fails = fs_commands.fails
fs = fs_commands.fs
works = fs_commands.works


near_and_far = pytest.mark.parametrize("client", ["near", "far"], indirect=True)


@near_and_far
@pytest.mark.parametrize("whole_bytes", [1 << 30, 1000])
def test_bytes_come_back_as_they_went(client, works, fs, monkeypatch, whole_bytes):
    monkeypatch.setattr(fs_bytes, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(fs_bytes, "WHOLE_BYTES", whole_bytes)
    local(big=BIG, empty=b"")
    works("put", "big", "empty", "/")
    works("put", "big", "/a/b/", "--metadata", "step=3", "--metadata", "by=me", "--ttl", "1000", "--pin")
    info = client.stat("/a/b/big")
    assert (dict(info.metadata), info.pinned, info.expires_ns is not None) == ({"step": 3, "by": "me"}, True, True)
    assert fs("cat", "/big", "/empty", "/a/b/big") == (0, BIG + BIG, "")
    assert fs("get", "/big", "-") == (0, BIG, "")
    works("get", "/big", "back")
    works("get", "/big", "/empty", ".", "--force")
    works("get", "/a/b/big", "deep/down/")
    assert [Path(name).read_bytes() for name in ("back", "big", "empty", "deep/down/big")] == [BIG, BIG, b"", BIG]
    works("get", "/big", "/dev/null")
    works("put", "/proc/self/status", "/status")
    assert client.open("/status").data[:5] == b"Name:"


@near_and_far
def test_standard_input_becomes_a_file(client, works, monkeypatch):
    monkeypatch.setattr(fs_bytes, "PIECE_BYTES", 100_000)
    for content in (BIG, b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        works("put", "-", "/in", "--force")
        with client.open("/in") as opened:
            assert opened.data == content


def test_folders_go_and_come_back(client, works, fs):
    for name, content in (("run/a", b"1"), ("run/sub/b", BIG), ("run/sub/c d", b"")):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    Path("run/empty").mkdir()
    assert fs("put", "run", "/r")[0] == 1
    works("put", "-r", "run", "/runs/one")
    works("mkdir", "/runs/two")
    works("put", "-r", "run", "/runs/two")
    assert works("find", "/runs/two/run").split("\n")[:-1] == [
        *("/runs/two/run/a", "/runs/two/run/empty", "/runs/two/run/sub"),
        *("/runs/two/run/sub/b", "/runs/two/run/sub/c d"),
    ]
    assert fs("get", "/runs/one", "out")[0] == 1
    works("get", "-r", "/runs/one", "out")
    done = subprocess.run(["diff", "-r", "run", "out"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    Path("run/link").symlink_to("/")
    os.mkfifo("run/pipe")
    code, _, errors = fs("put", "-r", "--force", "run", "/runs/one")
    assert code == 0
    assert sorted(line.split(" is ")[0] for line in errors.splitlines()) == ["warning: run/link", "warning: run/pipe"]


def test_nothing_is_replaced_unasked(client, works, fails):
    local(one=b"1", two=b"22")
    works("put", "one", "/f")
    fails("a file at /f already.*--force", "put", "two", "/f")
    fails("has version .*, and version 0 was expected", "put", "two", "/f", "--expect-version", 0)
    works("put", "two", "/f", "--expect-version", client.stat("/f").version)
    works("put", "one", "/f", "--force")
    assert client.stat("/f").size_bytes == 1
    fails("two: there is a file already, which --force replaces", "get", "/f", "two")
    assert Path("two").read_bytes() == b"22"
    Path("two").chmod(0o600)
    works("get", "/f", "two", "-f")
    assert (Path("two").read_bytes(), Path("two").stat().st_mode & 0o777) == (b"1", 0o600)


def test_no_half_file_is_left(client, fails, fs, monkeypatch):
    client.put("/f", BIG)
    local(big=BIG)
    real, calls = fs_bytes.write_all, []

    def interrupted(fd, piece):
        real(fd, piece[:1000])
        calls.append(fd)
        raise OSError(28, "No space left on device") if len(calls) == 1 else KeyboardInterrupt

    monkeypatch.setattr(fs_bytes, "write_all", interrupted)
    fails("No space left on device", "get", "/f", "here")
    code, _, errors = fs("get", "/f", "big", "--force")
    assert (code, errors) == (130, "error: interrupted\n")
    assert os.listdir() == ["big"]
    assert Path("big").read_bytes() == BIG

    class Broken(io.RawIOBase):
        given = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            self.given += 1
            if self.given > 3:
                raise OSError(5, "Input/output error")
            buffer[:1000] = bytes(1000)
            return 1000

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Broken(), 1000)))
    fails("Input/output error", "put", "-", "/g")
    fails("nothing at /g", "stat", "/g")
    assert client.status().reservation_count == 0


def test_a_large_file_that_is_replaced_meanwhile_is_one_version(client, works, monkeypatch):
    """From another host it comes in ranges; the second try gets the new version whole."""
    monkeypatch.setattr(fs_bytes, "PIECE_BYTES", 1000)
    monkeypatch.setattr(fs_bytes, "WHOLE_BYTES", 1000)
    client.put("/f", bytes(5000))
    real = TierClient.read

    def read(self, path, at, *rest, **named):
        if at == 2000 and client.stat("/f").size_bytes == 5000:
            client.put("/f", b"x" * 2500, overwrite=True)
        return real(self, path, at, *rest, **named)

    monkeypatch.setattr(TierClient, "read", read)
    monkeypatch.setattr(storage_tier.client, "TierClient", functools.partial(TierClient, near=False))
    works("get", "/f", "here")
    assert Path("here").read_bytes() == b"x" * 2500
