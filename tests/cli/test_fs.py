"""`coprocessor fs` against a real server: what it does, writes, refuses, and leaves behind."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import coproc
import storage_tier.client
from coproc.cli import fs_bytes, main
from coproc.pools.base import python_path
from storage_tier.client import TierClient

BIG = bytes(range(256)) * 2000


@pytest.fixture(scope="module")
def cluster():
    with coproc.LocalCluster(memory_bytes=64 << 20) as made:
        yield made


@pytest.fixture(params=["near"])
def client(request, cluster, monkeypatch, tmp_path):
    """The tier, empty, as the commands reach it; what they write on this host goes below `tmp_path`."""
    monkeypatch.setenv("COPROC_ADDRESS", cluster.address)
    monkeypatch.chdir(tmp_path)
    if request.param == "far":
        far = functools.partial(TierClient, near=False)
        monkeypatch.setattr(storage_tier.client, "TierClient", far)
    with TierClient(cluster.address) as made:
        for mount in made.mounts():
            made.unmount(mount.path, discard=True)
        made.delete_prefix("/")
        yield made


near_and_far = pytest.mark.parametrize("client", ["near", "far"], indirect=True)


@pytest.fixture
def fs(client, capfdbinary):
    """`fs("ls", "/")`: (exit status, standard output, standard error), of the command in this process."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["fs", *map(str, arguments)])
        said = capfdbinary.readouterr()
        return ended.value.code, said.out, said.err.decode(errors="replace")

    return run


@pytest.fixture
def works(fs):
    """`works("ls", "/")`: its standard output as text; nothing was said on standard error."""

    def run(*arguments):
        code, out, errors = fs(*arguments)
        assert (code, errors) == (0, "")
        return out.decode()

    return run


@pytest.fixture
def fails(fs):
    """`fails(words, "ls", "/")`: it ended with 1 and a sentence a failure."""

    def run(words, *arguments, code=1, sentences=1):
        ended, out, errors = fs(*arguments)
        assert ended == code, errors
        assert "Traceback" not in errors
        lines = errors.splitlines()
        if code == 1:
            assert len(lines) == sentences, errors
            assert all(line.startswith("error: ") for line in lines)
        assert re.search(words, " ".join(errors.replace("│", " ").split())), errors
        return out.decode()

    return run


def local(**files):
    """Files in the working folder."""
    for name, content in files.items():
        Path(name).write_bytes(content)


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


# ---- bytes


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


# ---- where bytes are


def test_explains_where_bytes_are(client, works, tmp_path):
    client.put("/f", BIG)
    shown = works("explain", "/f", "/none")
    assert re.search(r"^  read +mapped: no copy$", shown, re.MULTILINE)
    assert re.search(r"^  read +(nowhere|virtual.*)$", shown, re.MULTILINE)
    assert "below no mount" in shown
    (tmp_path / "under").mkdir()
    (tmp_path / "under" / "x").write_bytes(BIG)
    assert "(async_through)" in works("mount", "/u", f"file://{tmp_path}/under")
    told = json.loads(works("explain", "--json", "/u/x"))
    assert (told[0]["route"], told[0]["near"]) == ("under-store", True)
    assert "loaded from there once" in works("explain", "/u/x")
    works("get", "/u/x", "x")
    assert json.loads(works("explain", "--json", "/u/x"))[0]["route"] == "mapped"
    works("free", "-r", "/u")
    assert json.loads(works("explain", "--json", "/u/x"))[0]["route"] == "under-store"
    works("unmount", "/u")


def test_explains_what_another_server_has(client, works):
    with coproc.LocalCluster(servers=2, memory_bytes=16 << 20) as cluster:
        first, second = (f"coproc://{server.address}" for server in cluster.servers)
        local(f=BIG)
        works("put", "f", "/f", "--address", first)
        (told,) = json.loads(works("explain", "--json", "/f", "--address", second))
        assert (told["route"], [holder["here"] for holder in told["holders"]]) == ("peer", [False])
        assert f"held by  {first} (heard of " in works("explain", "/f", "--address", second)
        works("get", "/f", "back", "--address", second)
        assert Path("back").read_bytes() == BIG
        (told,) = json.loads(works("explain", "--json", "/f", "--address", second))
        assert (told["route"], len(told["holders"])) == ("mapped", 2)


@pytest.mark.parametrize("client", ["far"], indirect=True)
def test_explains_that_it_is_far(client, works):
    client.put("/f", BIG)
    shown = works("explain", "/f")
    assert "from here over the network" in shown
    assert "cannot read the asked server's memory" in " ".join(shown.split())


def test_pins_persists_and_frees(client, works, fails, tmp_path):
    (tmp_path / "under").mkdir()
    local(f=BIG)
    works("mount", "/u", f"file://{tmp_path}/under", "--write-type", "must_cache")
    works("put", "f", "/u/")
    fails("cannot be freed: it is not persisted", "free", "/u/f")
    works("persist", "/u/f", "--timeout", "30")
    assert (tmp_path / "under" / "f").read_bytes() == BIG
    works("pin", "-r", "/u")
    assert works("ls", "-l", "/u").startswith("-ps-")
    fails("pinned", "free", "/u/f")
    works("unpin", "/u/f")
    works("free", "/u/f")
    client.put("/x", b"")
    fails("below no mount", "persist", "/x")


# ---- mounts and observers


def test_mounts(client, works, fails, tmp_path):
    (tmp_path / "under").mkdir()
    url = f"file://{tmp_path}/under"
    Path("options.json").write_text("{}")
    works("mount", "/m", url, "--options-file", "options.json")
    assert works("mounts") == f"/m  async_through  {url}\n"
    assert json.loads(works("mounts", "--json"))[0]["write_type"] == "async_through"
    assert works("ls", "-l").startswith("m---")
    fails("mount point of .* already", "mount", "/m", url)
    client.put("/f", b"")
    client.put("/d/f", b"")
    fails("/f", "mount", "/f", url)
    fails("/d is not empty", "mount", "/d", url)
    fails("there is no such directory", "mount", "/x", f"file://{tmp_path}/nowhere")
    fails("no filesystem is known for nonsense://", "mount", "/x", "nonsense://a")
    fails("--write-type is one of", "mount", "/x", url, "--write-type", "magic", code=2)
    fails("looks like NAME=VALUE", "mount", "/x", url, "--option", "=3", code=2)
    Path("options.json").write_text("[]")
    fails("one JSON object", "mount", "/x", url, "--options-file", "options.json", code=2)
    works("unmount", "/m")
    fails("/m", "unmount", "/m")
    assert works("mounts") == ""


def test_an_under_store_that_refuses_credentials(client, fails):
    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"<Error><Code>InvalidAccessKeyId</Code><Message>no</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            options = {"key": "k", "secret": "verysecret", "endpoint_url": f"http://127.0.0.1:{server.server_port}"}
            Path("options.json").write_text(json.dumps(options))
            fails("s3://bucket.*refuse", "mount", "/s", "s3://bucket", "--options-file", "options.json")
        finally:
            server.shutdown()
            thread.join()
    assert client.mounts() == []


def test_observers(client, works, fails):
    client.make_directory("/d")
    columns = '{"x": "int64"}'
    assert works("attach", "/d", "validate", f"columns={columns}", "--name", "schema") == "/d  schema  running\n"
    assert re.match(r"/d  schema\n  observer +validate\n  state +running\n", works("observers", "/d"))
    (told,) = json.loads(works("observers", "--json"))
    assert told["parameters"] == {"columns": {"x": "int64"}}
    local(f=b"no columns")
    fails("/d/f is not an Arrow or Parquet file", "put", "f", "/d/f")
    fails("there is no observer 'magic'", "attach", "/d", "magic")
    fails("needs either tensors", "attach", "/d", "validate")
    fails("/nowhere", "attach", "/nowhere", "validate", f"columns={columns}")
    fails("no observer 'magic'", "detach", "/d", "magic")
    works("detach", "/d", "schema")
    assert works("observers") == ""
    works("put", "f", "/d/f")


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
