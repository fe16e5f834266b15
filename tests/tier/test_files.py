"""Files of one server: commits, names, versions, what is refused, what is left after a restart."""

from __future__ import annotations

import threading

import pytest

from storage_tier.catalog.errors import Fenced
from storage_tier.errors import (
    BlockNotFound,
    DirectoryNotEmpty,
    InvalidPath,
    InvalidRequest,
    NotMounted,
    OutOfMemory,
    PathExists,
    PathIsDirectory,
    PathNotDirectory,
    PathNotFound,
    ReservationLost,
    VersionConflict,
)
from storage_tier.files import CommitOptions, Files, FilesOptions
from storage_tier.files.base import block_id_of, block_path_of, new_block_id
from storage_tier.headers import payload_offset_bytes
from storage_tier.under.write_type import WriteType
from storage_tier.writer import BlockWriter

from . import files_servers
from .files_servers import LONG_S, STILL, Cluster, block_files, eventually, put, read

cluster = files_servers.cluster
files = files_servers.files


def near_write(files: Files, path: str, content: bytes, **options: object) -> object:
    """As a client of this host does it."""
    return files.commit(near_reserve(files, path, content), CommitOptions(**options))


def near_reserve(files: Files, path: str, content: bytes) -> str:
    made = files.create(path, payload_offset_bytes(block_path_of(new_block_id()), {}) + len(content))
    with BlockWriter(made.directory, made.block_path) as writer:
        writer.write(content)
    return made.id


def test_the_name_of_a_block_is_its_id() -> None:
    block_id = new_block_id()
    assert block_id_of(block_path_of(block_id)) == block_id
    for other in ("/runs/a", f"/zz/{block_id}", f"/{block_id}", "/ab/" + "AB" * 16, ""):
        assert block_id_of(other) is None


@pytest.mark.parametrize("write", [put, near_write])
def test_what_is_written_is_read(files: Files, write: object) -> None:
    entry = write(files, "/a/b/c", b"first", metadata={"step": 3, "by": "x", "rate": 0.5, "on": True})
    assert (entry.path, entry.version, entry.size_bytes, entry.persisted) == ("/a/b/c", 1, 5, "not_needed")
    assert read(files, "/a/b/c") == b"first"
    assert files.stat("/a/b/c") == entry
    assert dict(files.stat("/a/b/c").metadata) == {"step": 3, "by": "x", "rate": 0.5, "on": True}
    located = files.locate("/a/b/c")
    assert located.file is not None
    assert located.file.read_bytes()[located.offset_bytes :] == b"first"
    assert write(files, "/a/b/c", b"second!").version == 2
    assert read(files, "/a/b/c") == b"second!"
    assert len(block_files(files)) == 1, "the first version's bytes are gone"
    with pytest.raises(VersionConflict, match="version 2"):
        read(files, "/a/b/c", 1)


def test_several_are_committed_at_once_or_none(files: Files) -> None:
    before = put(files, "/b", b"before")
    made = [near_reserve(files, path, path.encode()) for path in ("/d/a", "/b", "/c")]
    found = files.commit_all([(one, CommitOptions(metadata={"n": n})) for n, one in enumerate(made)])
    assert [(entry.path, entry.version, dict(entry.metadata)) for entry in found] == [
        ("/d/a", 1, {"n": 0}),
        ("/b", 2, {"n": 1}),
        ("/c", 1, {"n": 2}),
    ]
    assert [files.stat(entry.path) for entry in found] == found
    sequences = [before.sequence, *(entry.sequence for entry in found)]
    assert sequences == sorted(set(sequences)), "each has its place in the order of commits"
    assert [read(files, path) for path in ("/d/a", "/b", "/c")] == [b"/d/a", b"/b", b"/c"]
    assert len(block_files(files)) == 3
    assert files.commit_all([]) == []
    for refused, error in [
        (CommitOptions(exclusive=True), PathExists),
        (CommitOptions(expected_version=7), VersionConflict),
        (CommitOptions(metadata={"x": [1]}), InvalidRequest),
    ]:
        made = [near_reserve(files, path, b"new") for path in ("/new", "/b", "/c")]
        with pytest.raises(error):
            files.commit_all([(made[0], CommitOptions()), (made[1], refused), (made[2], CommitOptions())])
    made = [near_reserve(files, path, b"new") for path in ("/new", "/b", "/new")]
    with pytest.raises(InvalidRequest, match="twice"):
        files.commit_all([(one, CommitOptions()) for one in made])
    made = [near_reserve(files, path, b"new") for path in ("/new", "/b")]
    with pytest.raises(ReservationLost):
        files.commit_all([(made[0], CommitOptions()), ("none", CommitOptions()), (made[1], CommitOptions())])
    assert [files.stat(entry.path) for entry in found] == found
    assert not files.exists("/new")
    assert len(block_files(files)) == 3, "what was not committed is gone"
    assert files._parts.tier.status().reservation_count == 0


def test_commits_that_wait_are_made_together_and_one_that_is_refused_alone(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(files, "/taken")
    made: list[bool] = []
    together = files._parts.catalog.together

    def counted(parts: bool = True) -> object:
        made.append(parts)
        return together(parts)

    monkeypatch.setattr(files._parts.catalog, "together", counted)
    for paths in (["/a", "/b", "/c"], ["/d", "/taken", "/e"]):
        refused: list[str] = []

        def write(path: str, refused: list[str] = refused) -> None:
            try:
                put(files, path, path.encode(), exclusive=True)
            except PathExists:
                refused.append(path)

        threads = [threading.Thread(target=write, args=(path,)) for path in paths]
        with files._parts.settings.turn():
            for thread in threads:
                thread.start()
            eventually(lambda: len(files._parts.settings._waiting) == 3, "all wait for the turn")
        for thread in threads:
            thread.join(LONG_S)
        assert refused == [path for path in paths if path == "/taken"]
        assert [read(files, path) for path in paths if path != "/taken"] == [
            path.encode() for path in paths if path != "/taken"
        ]
    assert made == [False, False], "one transaction each time, and where one was refused each had its own then"
    assert len(block_files(files)) == 6


def test_an_empty_file(files: Files) -> None:
    assert put(files, "/empty", b"").size_bytes == 0
    assert read(files, "/empty") == b""


def test_a_commit_is_exclusive_or_swaps_when_it_is_asked_to(files: Files) -> None:
    put(files, "/a", b"1", exclusive=True)
    for options in ({"exclusive": True}, {"expected_version": 0}, {"expected_version": 2}):
        with pytest.raises((PathExists, VersionConflict)):
            put(files, "/a", b"x", **options)
    assert put(files, "/a", b"2", expected_version=1).version == 2
    with pytest.raises(VersionConflict, match="no file"):
        put(files, "/b", b"x", expected_version=1)
    with pytest.raises(InvalidRequest, match="exclusive"):
        put(files, "/b", b"x", expected_version=1, exclusive=True)
    assert read(files, "/a") == b"2"
    assert len(block_files(files)) == 1, "what was refused has left nothing"


def test_a_large_write_is_refused_before_it_is_written(files: Files) -> None:
    put(files, "/a")
    files.make_directory("/d")
    for path, options, error in [
        ("/a", CommitOptions(exclusive=True), PathExists),
        ("/a", CommitOptions(expected_version=7), VersionConflict),
        ("/b", CommitOptions(expected_version=7), VersionConflict),
        ("/d", CommitOptions(), PathIsDirectory),
        ("/a/b", CommitOptions(), PathNotDirectory),
    ]:
        with pytest.raises(error):
            files.create(path, 2 << 20, options)
    assert files._parts.tier.status().reservation_count == 0


def test_parents_are_made_or_asked_for(files: Files) -> None:
    with pytest.raises(PathNotFound, match="/x"):
        put(files, "/x/y", parents=False)
    assert block_files(files) == []
    put(files, "/x/y")
    assert [entry.path for entry in files.list("/")] == ["/x"]


@pytest.mark.parametrize("path", ["/../a", "a", "", "/a//b", "/a/", "/nul\0", "/" + "n" * 300, "/\udcff"])
def test_bad_paths_are_refused_and_leave_nothing(files: Files, path: str) -> None:
    with pytest.raises(InvalidPath):
        put(files, path)
    for call in (files.stat, files.list, files.open, files.remove, files.ensure_local, files.explain):
        with pytest.raises(InvalidPath):
            call(path)
    with pytest.raises(InvalidPath):
        files.rename("/a", path)
    assert block_files(files) == []


def test_a_directory_is_no_file_and_a_file_no_directory(files: Files) -> None:
    put(files, "/d/f")
    for call in (lambda: put(files, "/d"), lambda: files.open("/d"), lambda: files.remove("/d")):
        with pytest.raises(PathIsDirectory):
            call()
    for call in (lambda: put(files, "/d/f/g"), lambda: files.list("/d/f"), lambda: files.remove_directory("/d/f")):
        with pytest.raises(PathNotDirectory):
            call()
    with pytest.raises(DirectoryNotEmpty):
        files.remove_directory("/d")
    files.remove_directory("/d", recursive=True)
    assert files.list("/") == []
    assert block_files(files) == []


def test_names_change_and_bytes_stay(files: Files) -> None:
    put(files, "/a/x", b"x")
    put(files, "/a/y", b"y")
    with pytest.raises(PathExists):
        files.rename("/a/x", "/a/y")
    assert files.rename("/a/x", "/a/y", overwrite=True).version == 2
    assert read(files, "/a/y") == b"x"
    assert len(block_files(files)) == 1
    files.rename("/a", "/b")
    assert read(files, "/b/y") == b"x"
    with pytest.raises(PathNotFound):
        files.stat("/a")
    files.copy("/b/y", "/b/z")
    assert len(block_files(files)) == 1, "no bytes moved"
    with pytest.raises(PathExists):
        files.copy("/b/y", "/b/z")
    files.remove("/b/y")
    assert read(files, "/b/z") == b"x"
    with pytest.raises(VersionConflict):
        files.remove("/b/z", expected_version=9)
    files.remove("/b/z", expected_version=files.stat("/b/z").version)
    assert block_files(files) == []


def test_listings_come_in_pages(files: Files) -> None:
    for name in ("b", "a", "c", "d/e", "d/f"):
        put(files, f"/top/{name}")
    assert [entry.path for entry in files.list("/top", after="a", count=2)] == ["/top/b", "/top/c"]
    found: list[str] = []
    while page := files.find("/top", found[-1] if found else None, 2):
        found += [entry.path for entry in page]
    assert found == ["/top/a", "/top/b", "/top/c", "/top/d", "/top/d/e", "/top/d/f"]


def test_a_pin_and_a_time_to_live(cluster: Cluster) -> None:
    now = [10**18]
    files = cluster.start(clock_ns=lambda: now[0])
    put(files, "/a", pinned=True)
    assert files.stat("/a").pinned
    assert put(files, "/a").pinned, "the next version keeps it"
    assert not files.change("/a", pinned=False).pinned
    assert files.change("/a", ttl_s=5).expires_ns is not None
    assert files.change("/a", ttl_s=None).expires_ns is None
    put(files, "/b", ttl_s=0.0)
    now[0] = 2 * 10**18
    files._parts.upkeep.run_all()
    assert [entry.path for entry in files.list("/")] == ["/a"]
    assert len(block_files(files)) == 1


def test_what_needs_a_mount_says_so(files: Files) -> None:
    with pytest.raises(NotMounted):
        put(files, "/a", write_type=WriteType.CACHE_THROUGH)
    put(files, "/a")
    with pytest.raises(NotMounted):
        files.persist("/a")
    assert len(block_files(files)) == 1


# ------------------------------------------------------------- what goes wrong


def test_a_write_that_ends_early_or_raises_publishes_nothing(files: Files) -> None:
    def fails() -> object:
        yield b"half"
        raise RuntimeError("the client went away")

    with pytest.raises(RuntimeError):
        files.put("/a", 8, fails())
    with pytest.raises(InvalidRequest):
        files.put("/a", 8, [b"half"])
    assert not files.exists("/a")
    assert block_files(files) == []
    assert files._parts.tier.budget.used_bytes == 0


def test_a_reservation_that_nobody_filled_or_knows(files: Files) -> None:
    made = files.create("/a", 8192)
    with pytest.raises(BlockNotFound):
        files.commit(made.id)
    with pytest.raises(ReservationLost):
        files.commit(made.id)
    files.abort(made.id)
    made = files.create("/a", 8192)
    BlockWriter(made.directory, made.block_path).commit()
    files.abort(made.id)
    assert block_files(files) == []
    assert files._parts.tier.budget.used_bytes == 0


def test_a_writer_that_dies_after_its_link_leaves_nothing(cluster: Cluster) -> None:
    files = cluster.start(options=FilesOptions(**{**vars(STILL), "reservation_ttl_s": 0.0, "sweep_s": 0.0}))
    made = files.create("/a", 8192)
    BlockWriter(made.directory, made.block_path).commit()
    files._parts.chores.clean()
    assert block_files(files) == []
    with pytest.raises(ReservationLost):
        files.commit(made.id)
    # And one whose link came after that.
    BlockWriter(made.directory, made.block_path).commit()
    files._parts.chores.sweep()
    assert block_files(files) == []
    assert files._parts.tier.budget.used_bytes == 0


def test_full_memory_refuses_writers_and_serves_readers(cluster: Cluster) -> None:
    files = cluster.start(memory_bytes=1 << 20)
    put(files, "/a", b"a" * 700_000)
    with pytest.raises(OutOfMemory, match="1 not persisted and on no other server"):
        put(files, "/b", b"b" * 700_000)
    with pytest.raises(OutOfMemory):
        files.create("/b", 700_000)
    assert read(files, "/a") == b"a" * 700_000
    assert [entry.path for entry in files.list("/")] == ["/a"]


def test_a_restart_keeps_what_was_committed_and_nothing_else(cluster: Cluster) -> None:
    files = cluster.start()
    put(files, "/a", b"kept")
    made = files.create("/b", 8192)
    BlockWriter(made.directory, made.block_path).commit()
    assert len(block_files(files)) == 2
    cluster.stop()
    files = cluster.start()
    assert read(files, "/a") == b"kept"
    assert len(block_files(files)) == 1
    assert files._parts.catalog.members.list()[0].epoch == 2


def test_an_older_process_of_a_server_is_fenced(cluster: Cluster) -> None:
    files = cluster.start()
    put(files, "/a")
    other = cluster.start("two")
    # The same server, started anew elsewhere: its catalog has its name and a newer epoch.
    other._parts.catalog.members.register(files.server_id, "elsewhere")
    with pytest.raises(Fenced):
        put(files, "/b")
    files._parts.upkeep.hurry()
    eventually(lambda: "epoch" in files.status().failure, "the upkeep sees it")
    assert len(block_files(files)) == 1


def test_many_threads_on_few_paths(files: Files) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(40):
                path = f"/shared/{turn % 3}"
                content = bytes([number]) * (1000 + turn)
                put(files, path, content)
                try:
                    found = read(files, path)
                    assert len(set(found)) == 1
                    if turn % 4 == 0:
                        files.rename(path, f"/shared/{(turn + 1) % 3}", overwrite=True)
                    if turn % 7 == 0:
                        files.remove(path)
                    files.copy(path, f"/shared/copy-{number}", overwrite=True)
                except PathNotFound:
                    pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    named = {entry.block_id for entry in files.find("/") if entry.block_id}
    assert {
        block_id_of("/" + str(path.relative_to(files._parts.tier.blocks_directory))) for path in block_files(files)
    } == named
    for entry in files.find("/"):
        if entry.kind == "file":
            assert len(set(read(files, entry.path))) == 1
