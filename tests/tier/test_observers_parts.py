"""The parts of the observers by themselves: messages, backlog, headers of files, options, names."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from storage_tier.errors import InvalidRequest
from storage_tier.observers import CommittedFile, ObserverOptions
from storage_tier.observers.arrow_header import NotArrow, read_schema
from storage_tier.observers.backlog import Backlog
from storage_tier.observers.frames import BadFrame, Ended, Late, close_all, receive, send
from storage_tier.observers.registry import find, names
from storage_tier.observers.restarts import FORGIVEN_AFTER_S, Restarts
from storage_tier.observers.safetensors_header import NotSafetensors, Tensor, read_header
from storage_tier.observers.sealed import seal, sealed_copy

Pair = tuple[socket.socket, socket.socket]

# ---- messages


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def soon() -> float:
    return time.monotonic() + 5.0


def test_a_message_arrives_with_its_descriptors(pair: Pair) -> None:
    fd = sealed_copy(b"shared")
    send(pair[0], {"a": [1, "é", None]}, (fd,))
    os.close(fd)
    header, descriptors = receive(pair[1], soon())
    assert header == {"a": [1, "é", None]}
    assert os.pread(descriptors[0], 10, 0) == b"shared"
    assert not os.get_inheritable(descriptors[0])
    close_all(descriptors)


def test_a_long_message_arrives_whole(pair: Pair) -> None:
    long = {"text": "x" * (8 << 20)}
    sender = threading.Thread(target=send, args=(pair[0], long))
    sender.start()
    assert receive(pair[1], soon())[0] == long
    sender.join()


def test_nobody_waits_longer_than_asked(pair: Pair) -> None:
    with pytest.raises(Late):
        receive(pair[1], time.monotonic() + 0.02)
    with pytest.raises(Late):
        send(pair[0], {"text": "x" * (8 << 20)}, (), time.monotonic() + 0.02)


def test_a_message_that_comes_in_drops_is_late(pair: Pair) -> None:
    pair[0].send(b"TOB1\x10\0\0\0{")
    with pytest.raises(Late):
        receive(pair[1], time.monotonic() + 0.02)


def test_the_end_is_seen(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(Ended):
        receive(pair[1], soon())
    with pytest.raises(Ended):
        send(pair[1], {})


def test_too_long_for_who_reads_is_refused_before_it_is_read(pair: Pair) -> None:
    pair[0].send(b"TOB1" + struct.pack("<I", 1001))
    with pytest.raises(BadFrame):
        receive(pair[1], soon(), limit_bytes=1000)


@pytest.mark.parametrize("count", [3, 40])
def test_descriptors_of_a_bad_message_are_closed(pair: Pair, count: int) -> None:
    opened = [os.dup(0) for _ in range(count)]
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(pair[0], [b"no message at all"], opened)
    with pytest.raises(BadFrame):
        receive(pair[1], soon())
    assert len(os.listdir("/proc/self/fd")) == before
    close_all(opened)


@given(st.binary(max_size=200), st.integers(0, 3))
def test_any_bytes_are_a_message_or_an_error(junk: bytes, kind: int) -> None:
    head = (b"", b"TOB1", b"TOB1" + struct.pack("<I", len(junk)), b"TOB1\2\0\0\0{}")[kind]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(head + junk)
        ours.close()
        try:
            header, descriptors = receive(theirs, soon())
        except (BadFrame, Ended):
            return
        assert isinstance(header, dict)
        assert descriptors == []


# ---- sealed memory


def test_sealed_memory_stays_as_it_is() -> None:
    fd = sealed_copy(np.arange(4, dtype=np.int16))
    assert seal(fd) == 8
    for change in (lambda: os.write(fd, b"x"), lambda: os.ftruncate(fd, 4), lambda: os.ftruncate(fd, 16)):
        with pytest.raises(PermissionError):
            change()
    os.close(fd)


@pytest.mark.parametrize("data", ["text", 3.0, np.arange(9).reshape(3, 3)[:, 1], None])
def test_what_is_no_buffer_is_refused(data: Any) -> None:
    with pytest.raises(InvalidRequest, match="cannot be taken as contiguous bytes"):
        sealed_copy(data)


# ---- the backlog, against a model: every file is acknowledged, those of a path in order


def commit(sequence: int, path: str = "/a", origin: tuple[str, ...] = ()) -> CommittedFile:
    return CommittedFile(path, sequence, 0, {}, sequence, origin)


@given(st.lists(st.sampled_from(["commit", "deliver", "fail", "restart"]), max_size=80), st.integers(1, 4), st.data())
def test_whatever_happens_all_is_delivered_in_order(steps: list[str], room: int, data: st.DataObject) -> None:
    log: list[CommittedFile] = []
    seen: list[int] = []
    backlog = Backlog(room, can_replay=True, since=0)
    working = True

    def deliver(limit: int, fails: bool, commits_between: int) -> bool:
        """One turn as `Delivery` has it; False when nothing was left."""
        batch = backlog.batch(limit)
        if batch:
            seen.extend(file.sequence for file in batch)
            if fails:
                backlog.interrupted()
            else:
                backlog.acknowledge(batch)
            return True
        if not backlog.behind:
            return False
        since = backlog.catching_up()
        assert not backlog.done
        for _ in range(commits_between):  # while the catalog is read: some are seen there, all are told
            tell()
        page = [file for file in log if file.sequence > since][:limit]
        for _ in range(commits_between):
            tell()
        for number, file in enumerate(page):
            if fails and number == len(page) // 2:
                backlog.fall_behind()
                backlog.interrupted()
                return True
            seen.append(file.sequence)
            backlog.replayed(file.sequence)
        if len(page) < limit:
            backlog.caught_up()
        else:
            backlog.fall_behind()
        return True

    def tell() -> None:
        log.append(commit(len(log) + 1))
        backlog.told(log[-1], working)

    for step in steps:
        if step == "commit":
            tell()
        elif step == "restart":
            working = not working
        elif working:
            deliver(data.draw(st.integers(1, 3)), step == "fail", data.draw(st.integers(0, 2)))
        assert len(backlog) <= room
    working = True
    while deliver(3, fails=False, commits_between=0):
        pass
    assert backlog.done
    first_seen = list(dict.fromkeys(seen))
    assert first_seen == list(range(1, len(log) + 1)), "something was left out, or came out of order"
    assert backlog.cursor == len(log)
    if "fail" not in steps:
        assert seen == first_seen, "something came twice although nothing failed"
    # What comes again comes as a run: never an older one between newer ones.
    for before, after in itertools.pairwise(seen):
        assert after == before + 1 or after <= before


def test_what_is_queued_and_replayed_is_delivered_once() -> None:
    backlog = Backlog(9, can_replay=True, since=0)
    assert backlog.catching_up() == 0
    backlog.told(commit(1), working=True)  # committed before the catalog was read, and told all the same
    backlog.told(commit(2), working=True)
    backlog.replayed(1)
    backlog.caught_up()
    assert [file.sequence for file in backlog.batch(9)] == [2]


def test_without_a_catalog_what_does_not_fit_is_counted() -> None:
    backlog = Backlog(2, can_replay=False, since=None)
    for sequence in range(5, 10):
        backlog.told(commit(sequence), working=False)
    assert (len(backlog), backlog.missed_count, backlog.behind) == (2, 3, False)


def test_a_batch_ends_where_the_origin_changes() -> None:
    backlog = Backlog(9, can_replay=False, since=None)
    for sequence, origin in ((1, ()), (2, ()), (3, ("x",)), (4, ())):
        backlog.told(commit(sequence, origin=origin), working=True)
    sizes = []
    while batch := backlog.batch(9):
        sizes.append(len(batch))
        backlog.acknowledge(batch)
    assert sizes == [2, 1, 1]


def test_restarts_are_few_and_come_back() -> None:
    restarts = Restarts((1.0, 4.0))
    assert [restarts.failed(now_s) for now_s in (0.0, 10.0, 20.0, 30.0)] == [1.0, 4.0, None, None]
    assert restarts.failed(615.0) is None, "three still count"
    restarts.forgive()
    assert restarts.failed(616.0) == 1.0
    assert restarts.failed(616.0 + FORGIVEN_AFTER_S) == 1.0


# ---- safetensors


def file_of(header: Any, payload: bytes = b"", length: int | None = None) -> memoryview:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return memoryview(struct.pack("<Q", len(text) if length is None else length) + text + payload)


def entry(begin: int = 0, end: int = 8, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_the_library_writes_is_read() -> None:
    tensors = {
        "w": np.zeros((3, 4), np.float32), "b": np.zeros(0, np.float64), "i": np.zeros((), np.int8),
        "h": np.ones((2, 1, 2), np.float16), "é": np.ones(3, bool),
    }  # fmt: skip
    data = safetensors.numpy.save(tensors, {"step": "3"})
    found, metadata = read_header(memoryview(data))
    assert metadata == {"step": "3"}
    assert {name: tensor.shape for name, tensor in found.items()} == {name: a.shape for name, a in tensors.items()}
    assert found["w"] == Tensor("F32", (3, 4))
    assert read_header(memoryview(safetensors.numpy.save({}))) == ({}, {})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (memoryview(b""), "has 0 bytes"),
        (memoryview(b"\xff" * 8), "says its header has 18,446,744,073,709,551,615 bytes, and 0 follow"),
        (file_of({}, length=3), "says its header has 3 bytes, and 2 follow"),
        (file_of(b" " * (17 << 20)), "header of 17,825,792 bytes, and 16,777,216 are read"),
        (file_of(b"[" * 90_000), "nested too deep"),
        (file_of(b'{"a":'), "not JSON"),
        (file_of(b"\xff\xfe"), "not JSON"),
        (file_of([1]), "is a list and not an object"),
        (file_of({"__metadata__": {"a": 1}}), "metadata that are not strings"),
        (file_of({"__metadata__": "x"}), "metadata that are not strings"),
        (file_of({"w": 3}), "'w' without exactly"),
        (file_of({"w": {**entry(), "more": 1}}, bytes(8)), "'w' without exactly"),
        (file_of({"w": entry(dtype="F33")}, bytes(8)), "dtype 'F33', which is not known"),
        (file_of({"w": entry(dtype=[])}, bytes(8)), "dtype [], which is not known"),
        (file_of({"w": entry(shape=[2.0])}, bytes(8)), "not lists of sizes"),
        (file_of({"w": entry(shape=[-2])}, bytes(8)), "not lists of sizes"),
        (file_of({"w": entry(shape=[True])}, bytes(8)), "not lists of sizes"),
        (file_of({"w": entry(shape=[1] * 65)}, bytes(8)), "not lists of sizes"),
        (file_of({"w": entry(shape=[1 << 62] * 9)}, bytes(8)), "impossible size"),
        (file_of({"w": entry(shape=[3])}, bytes(8)), "12 bytes, and its data_offsets say 8"),
        (file_of({"w": entry(0, 8)}, bytes(9)), "tensors of 8 bytes by its header, and 9 follow"),
        (file_of({"w": entry(0, 8)}, bytes(7)), "tensors of 8 bytes by its header, and 7 follow"),
        (file_of({"w": entry(1, 9)}, bytes(9)), "tensor 'w' at 1, and the one before it ends at 0"),
        (file_of({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "'b' at 4, and the one before it ends at 8"),
        (file_of({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "'b' at 0, and the one before it ends at 8"),
        (file_of({"w": entry(8, 0)}, bytes(8)), "data_offsets say -8"),
        (file_of({"w": entry(0, 1 << 62)}, bytes(8)), "data_offsets say"),
        (file_of(b'{"w":1,"w":2}'), "the same name twice"),
    ],
)  # fmt: skip
def test_a_lying_safetensors_header_is_refused(data: memoryview, sentence: str) -> None:
    with pytest.raises(NotSafetensors) as raised:
        read_header(data)
    assert sentence in str(raised.value)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A cut, a few wrong bytes, or both."""
    changed = bytearray(data)
    for _ in range(chance.randrange(4)):
        changed[chance.randrange(len(changed))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    return bytes(changed[: chance.randrange(len(changed))] if chance.random() < 0.3 else changed)


def test_damaged_safetensors_are_refused_or_whole() -> None:
    """Whatever ours takes, the format's own reader takes too."""
    chance = random.Random(5)
    data = safetensors.numpy.save({"w": np.zeros((3, 4), np.float32), "b": np.ones(3, np.int16)}, {"step": "3"})
    refused_count = 0
    for _ in range(3000):
        changed = damaged(data, chance)
        try:
            found, _ = read_header(memoryview(changed))
        except NotSafetensors:
            refused_count += 1
        else:
            theirs = safetensors.deserialize(changed)
            assert {name for name, _ in theirs} == set(found)
    assert refused_count > 300


# ---- Arrow and Parquet

TABLE = pa.table({"x": pa.array([[1.0, 2.0], [3.0]], pa.list_(pa.float32())), "label": pa.array([1, 2], pa.int64())})
COLUMNS = [("x", "list<item: float>"), ("label", "int64")]


def written(kind: str) -> bytes:
    sink = io.BytesIO()
    if kind == "parquet":
        pq.write_table(TABLE, sink, row_group_size=1)
    else:
        new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with new(sink, TABLE.schema) as writer:
            for _ in range(3):
                writer.write_table(TABLE)
    return sink.getvalue()


KINDS = ["file", "stream", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_read_of_what_is_whole(kind: str) -> None:
    data = written(kind)
    found = read_schema(memoryview(data))
    assert [(name, text.replace("element", "item")) for name, text in found] == COLUMNS
    cut = len(data) * 2 // 3
    with pytest.raises(NotArrow):
        read_schema(memoryview(data)[:cut])


@pytest.mark.parametrize("data", [b"", b"ARROW1", b"ARROW1\0\0", b"PAR1", b"PAR1PAR1PAR1", b"\0" * 8, b"\xff" * 64])
def test_what_is_nothing_is_refused(data: bytes) -> None:
    with pytest.raises(NotArrow):
        read_schema(memoryview(data))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_arrow_is_refused_or_read(kind: str) -> None:
    """Never anything but an answer: no other exception, no crash."""
    chance = random.Random(11)
    data = written(kind)
    refused_count = 0
    for _ in range(1500):
        try:
            read_schema(memoryview(damaged(data, chance)))
        except NotArrow:
            refused_count += 1
    assert refused_count > 100


# ---- options and names


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"on_failure": "ajar"}, "on_failure is 'open' or 'closed'"),
        ({"on_failure": ["open"]}, "on_failure is"),
        ({"nonsense": 1}, "there is no option 'nonsense' of an observer: there are on_failure"),
        ({"pre_commit_limit_s": 0}, "pre_commit_limit_s is a number from 0.001 on"),
        ({"pre_commit_limit_s": float("nan")}, "pre_commit_limit_s is a number"),
        ({"pre_commit_limit_s": "5"}, "pre_commit_limit_s is a number"),
        ({"post_commit_limit_s": float("inf")}, "post_commit_limit_s is a number"),
        ({"memory_bytes": 1.5e9}, "memory_bytes is a number"),
        ({"memory_bytes": 1000}, "memory_bytes is a number"),
        ({"batch_count": True}, "batch_count is a number"),
        ({"batch_count": 1000}, "batch_count is 256 at most"),
        ({"queue_count": 0}, "queue_count is a number"),
        ({"restart_delays_s": 3}, "restart_delays_s is a list"),
        ({"restart_delays_s": [-1]}, "restart_delays_s is a list"),
        ({"restart_delays_s": ["1"]}, "restart_delays_s is a list"),
    ],
)
def test_bad_options_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        ObserverOptions.from_mapping(given)


def test_good_options_are_taken() -> None:
    options = ObserverOptions.from_mapping({"on_failure": "closed", "restart_delays_s": [], "pre_commit_limit_s": 1})
    assert (options.on_failure, options.restart_delays_s, options.pre_commit_limit_s) == ("closed", (), 1)


def test_what_is_shipped_is_found_without_an_installation() -> None:
    assert {"validate", "keep_best"} <= set(names())
    assert find("validate").value == "storage_tier.observers.validate:Validate"
