"""`coprocessor fs`: where bytes are, mounts and observers."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import coproc

from . import fs_commands
from .fs_commands import BIG, local

client = fs_commands.client
cluster = fs_commands.cluster
fails = fs_commands.fails
fs = fs_commands.fs
works = fs_commands.works


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
