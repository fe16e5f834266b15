"""The filesystem below a mount point: what it costs in requests, what it finds, and what it says when S3 fails."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from coproc import LocalCluster
from storage_tier.errors import UnderFull, UnderRefused
from storage_tier.files import Files
from storage_tier.filesystem import TierFileSystem
from storage_tier.under.write_type import WriteType

from .files_servers import cluster, files, put  # noqa: F401
from .s3_endpoint import S3Endpoint, s3, s3_server  # noqa: F401


@pytest.fixture(scope="module")
def server() -> Iterator[LocalCluster]:
    with LocalCluster(1, memory_bytes=64 << 20) as made:
        yield made


@pytest.fixture
def bucket(s3: S3Endpoint) -> str:  # noqa: F811
    return s3.make_bucket()


@pytest.fixture
def fs(server: LocalCluster, s3: S3Endpoint, bucket: str) -> Iterator[TierFileSystem]:  # noqa: F811
    made = TierFileSystem(address=server.address, skip_instance_cache=True)
    made.client.mount("/lake", f"s3://{bucket}/p", s3.options, "cache_through")
    s3.requests.clear()
    yield made
    s3.fault = None
    made.client.unmount("/lake", discard=True)
    made.close()


def test_what_it_costs(fs: TierFileSystem, s3: S3Endpoint) -> None:  # noqa: F811
    def requests(act: object) -> int:
        s3.requests.clear()
        act()
        return len(s3.requests)

    paths = [f"/lake/d/{number % 4}/{number}" for number in range(8)]
    assert requests(lambda: fs.pipe(paths[0], b"x")) <= 3
    assert requests(lambda: fs.pipe(paths[0], b"y")) <= 2
    for path in paths[1:]:
        fs.pipe(path, b"x")
    assert requests(lambda: fs.cat(paths)) == requests(lambda: fs.info(paths[0])) == 0
    assert requests(lambda: fs.find("/lake")) == requests(lambda: fs.glob("/lake/**")) == 1
    assert requests(lambda: fs.du("/lake/d")) == 1
    assert requests(lambda: fs.mv("/lake/d", "/lake/e", recursive=True)) <= 8 + len(paths)
    assert fs.find("/lake") == sorted(path.replace("/d/", "/e/") for path in paths)
    assert requests(lambda: fs.rm("/lake/e/0/0")) == 1
    assert s3.requests[0].startswith("DELETE ")
    assert requests(lambda: fs.rm("/lake/e", recursive=True)) == 2
    assert fs.ls("/lake") == []


def test_all_that_is_there_is_found_page_by_page(
    files: Files,  # noqa: F811
    s3: S3Endpoint,  # noqa: F811
    bucket: str,
) -> None:
    files.mount("/lake", f"s3://{bucket}", s3.options, "cache_through")
    below = ["a", "b-c/d", "b/x", "b/y/z", "c", "c/hidden by the object", "m/only there", "ä"]
    for key in below:
        s3.put(bucket, key, b"below")
    for name in ("b/known", "n/o/known", "z"):
        put(files, f"/lake/{name}", write_type=WriteType.MUST_CACHE if name == "z" else None)
    whole = files.find("/lake")
    paths = [entry.path.removeprefix("/lake/") for entry in whole]
    assert paths == [
        *("a", "b", "b/known", "b/x", "b/y", "b/y/z", "b-c", "b-c/d", "c", "m", "m/only there"),
        *("n", "n/o", "n/o/known", "z", "ä"),
    ]
    assert {entry.path for entry in whole if entry.block_id} == {"/lake/b/known", "/lake/n/o/known", "/lake/z"}
    for count in (1, 3):
        found, after = [], None
        while page := files.find("/lake", after, count):
            found += page
            after = page[-1].path
        assert found == whole
    # One directory after the other it is the same.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage_tier.under.store.UnderStore.find", lambda store, path: None)
        assert files.find("/lake") == whole
    assert [entry.path for entry in files.find("/")][:2] == ["/lake", "/lake/a"]
    assert [entry.path for entry in files.find("/lake/b-c")] == ["/lake/b-c/d"]


@pytest.mark.parametrize(
    ("answer", "expected", "builtin", "number"),
    [
        (("403 Forbidden", "AccessDenied"), UnderRefused, PermissionError, errno.EACCES),
        (("507 Insufficient Storage", "XMinioStorageFull"), UnderFull, OSError, errno.ENOSPC),
    ],
)
def test_what_s3_refuses_is_told_and_leaves_nothing(
    fs: TierFileSystem,
    s3: S3Endpoint,  # noqa: F811
    bucket: str,
    answer: tuple[str, str],
    expected: type[OSError],
    builtin: type[OSError],
    number: int,
) -> None:
    fs.pipe("/lake/kept", b"kept")
    s3.fault = lambda environ: answer if environ["REQUEST_METHOD"] in ("PUT", "DELETE", "POST") else None
    for act in (
        lambda: fs.pipe("/lake/a", b"x"),
        lambda: fs.pipe("/lake/kept", b"changed"),
        lambda: fs.rm("/lake/kept"),
    ):
        with pytest.raises(expected, match=rf"s3://{bucket}/p: .*answered by a test") as caught:
            act()
        assert isinstance(caught.value, builtin)
        assert caught.value.errno == number
    assert fs.find("/lake") == ["/lake/kept"]
    assert fs.cat("/lake/kept") == s3.get(bucket, "p/kept") == b"kept"
    s3.fault = lambda environ: answer
    assert fs.cat("/lake/kept") == b"kept", "what is in memory is read on"
    with pytest.raises(expected):
        fs.ls("/lake")
    s3.fault = None
    fs.pipe("/lake/a", b"x")
    assert s3.get(bucket, "p/a") == b"x"


def test_what_waits_for_s3_is_kept_and_arrives(fs: TierFileSystem, s3: S3Endpoint, bucket: str) -> None:  # noqa: F811
    s3.fault = lambda environ: ("403 Forbidden", "AccessDenied") if environ["REQUEST_METHOD"] == "PUT" else None
    fs.client.put("/lake/a", b"a" * (40 << 20), write_type="async_through")
    assert fs.info("/lake/a")["persisted"] == "waiting"
    with pytest.raises(MemoryError, match="not persisted"):
        fs.pipe("/big", b"b" * (40 << 20))
    assert fs.cat_file("/lake/a", -1, None) == b"a"
    s3.fault = None
    fs.client.persist("/lake/a", 30)
    fs.pipe("/big", b"b" * (40 << 20))
    assert fs.info("/lake/a")["persisted"] == "done"
    assert len(s3.get(bucket, "p/a")) == 40 << 20
    fs.rm("/big")
