"""`coprocessor fs` against a real server: names, command lines that are wrong, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from coproc.pools.base import python_path

from . import fs_commands
from .fs_commands import BIG, local

client = fs_commands.client
cluster = fs_commands.cluster
fails = fs_commands.fails
fs = fs_commands.fs
works = fs_commands.works


# ---- names


def test_lists_names_and_what_is_known_of_them(client, works):
    client.put("/a/file", BIG, pinned=True, ttl_s=1000)
    client.make_directory("/a/folder")
    assert works("ls", "/a") == "file\nfolder/\n"
    assert works("ls") == "a/\n"
    file, folder = works("ls", "-l", "/a").splitlines()
    assert re.fullmatch(r"-p-t  v1  512\.0 kB  20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  file", file)
    assert re.fullmatch(r"d---   -         -  20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  folder/", folder)
    assert "512,000" in works("ls", "-l", "--bytes", "/a/file")
    assert works("ls", "/a", "/a/file") == "/a:\nfile\nfolder/\n/a/file:\nfile\n"
    (told,) = json.loads(works("ls", "--json", "/a/file"))
    assert (told["path"], told["size_bytes"], told["pinned"]) == ("/a/file", len(BIG), True)
    assert works("ls", "/a/folder") == ""


def test_tells_all_that_is_known_of_a_file(client, works, cluster):
    client.put("/a", b"12345", {"step": 3, "by": "me"})
    shown = works("stat", "/a")
    assert re.search(r"^  version +\d+$", shown, re.MULTILINE)
    assert re.search(r'^  metadata by +"me"$', shown, re.MULTILINE)
    (told,) = json.loads(works("stat", "/a", "--json"))
    assert told["metadata"] == {"step": 3, "by": "me"}
    assert told["locations"] == [cluster.address]


def test_finds_by_name_and_kind(client, works):
    client.put("/a/b/x.json", b"")
    client.put("/a/y.json", b"")
    assert works("find", "/a").split() == ["/a/b", "/a/b/x.json", "/a/y.json"]
    assert works("find", "--type", "f", "--name", "x*").split() == ["/a/b/x.json"]
    assert works("find", "/a/y.json").split() == ["/a/y.json"]
    lines = works("find", "--type", "d", "--json").splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["/a", "/a/b"]


def test_makes_moves_copies_and_removes(client, works, fails):
    fails("there is no directory /a", "mkdir", "/a/b")
    works("mkdir", "-p", "/a/b")
    fails("there is a directory at /a/b already", "mkdir", "/a/b")
    client.put("/a/file", b"one")
    works("cp", "/a/file", "/a/b")
    works("cp", "/a/file", "/a/b/other")
    works("mv", "/a/b/other", "/a/b/moved")
    works("cp", "-r", "/a", "/copy")
    works("cp", "/a/file", "/a/b/file", "/copy/b", "--force")
    assert [found.path for found in client.find("/copy")] == [
        *("/copy/b", "/copy/b/file", "/copy/b/moved", "/copy/file")
    ]
    fails("a directory: -r takes it", "cp", "/a", "/c")
    fails("cannot be copied into itself", "cp", "-r", "/a", "/a/b")
    fails("need a directory to go into", "mv", "/a/file", "/a/b", "/nowhere", code=2)
    fails("--force puts this over a file", "mv", "/a/file", "/a/b/")
    works("mv", "--force", "/a/file", "/a/b/")
    fails("/copy is not empty", "rm", "/copy")
    works("rm", "/copy/file")
    works("rm", "-r", "/copy", "/a/b")
    works("rm", "/a")
    assert client.list("/") == []


def test_everything_goes_only_when_it_is_asked_for_twice(client, works, fails):
    client.put("/a/b", b"")
    for name in ("/", "//"):
        ended = 2 if name == "/" else 1
        fails("'/' is everything|an empty", "rm", "-r", name, code=ended)
    fails("a path is empty", "rm", "-r", "", code=2)
    fails("'/' is everything", "rm", "--force", "/", code=2)
    assert client.exists("/a/b")
    fails("nothing at /c", "rm", "/c")
    works("rm", "--force", "/c", "/a/b/c")
    works("rm", "-r", "--force", "/")
    assert client.list("/") == []


def test_the_others_are_done_when_one_fails(client, fails):
    client.put("/a", b"")
    client.put("/b", b"")
    fails("nothing at /x", "rm", "/a", "/x", "/y/z", "/b", sentences=2)
    assert client.list("/") == []
    assert json.loads(fails("nothing at /x", "stat", "--json", "/x")) == []


# ---- bad input


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/a/../b", r"'\.\.'"),
        ("/a//b", "empty segment"),
        ("/a\0b", "control character"),
        ("/a/" + "x" * 300, "segment of 300 bytes"),
        ("/a/\udcff", "cannot be written as UTF-8"),
    ],
)
def test_names_that_cannot_be(fails, path, words):
    local(f=b"")
    for command in (["ls"], ["cat"], ["put", "f"], ["rm", "-r"], ["mkdir"], ["explain"]):
        fails(words, *command, path)


def test_directories_are_no_files(client, fails):
    client.make_directory("/d/e")
    local(f=b"")
    fails("/d is a directory", "cat", "/d")
    fails("/d is a directory", "get", "/d", "here")
    fails("a folder, which -r takes", "put", ".", "/x")
    fails("/d is not empty", "rm", "/d")
    fails("nowhere: No such file", "put", "nowhere", "/d")
    client.put("/f", b"")
    fails("nowhere/here: there is no such folder", "get", "/f", "nowhere/here/x")
    fails("/f", "put", "f", "/f/below")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ls", "--address", "127.0.0.1:1"], "coproc://HOST:PORT"),
        (["lss"], "lss"),
        (["cp", "/a"], "TARGET"),
        (["find", "--type", "x"], "--type is f, d or m"),
        (["put", "-r", "a", "/b", "--expect-version", "1"], "--expect-version is of one file"),
        (["put", "a", "/b", "--metadata", "x"], "NAME=VALUE"),
        (["put", "a", "b", "/nowhere"], "need a directory to go into"),
        (["get", "/a", "/b", "nowhere"], "need a folder to go into"),
    ],
)
def test_wrong_command_lines(fails, arguments, words):
    fails(words, *arguments, code=2)


def test_says_where_servers_are_to_be_named(fails, monkeypatch):
    fails("127.0.0.1:1", "ls", "/", "/a", "--address", "coproc://127.0.0.1:1")
    monkeypatch.delenv("COPROC_ADDRESS")
    fails("--address coproc://HOST:PORT, or set COPROC_ADDRESS", "ls", code=2)


def test_every_command_has_an_example(works):
    from coproc.cli.fs import COMMANDS

    names = {command.__name__ for _, commands in COMMANDS for command in commands}
    told = works("--help")
    for name in names:
        assert re.search(rf"\b{name}\b", told)
    assert all(f"Example: coprocessor fs {command.__name__}" in command.__doc__ for _, of in COMMANDS for command in of)


# ---- as processes


def process(*arguments, **streams):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "coproc", "fs", *arguments],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": python_path()},
        **streams,
    )


def test_a_reader_that_goes_is_no_error_to_speak_of(client):
    client.put("/f", BIG * 10)
    with process("cat", "/f", stdout=subprocess.PIPE) as cat:
        assert len(cat.stdout.read(10)) == 10
        cat.stdout.close()
        assert cat.stderr.read() == b""
        assert cat.wait(60) == 1


def test_ctrl_c_while_a_stream_goes_in(client):
    with process("put", "-", "/f", stdin=subprocess.PIPE, start_new_session=True) as put:
        # More than a pipe holds: when it is taken, the command reads.
        put.stdin.write(BIG)
        put.stdin.flush()
        put.send_signal(signal.SIGINT)
        assert put.stderr.read() == b"error: interrupted\n"
        assert put.wait(60) == 130
        put.stdin.close()
    assert client.list("/") == []
    assert client.status().reservation_count == 0
