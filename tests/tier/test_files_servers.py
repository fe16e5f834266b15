"""Several servers over one catalog, and what is evicted, spilled, replicated and explained."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_tier.errors import (
    BytesLost,
    DeadlineExceeded,
    Fenced,
    InvalidRequest,
    OutOfMemory,
    PathNotFound,
    Unreachable,
)
from storage_tier.files import CommitOptions, Files, FilesOptions
from storage_tier.files.loading import TRIES
from storage_tier.files.passing import Passing

from . import files_servers
from .files_servers import LONG_S, STILL, Cluster, block_files, eventually, put, read

cluster = files_servers.cluster
files = files_servers.files
pytest_plugins = ["tests.tier.postgres"]


@pytest.fixture(params=["sqlite", "postgres"])
def either(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Cluster]:
    """A cluster over SQLite, and one over PostgreSQL."""
    if request.param == "postgres":
        cluster.catalog_url = request.getfixturevalue("postgres_url")
    yield cluster
    cluster.close()  # before its database is emptied


def test_any_server_answers_for_any_path(either: Cluster) -> None:
    one, two, three = (either.start(name) for name in ("one", "two", "three"))
    put(one, "/a", b"from one")
    located = two.locate("/a")
    assert (located.file, located.addresses) == (None, ("coproc://one:1",))
    assert read(two, "/a") == b"from one"
    assert read(two, "/a") == b"from one"
    assert len(either.network.fetched) == 1, "cached the second time"
    assert set(two.locations([located.entry.block_id])[located.entry.block_id]) == {"coproc://one:1", "coproc://two:1"}
    either.network.down.add("coproc://one:1")
    assert read(three, "/a") == b"from one", "from the second holder"
    two.rename("/a", "/b")
    with pytest.raises(PathNotFound):
        one.stat("/a")
    three.remove("/b")
    assert block_files(three) == []
    for files in (one, two):
        files._parts.chores.watch()
        assert block_files(files) == [], "others free what was released, too"
    assert one._parts.catalog.replicas.orphans() == ()


def test_a_block_is_fetched_once_at_a_time(cluster: Cluster) -> None:
    one, two = cluster.start("one"), cluster.start("two")
    put(one, "/a", b"x" * 100_000)
    inside, go = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert go.wait(30)

    cluster.network.before_fetch = hold
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(read(two, "/a"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert inside.wait(30)
    go.set()
    for thread in threads:
        thread.join()
    assert found == [b"x" * 100_000] * 4
    assert len(cluster.network.fetched) == 1


def test_a_file_removed_while_it_is_fetched(either: Cluster) -> None:
    one, two = either.start("one"), either.start("two")
    put(one, "/a")
    either.network.before_fetch = lambda: one.remove("/a")
    with pytest.raises(PathNotFound):
        read(two, "/a")
    assert block_files(two) == []


def test_a_server_that_has_just_joined_counts_as_one_that_has_it(cluster: Cluster) -> None:
    one = cluster.start("one")
    one._parts.chores.heartbeat()
    alone = one._parts.neighbours._seen
    two = cluster.start("two")
    put(one, "/a")
    read(two, "/a")
    one._parts.neighbours._seen = alone  # it has not looked at the members since
    assert one.free("/a")
    assert read(one, "/a") == b"content"


def test_bytes_that_only_a_silent_server_has(cluster: Cluster) -> None:
    one, two = cluster.start("one"), cluster.start("two")
    put(one, "/a")
    cluster.network.down.add("coproc://one:1")
    with pytest.raises(BytesLost, match="one:1 did not give them"):
        read(two, "/a")
    assert read(one, "/a") == b"content"
    options = FilesOptions(**{**vars(STILL), "dead_after_s": 0.0})
    three = cluster.start("three", options=options)
    with pytest.raises(BytesLost, match="was not heard of"):
        read(three, "/a")
    said = " ".join(three.explain("/a").sentences)
    assert "was not heard of" in said
    assert "cannot be had now" in said


def test_a_dead_server_is_given_up_after_a_time(either: Cluster) -> None:
    now = [10**18]
    one, two = either.start("one", clock_ns=lambda: now[0]), either.start("two", clock_ns=lambda: now[0])
    put(one, "/lost")
    put(one, "/both", b"both")
    read(two, "/both")
    two._parts.chores.heartbeat()
    assert len(two.status().members) == 2
    now[0] += round((STILL.retire_after_s + 1) * 1e9)
    two._parts.chores.heartbeat()
    assert [holder.server_id for holder in two.status().members] == [two.server_id]
    with pytest.raises(BytesLost, match=r"bytes of /lost \(version 1\) cannot be had: no server has them"):
        read(two, "/lost")
    assert "Its bytes are lost." in two.explain("/lost").sentences
    assert read(two, "/both") == b"both"
    with pytest.raises(Fenced):
        put(one, "/new")
    either.stop("one")
    one = either.start("one", clock_ns=lambda: now[0])
    assert read(one, "/lost") == b"content", "its directory still has it"
    assert read(two, "/lost") == b"content"


def test_a_fetch_that_breaks_leaves_nothing(cluster: Cluster) -> None:
    one, two = cluster.start("one"), cluster.start("two")
    put(one, "/a", b"x" * 10_000)
    whole = cluster.network.fetch
    cluster.network.fetch = lambda address, path, fd, offset, timeout_s: whole(
        address, path, fd, offset - 10, timeout_s
    )
    with pytest.raises(InvalidRequest, match="10,000 bytes should have been written"):
        read(two, "/a")
    cluster.network.fetch = whole
    assert block_files(two) == []
    assert read(two, "/a") == b"x" * 10_000


# -------------------------------------------------------------------- eviction


def test_the_least_lately_used_goes_if_another_server_has_it(either: Cluster) -> None:
    one = either.start("one")
    two = either.start("two", memory_bytes=1 << 20)
    for name in ("a", "b", "c"):
        put(one, f"/{name}", name.encode() * 300_000)
        read(two, f"/{name}")
    read(two, "/a")
    put(two, "/d", b"d" * 300_000)
    local = {name for name in "abcd" if two.locate(f"/{name}").file is not None}
    assert local == {"a", "c", "d"}
    assert read(two, "/b") == b"b" * 300_000, "it comes back"
    assert two.status().evicted_count >= 1
    assert two.locate("/d").file is not None, "it is nowhere else"


def test_pinned_and_open_blocks_stay(cluster: Cluster) -> None:
    one = cluster.start("one")
    two = cluster.start("two", memory_bytes=1 << 20)
    put(one, "/pinned", b"p" * 400_000, pinned=True)
    put(one, "/open", b"o" * 400_000)
    read(two, "/pinned")
    with two.open("/open") as block:
        with pytest.raises(OutOfMemory, match=r"1 pinned, 1 open|1 open, 1 pinned"):
            put(two, "/new", b"n" * 400_000)
        assert bytes(block.data) == b"o" * 400_000
        with pytest.raises(InvalidRequest, match="open"):
            two.free("/open")
    put(two, "/new", b"n" * 400_000)
    assert two.locate("/pinned").file is not None
    assert two.locate("/open").file is None


def test_two_servers_do_not_give_up_the_last_two_copies(either: Cluster) -> None:
    one, two = either.start("one", memory_bytes=1 << 20), either.start("two", memory_bytes=1 << 20)
    put(one, "/a", b"a" * 600_000)
    read(two, "/a")
    refused = []
    start = threading.Barrier(2)

    def write(files: Files, name: str) -> None:
        start.wait(30)
        try:
            put(files, f"/{name}", b"x" * 600_000)
        except OutOfMemory:
            refused.append(name)

    threads = [threading.Thread(target=write, args=(one, "one")), threading.Thread(target=write, args=(two, "two"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    assert read(two if "two" in refused else one, "/a") == b"a" * 600_000


def test_a_wrong_size_is_said_of_the_file(files: Files) -> None:
    for buffers in ([b"abc"], [b"abc", b"def"]):
        with pytest.raises(InvalidRequest, match=r"^/a/b: 4 bytes were announced"):
            files.put("/a/b", 4, buffers)


def test_where_one_source_ends_the_next_goes_on(files: Files) -> None:
    def short(start: int, stop: int) -> Iterator[bytes]:
        yield b"content"[start : start + 2]
        raise Unreachable("gone")

    def whole(start: int, stop: int) -> Iterator[bytes]:
        yield b"content"[start:stop]

    def long(start: int, stop: int) -> Iterator[bytes]:
        yield b"content"

    entry = put(files, "/a")
    assert b"".join(Passing(entry, (short, short, whole)).pieces(1, 7)) == b"ontent"
    assert b"".join(Passing(entry, (whole,)).pieces(3, 3)) == b""
    for sources in ((short, short), (long,)):
        with pytest.raises(BytesLost, match="/a"):
            b"".join(Passing(entry, sources).pieces(1, 6))


def test_a_dead_server_s_copy_does_not_count(cluster: Cluster) -> None:
    one = cluster.start("one")
    options = FilesOptions(**{**vars(STILL), "dead_after_s": 0.0})
    two = cluster.start("two", memory_bytes=1 << 20, options=options)
    put(two, "/a", b"a" * 600_000)
    read(one, "/a")
    with pytest.raises(OutOfMemory):
        put(two, "/b", b"b" * 600_000)


def test_freeing_says_why_not(cluster: Cluster) -> None:
    one, two = cluster.start("one"), cluster.start("two")
    put(one, "/a")
    with pytest.raises(InvalidRequest, match="not persisted and on no other server"):
        one.free("/a")
    assert not two.free("/a")
    read(two, "/a")
    assert one.free("/a")
    assert block_files(one) == []
    assert read(one, "/a") == b"content"


def test_replicas_on_demand(cluster: Cluster) -> None:
    one, two, _ = (cluster.start(name) for name in ("one", "two", "three"))
    put(one, "/a")
    assert len(one.replicate("/a", 2)) == 2
    assert len(two.replicate("/a", 3)) == 3
    with pytest.raises(InvalidRequest, match="3 live"):
        one.replicate("/a", 4)
    put(one, "/b")
    cluster.network.down.update({"coproc://two:1", "coproc://three:1"})
    with pytest.raises(Unreachable):
        one.replicate("/b", 2)


# ------------------------------------------------------------------------ spill


def test_what_may_not_be_dropped_goes_to_the_second_level(cluster: Cluster, tmp_path: Path) -> None:
    spill = cluster.directory / "disk"
    files = cluster.start(memory_bytes=1 << 20, spill=spill)
    for name in ("a", "b", "c", "d"):
        put(files, f"/{name}", name.encode() * 400_000)
    with files.open("/a") as block:
        assert block.near
        assert bytes(block.data) == b"a" * 400_000
    assert files.status().spilled_count == 2
    explanation = files.explain("/a")
    assert explanation.route == "mapped"
    assert explanation.holders[0].level == "disk"
    assert "second level" in " ".join(explanation.sentences)
    cluster.stop()
    files = cluster.start(memory_bytes=1 << 20, spill=spill)
    for name in ("a", "b", "c", "d"):
        assert read(files, f"/{name}") == name.encode() * 400_000
    two = cluster.start("two")
    assert read(two, "/a") == b"a" * 400_000, "peers get it too"
    files.remove_directory("/x") if files.exists("/x") else None
    for name in ("a", "b", "c", "d"):
        files.remove(f"/{name}")
    assert [path for path in spill.rglob("*") if path.is_file()] == []
    assert block_files(files) == []


def test_the_second_level_has_a_limit(cluster: Cluster) -> None:
    files = cluster.start(memory_bytes=1 << 20, spill=cluster.directory / "disk", spill_bytes=900_000)
    for name in ("a", "b", "c", "d"):
        put(files, f"/{name}", name.encode() * 400_000)
    assert files.status().spilled_count == 2
    with pytest.raises(OutOfMemory, match="not on the second level, which is full"):
        put(files, "/e", b"e" * 400_000)
    # What another server has, too, makes room.
    two = cluster.start("two")
    read(two, "/a")
    put(files, "/e", b"e" * 400_000)
    assert files.locate("/a").file is None
    assert 0 < files._parts.tier.status().spilled_bytes <= 900_000
    files.remove("/b")
    files.remove("/c")
    cluster.stop()
    files = cluster.start(memory_bytes=1 << 20, spill=cluster.directory / "disk", spill_bytes=900_000)
    tier = files._parts.tier
    assert tier.status().spilled_bytes == sum(info.file_bytes for info in tier.spilled.values())
    for name in ("a", "d", "e"):
        assert read(files, f"/{name}") == name.encode() * 400_000


def test_a_pinned_block_is_not_spilled(cluster: Cluster) -> None:
    files = cluster.start(memory_bytes=1 << 20, spill=cluster.directory / "disk")
    put(files, "/a", b"a" * 600_000, pinned=True)
    with pytest.raises(OutOfMemory, match="1 pinned"):
        put(files, "/b", b"b" * 600_000)


# ---------------------------------------------------------------------- explain


def test_explanations(cluster: Cluster) -> None:
    one, two = cluster.start("one"), cluster.start("two")
    put(one, "/d/a")
    assert one.explain("/d/a").route == "mapped"
    there = two.explain("/d/a")
    assert there.route == "peer"
    assert [holder.address for holder in there.holders] == ["coproc://one:1"]
    assert "a read copies it from there" in " ".join(there.sentences)
    assert one.explain("/d").route == "nowhere"
    assert "nothing" in one.explain("/none").sentences[0]
    one.change("/d/a", pinned=True)
    assert "pinned" in " ".join(one.explain("/d/a").sentences)
    status = one.status()
    assert [member.server_id for member in status.members] == sorted([one.server_id, two.server_id])


def test_the_upkeep_runs_by_itself(either: Cluster) -> None:
    quick = FilesOptions(heartbeat_s=0.02, watch_s=0.01, retry_s=0.02, sweep_s=0.05, dead_after_s=5)
    one, two = either.start("one", options=quick), either.start("two", options=quick)
    put(one, "/a", ttl_s=0.3)
    read(two, "/a")
    eventually(lambda: block_files(one) == [] and block_files(two) == [], "it expires on both servers")
    assert not one.exists("/a")
    assert one.status().failure == two.status().failure == ""


def test_exclusive_creates_through_several_servers_have_one_winner(either: Cluster) -> None:
    servers = [either.start(name) for name in ("one", "two", "three")]
    won: list[int] = []

    def work(number: int) -> None:
        for turn in range(10):
            try:
                servers[number].put(f"/{turn}", 1, [bytes([number])], CommitOptions(exclusive=True))
                won.append(turn)
            except FileExistsError:
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(10))
    assert sum(len(block_files(files)) for files in servers) == 10


def test_a_file_that_is_replaced_all_the_time_is_read_in_the_end(cluster: Cluster) -> None:
    one, two = cluster.start("one"), cluster.start("two")
    put(one, "/a", b"0")
    left = iter(range(3 * TRIES))

    def replace() -> None:
        number = next(left, None)
        if number is not None:
            put(one, "/a", b"%d" % (number + 1))

    cluster.network.before_fetch = replace
    assert two.ensure_local("/a", timeout_s=LONG_S).entry.version == 3 * TRIES + 1


def test_a_file_that_is_replaced_all_the_time_costs_no_more_than_the_time_given(cluster: Cluster) -> None:
    one, two = cluster.start("one"), cluster.start("two")
    put(one, "/a", b"0")
    cluster.network.before_fetch = lambda: put(one, "/a", b"new")
    with pytest.raises(DeadlineExceeded, match="replaced or evicted again and again"):
        two.ensure_local("/a", timeout_s=0.2)
