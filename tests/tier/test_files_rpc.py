"""Files over RPC: every verb, near and far; several servers of one catalog; messages that make no sense."""

from __future__ import annotations

import os
import select
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_tier import errors
from storage_tier.client import TierClient
from storage_tier.v1 import files_pb2 as pb
from storage_tier.v1 import files_pb2_grpc
from storage_tier.wire import TIER_ERRORS, channel

MIB = 1 << 20


def content(number: int, size_bytes: int) -> np.ndarray:
    """The bytes of file `number` in closed form."""
    return ((np.arange(size_bytes, dtype=np.uint32) * 31 + number * 7) % 251).astype(np.uint8)


def holds(client: TierClient, path: str, number: int, size_bytes: int) -> bool:
    with client.open(path) as file:
        return np.array_equal(np.frombuffer(file.data, np.uint8), content(number, size_bytes))


# ---- the verbs of one server


def test_directories(client: TierClient) -> None:
    assert client.make_directory("/a/b/c").kind == "directory"
    assert client.make_directory("/a/b/c").path == "/a/b/c"
    with pytest.raises(errors.PathExists):
        client.make_directory("/a/b", exist_ok=False)
    with pytest.raises(errors.PathNotFound, match="/x"):
        client.make_directory("/x/y", parents=False)
    with pytest.raises(errors.PathIsDirectory):
        client.open("/a/b")
    with pytest.raises(errors.PathIsDirectory):
        client.remove("/a/b")
    with pytest.raises(errors.DirectoryNotEmpty):
        client.remove_directory("/a")
    client.put("/a/b/file", b"x")
    with pytest.raises(errors.PathNotDirectory):
        client.list("/a/b/file")
    with pytest.raises(errors.PathNotDirectory):
        client.remove_directory("/a/b/file")
    assert [info.path for info in client.find("/a")] == ["/a/b", "/a/b/c", "/a/b/file"]
    client.remove_directory("/a/b/c")
    client.remove_directory("/a", recursive=True)
    assert client.list("/") == []
    assert client.stat("/").is_directory
    assert client.status().block_count == 0


def test_rename_and_copy(client: TierClient) -> None:
    client.put("/a/1", content(1, 100_000), {"k": 1})
    client.put("/a/2", b"two")
    assert client.rename("/a/1", "/a/3").metadata == {"k": 1}
    assert holds(client, "/a/3", 1, 100_000)
    with pytest.raises(errors.PathExists):
        client.rename("/a/3", "/a/2")
    assert client.rename("/a/3", "/a/2", overwrite=True).path == "/a/2"
    assert client.rename("/a", "/b").kind == "directory"
    used_bytes = client.status().memory_used_bytes
    assert client.copy("/b/2", "/b/4").size_bytes == 100_000
    assert client.status().memory_used_bytes == used_bytes, "both name the same bytes"
    with pytest.raises(errors.PathExists):
        client.copy("/b/2", "/b/4")
    client.copy("/b/2", "/b/4", overwrite=True)
    client.remove("/b/2")
    assert holds(client, "/b/4", 1, 100_000)
    with pytest.raises(errors.PathNotFound):
        client.rename("/b/2", "/b/5")
    with pytest.raises(errors.InvalidRequest):
        client.rename("/b", "/b/c")


def test_remove_only_a_version(client: TierClient) -> None:
    version = client.put("/a", b"x").version
    with pytest.raises(errors.VersionConflict):
        client.remove("/a", expected_version=version + 1)
    client.remove("/a", expected_version=version)
    assert not client.exists("/a")


def test_life(client: TierClient) -> None:
    info = client.put("/a", content(1, 100_000), pinned=True, ttl_s=1000)
    assert info.pinned
    assert info.expires_ns is not None
    assert 990 < (info.expires_ns - info.modified_ns) / 1e9 <= 1000
    assert not client.unpin("/a").pinned
    assert client.pin("/a").pinned
    assert client.set_ttl("/a", None).expires_ns is None
    assert client.set_ttl("/a", 50).expires_ns is not None
    assert client.stat("/a").version == info.version
    with pytest.raises(errors.InvalidRequest, match="pinned"):
        client.free("/a")
    client.unpin("/a")
    with pytest.raises(errors.InvalidRequest, match="/a"):
        client.free("/a")
    with pytest.raises(errors.NotMounted):
        client.persist("/a")
    with pytest.raises(errors.InvalidRequest):
        client.replicate("/a", 2)
    assert len(client.replicate("/a", 1)) == 1
    for ttl_s in (0, -1, float("nan"), "soon"):
        with pytest.raises(errors.InvalidRequest, match="time to live"):
            client.set_ttl("/a", ttl_s)
    found = client.explain("/a")
    assert found.info == client.stat("/a")
    assert (found.route, len(found.holders), found.holders[0].here) == ("mapped", 1, True)
    assert found.sentences
    nothing = client.explain("/nothing")
    assert (nothing.info, nothing.route) == (None, "nowhere")
    assert client.stat("/a", locations=True).locations == (client.files_status().address,)


def test_a_mount(client: TierClient, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"before")
    made = client.mount("/lake", f"file://{tmp_path}", write_type="cache_through")
    try:
        assert made == client.mounts()[0]
        assert (made.path, made.write_type) == ("/lake", "cache_through")
        assert client.stat("/lake").kind == "mount"
        assert [info.path for info in client.list("/lake")] == ["/lake/there"]
        with client.open("/lake/there") as file:
            assert file.data == b"before"
        assert client.put("/lake/new", content(2, 100_000)).persisted == "done"
        assert (tmp_path / "new").read_bytes() == content(2, 100_000).tobytes()
        assert client.free("/lake/new")
        assert client.explain("/lake/new").route == "under-store"
        assert holds(client, "/lake/new", 2, 100_000)
        assert client.persist("/lake/new").persisted == "done"
        with pytest.raises(errors.MountConflict):
            client.mount("/lake", f"file://{tmp_path}")
        with pytest.raises(errors.InvalidRequest, match="write type"):
            client.mount("/other", f"file://{tmp_path}", write_type="sideways")
        with pytest.raises(errors.InvalidRequest, match="JSON"):
            client.mount("/other", f"file://{tmp_path}", {"x": object()})
        with pytest.raises(errors.UnderNotFound):
            client.mount("/other", f"file://{tmp_path}/nowhere")
    finally:
        client.unmount("/lake", discard=True)
    assert client.mounts() == []
    assert (tmp_path / "new").exists()
    client.make_directory("/plain")
    with pytest.raises(errors.MountConflict):
        client.unmount("/plain")


def test_observers_that_are_not_there(client: TierClient) -> None:
    client.make_directory("/a")
    with pytest.raises(errors.InvalidRequest, match="nobody"):
        client.attach("/a", "nobody")
    with pytest.raises(errors.PathNotFound):
        client.detach("/a", "nobody")
    with pytest.raises(errors.InvalidRequest, match="JSON"):
        client.attach("/a", "nobody", ["no", "object"])
    assert client.attachments() == []


def test_an_observer_refuses_a_file(client: TierClient) -> None:
    client.make_directory("/a")
    made = client.attach("/a", "validate", {"columns": {"x": "int64"}}, name="guard")
    try:
        assert (made.directory, made.name, made.observer) == ("/a", "guard", "validate")
        for size_bytes in (10, 100_000):
            with pytest.raises(errors.Vetoed, match="/a/file"):
                client.put("/a/file", bytes(size_bytes))
        assert client.list("/a") == []
        assert client.status().memory_used_bytes == 0
        (shown,) = client.attachments()
        assert (shown.state, shown.parameters) == ("running", {"columns": {"x": "int64"}})
        with pytest.raises(errors.PathExists):
            client.attach("/a", "validate", {"columns": {"x": "int64"}}, name="guard")
    finally:
        client.detach("/a", "guard")
    assert client.attachments() == []
    client.put("/a/file", b"anything")


def test_metadata_that_no_file_keeps(client: TierClient) -> None:
    too_much = {"x": "y" * 10_000_000}
    for metadata in ({1: "x"}, {"x": b"y"}, {"x": [1]}, {"x": 1 << 63}, {"x": "\udcff"}, ["x"], too_much):
        with pytest.raises(errors.InvalidRequest, match="metadata"):
            client.put("/a", b"", metadata)
    with pytest.raises(errors.InvalidRequest, match="metadata"):
        client.put("/a", b"", {"x": "y" * 70_000})
    assert not client.exists("/a")


def test_a_version_that_is_no_number(client: TierClient) -> None:
    for version in (-1, "1", 1 << 63):
        with pytest.raises(errors.InvalidRequest, match="version"):
            client.put("/a", b"", expected_version=version)


# ---- several servers


@pytest.fixture
def cluster(serve: Callable[..., object]) -> Iterator[list[object]]:
    """Three servers with one catalog."""
    root = Path(tempfile.mkdtemp(prefix=f"coproc-test-{os.getpid()}-", dir="/dev/shm"))
    servers = [serve(directory=root / str(number), catalog=f"sqlite:///{root}/catalog.sqlite") for number in range(3)]
    yield servers
    for server in servers:
        server.process.poll() is None and server.stop()
    shutil.rmtree(root)


def wait_for(ask: Callable[[], bool]) -> bool:
    for _ in range(100):
        try:
            return ask()
        except (errors.BytesLost, errors.Unreachable):
            select.select([], [], [], 0.05)
    return ask()


def address_of(servers: list[object]) -> str:
    return "coproc://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)


@pytest.mark.parametrize("size_bytes", [10, 3 * MIB + 5])
def test_any_server_answers_for_any_path(cluster: list[object], size_bytes: int) -> None:
    clients = [TierClient(server.address) for server in cluster]
    clients[0].put("/a/b", content(1, size_bytes), {"k": "v"})
    for client in clients:
        assert client.stat("/a/b").metadata == {"k": "v"}
        assert [info.path for info in client.list("/a")] == ["/a/b"]
    assert clients[1].explain("/a/b").route == "peer"
    assert clients[1].stat("/a/b", locations=True).locations == (cluster[0].address,)
    for client in clients[1:]:
        assert holds(client, "/a/b", 1, size_bytes)
        assert client.near
        assert client.files_status().fetched_count == 1
        assert client.status().block_count == 1
    assert set(clients[1].stat("/a/b", locations=True).locations) == {server.address for server in cluster}
    assert clients[0].free("/a/b"), "the others have it"
    clients[2].put("/a/b", content(2, size_bytes), overwrite=True)
    for client in clients:
        assert holds(client, "/a/b", 2, size_bytes)
    assert len(clients[0].files_status().members) == 3
    for client in clients:
        client.close()


def test_replicas(cluster: list[object]) -> None:
    with TierClient(cluster[0].address) as client:
        client.put("/a", content(1, 100_000))
        assert len(client.replicate("/a", 3)) == 3
        assert len(client.stat("/a", locations=True).locations) == 3
        with pytest.raises(errors.InvalidRequest):
            client.replicate("/a", 4)
    cluster[0].kill()
    with TierClient(cluster[1].address) as client:
        assert holds(client, "/a", 1, 100_000)


def test_bytes_that_only_a_dead_server_has(cluster: list[object]) -> None:
    with TierClient(cluster[0].address) as first, TierClient(cluster[1].address) as second:
        first.put("/a", content(1, 100_000))
        cluster[0].kill()
        assert second.stat("/a").size_bytes == 100_000
        with pytest.raises((errors.BytesLost, errors.Unreachable)):
            second.open("/a")
        cluster[0].start()
        assert holds(first, "/a", 1, 100_000)
        # Its peers try again to connect every half second.
        assert wait_for(lambda: holds(second, "/a", 1, 100_000))


def test_a_client_of_all_servers_turns_to_another(cluster: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    from storage_tier.client import way

    with TierClient(address_of(cluster)) as client:
        assert client.near
        first = client.status().server_id
        client.put("/a", b"x")
        client.replicate("/a", 2)
        cluster[0].kill()
        assert client.stat("/a").size_bytes == 1, "asked again, elsewhere"
        assert client.status().server_id != first
        with client.open("/a") as file:
            assert file.data == b"x"
        cluster[1].kill()
        with pytest.raises(errors.Unreachable):
            client.put("/b", b"x")  # it may have been done, so it is not done again
        client.put("/b", b"x")
        cluster[2].kill()
        for _ in range(2):
            with pytest.raises(errors.Unreachable):
                client.stat("/a")
    for server in cluster:
        server.start()
    # The server on this host is taken, wherever it stands in the address.
    nonce = str(cluster[1].directory / "nonce")
    real = way.is_near
    monkeypatch.setattr(way, "is_near", lambda path, *rest: path == nonce and real(path, *rest))
    with TierClient(address_of(cluster)) as client, TierClient(cluster[1].address) as one:
        assert client.near
        assert client.status().server_id == one.status().server_id
    with TierClient(address_of(cluster), server_index=2) as client:
        assert not client.near
    with TierClient(address_of(cluster), near=True) as client:
        assert client.status().server_id


def test_peers_show_the_token(serve: Callable[..., object], directory: Path) -> None:
    catalog = f"sqlite:///{directory}/catalog.sqlite"
    one, two = (serve(directory=directory / name, catalog=catalog, token="right-token") for name in ("one", "two"))
    with TierClient(one.address, "right-token") as first, TierClient(two.address, "right-token") as second:
        first.put("/a", content(1, 100_000))
        assert holds(second, "/a", 1, 100_000)


def test_a_full_server_passes_through_what_it_cannot_keep(
    serve: Callable[..., object], directory: Path, tmp_path: Path
) -> None:
    catalog = f"sqlite:///{directory}/catalog.sqlite"
    large = serve(directory=directory / "large", catalog=catalog)
    small = serve(directory=directory / "small", catalog=catalog, memory_bytes=8 * MIB)
    size_bytes = 9 * MIB + 5
    content(2, size_bytes).tofile(tmp_path / "known")
    content(3, size_bytes).tofile(tmp_path / "unknown")
    with (
        TierClient(large.address) as other,
        TierClient(small.address) as near,
        TierClient(small.address, near=False) as far,
    ):
        other.put("/peer", content(1, size_bytes))
        other.mount("/lake", tmp_path.as_uri())
        with other.open("/lake/known"):
            pass
        assert other.free("/lake/known")
        near.put("/full", content(0, 7 * MIB))
        for client in (near, far):
            with pytest.raises(errors.OutOfMemory):
                client.put("/more", content(0, 2 * MIB))
            for number, path in enumerate(("/peer", "/lake/known", "/lake/unknown"), 1):
                assert holds(client, path, number, size_bytes)
                assert client.read(path, size_bytes - 3, 9) == content(number, size_bytes)[-3:].tobytes()
                with pytest.raises(errors.InvalidRequest):
                    client.read(path, size_bytes + 1, 1)
            with client.open("/full") as file:
                assert file.near == (client is near)
            with pytest.raises(errors.VersionConflict):
                client.open("/peer", version=7)
        assert near.status().block_count == 1
        # By gRPC alone too.
        with channel("127.0.0.1", small.port) as plain, TierClient(plain) as grpc_only:
            assert holds(grpc_only, "/peer", 1, size_bytes)
        large.kill()
        with pytest.raises((errors.BytesLost, errors.Unreachable)):
            near.open("/peer")
        assert holds(near, "/lake/known", 2, size_bytes)


def test_the_second_level_is_mapped_too(serve: Callable[..., object], tmp_path: Path) -> None:
    server = serve(spill=str(tmp_path))
    with TierClient(server.address) as near, TierClient(server.address, near=False) as far:
        for number in range(10):
            near.put(f"/{number}", content(number, 10 * MIB))
        assert near.files_status().spilled_count > 0
        for client in (near, far):
            for number in range(10):
                assert holds(client, f"/{number}", number, 10 * MIB)
        with near.open("/0") as file:
            assert file.near


# ---- messages that make no sense

Text = st.sampled_from(["/a", "/a/b", "/", "", "../x", "/\x00", "/" + "x" * 3000, "/ü", "a"])
Number = st.sampled_from([0, 1, -1, 5, 1 << 40, (1 << 63) - 1, -(1 << 63)])
Maybe = st.none() | Number
Values = st.dictionaries(Text, st.builds(pb.Value, number=Number) | st.just(pb.Value()), max_size=2)
Options = st.builds(
    pb.CommitOptions,
    overwrite=st.booleans(),
    expected_version=Maybe,
    metadata=Values,
    ttl_ms=Maybe,
    pinned=st.none() | st.booleans(),
    write_type=st.sampled_from(["", "must_cache", "through", "sideways"]),
    existing_parents=st.booleans(),
)
Part = st.builds(
    pb.SendFileRequest, begin=st.builds(pb.SendFileBegin, path=Text, size_bytes=Number, options=Options)
) | st.builds(pb.SendFileRequest, chunk=st.binary(max_size=20))
Json = st.sampled_from(["", "{}", "[]", "{", "null", '{"a": 1}', "[" * 100_000])


def message(name: str, kind: type, /, **fields: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[str, object]]:
    return st.tuples(st.just(name), st.builds(kind, **fields))


Requests = st.one_of(
    message("PutFile", pb.PutFileRequest, path=Text, content=st.binary(max_size=20), options=Options),
    st.tuples(st.just("SendFile"), st.lists(Part, max_size=4)),
    message("CreateFile", pb.CreateFileRequest, path=Text, size_bytes=Number, options=Options),
    message("CommitFile", pb.CommitFileRequest, reservation_id=Text, options=Options),
    message("AbortFile", pb.AbortFileRequest, reservation_id=Text),
    message("OpenFile", pb.OpenFileRequest, path=Text, version=Maybe),
    message("ReadFile", pb.ReadFileRequest, path=Text, version=Maybe, offset_bytes=Number, limit_bytes=Number),
    message("Stat", pb.StatFileRequest, path=Text, locations=st.booleans()),
    message("List", pb.ListFilesRequest, path=Text, after_name=Text, page_count=st.integers(-5, 5)),
    message("Find", pb.FindFilesRequest, path=Text, after_path=Text, page_count=st.integers(-5, 5)),
    message("Explain", pb.ExplainRequest, path=Text),
    message("MakeDirectory", pb.MakeDirectoryRequest, path=Text, parents=st.booleans(), exist_ok=st.booleans()),
    message("Remove", pb.RemoveRequest, path=Text, expected_version=Maybe),
    message("RemoveDirectory", pb.RemoveDirectoryRequest, path=Text, recursive=st.booleans()),
    message("Rename", pb.RenameRequest, source=Text, target=Text, overwrite=st.booleans()),
    message("Copy", pb.CopyRequest, source=Text, target=Text, overwrite=st.booleans()),
    message("Change", pb.ChangeRequest, path=Text, pinned=st.none() | st.booleans(), ttl_ms=Maybe),
    message("Persist", pb.PersistRequest, path=Text),
    message("Free", pb.FreeRequest, path=Text),
    message("Replicate", pb.ReplicateRequest, path=Text, server_count=st.integers(-5, 5)),
    message("Mount", pb.MountRequest, path=Text, url=Text, options_json=Json, write_type=Text),
    message("Unmount", pb.UnmountRequest, path=Text, discard=st.booleans()),
    message("Attach", pb.AttachRequest, directory=Text, observer=Text, parameters_json=Json, name=Text),
    message("Detach", pb.DetachRequest, directory=Text, name=Text),
)


@settings(max_examples=300)
@given(Requests)
def test_any_messages_get_an_answer_or_a_typed_error(shared_server: object, request_of: tuple[str, object]) -> None:
    name, request = request_of
    with channel("127.0.0.1", shared_server.port) as plain:
        call = getattr(files_pb2_grpc.FilesStub(plain), name)
        found: errors.TierError | None = None
        try:
            with TIER_ERRORS.translated():
                answer = call(iter(request) if isinstance(request, list) else request, timeout=10)
                if name == "ReadFile":
                    list(answer)
        except errors.TierError as error:
            found = error
    assert not isinstance(found, errors.ServerFailed | errors.Unreachable | errors.DeadlineExceeded), found
    assert shared_server.process.poll() is None
