"""The line in forked children."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from storage_tier import errors
from storage_tier.client import TierClient

FORK = """
import os, signal, sys
from storage_tier.client import TierClient

address, near, rest = sys.argv[1], sys.argv[2] == "near", sys.argv[3]
client = TierClient(address, near=near)
client.put("/fork/parent", bytes(3_000_000))
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        # The parent's client, and one that the child makes: both work.
        for mine in (client, TierClient(address), TierClient(address, near=False)):
            with mine.open("/fork/parent") as file:
                assert file.size_bytes == 3_000_000 and not any(file.data)
            mine.put(f"/fork/{number}", bytes(2_000_000), overwrite=True)
            assert mine.stat(f"/fork/{number}").size_bytes == 2_000_000
        if os.fork() == 0:
            client.put(f"/fork/grandchild-{number}", b"x")
            os._exit(0)
        assert os.wait()[1] == 0
        if rest == "exit":
            sys.exit(0)  # all is collected
        os._exit(0)
    children.append(pid)
    client.stat("/fork/parent")
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
client.put("/fork/after", b"x")
"""


@pytest.mark.parametrize(("near", "rest"), [("near", "exit"), ("far", "_exit")])
def test_a_child_uses_the_client_of_its_parent(shared_server: object, near: str, rest: str) -> None:
    with TierClient(shared_server.address) as client:
        client.delete_prefix("")
        command = [sys.executable, "-c", FORK, shared_server.address, near, rest]
        subprocess.run(command, check=True, timeout=60)
        names = [info.path.removeprefix("/fork/") for info in client.list("/fork")]
        assert names == ["0", "1", "2", "after", "grandchild-0", "grandchild-1", "grandchild-2", "parent"]


STRANGER = """
import os, signal, sys
from storage_tier.client import TierClient
from storage_tier.errors import Unsupported
from storage_tier.wire import channel

known, other = sys.argv[1:]
client, unused = TierClient(known), TierClient(other)
given = TierClient(channel("127.0.0.1", int(other.rpartition(":")[2])))
client.status(), given.status()
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    client.status()
    for stranger in (unused, TierClient(other), given, TierClient(known, token="x")):
        try:
            stranger.status(timeout_s=5)
        except Unsupported as error:
            assert "forked" in str(error) and "spawn" in str(error), error
        else:
            raise AssertionError(stranger)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
unused.status()
"""


def test_a_child_is_told_what_it_cannot_reach(shared_server: object, serve: Callable[..., object]) -> None:
    command = [sys.executable, "-c", STRANGER, shared_server.address, serve().address]
    subprocess.run(command, check=True, timeout=60)


RESTART = """
import os, signal, sys
from storage_tier.client import TierClient

clients = [TierClient(sys.argv[1], near=True), TierClient(sys.argv[1], near=False)]
for client in clients:
    client.put("/a", b"x", overwrite=True)
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    for client in clients:
        client.stat("/a")
    print("ready", flush=True)
    sys.stdin.readline()
    for client in clients:
        print(client.stat("/a").path, flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_child_whose_server_is_started_anew(serve: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    with subprocess.Popen(
        [sys.executable, "-c", RESTART, server.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "ready\n"
        server.kill()
        assert (server.directory / ".tmp-line").exists()
        server.start()
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.read() == "/a\n/a\n", "who can read the nonce finds it again"
        assert parent.wait(60) == 0
    with TierClient(server.address, near=False) as far:
        far.stat("/a")
        monkeypatch.setattr("storage_tier.client.way.grpc_was_forked", lambda: True)
        monkeypatch.setattr("storage_tier.line._FRESH_S", 0.0)  # the server is stopped soon after its answer
        with TierClient(server.address, near=False) as child:
            child.stat("/a")
            assert server.stop() == 0
            with pytest.raises(errors.Unreachable, match=r"started anew.*spawn"):
                child.stat("/a")
    assert not (server.directory / ".tmp-line").exists()
