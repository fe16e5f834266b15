"""What S3 does with many objects in one request, and fsspec has no word for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from fsspec.spec import AbstractFileSystem

from storage_tier.under.calls import Call

PROTOCOLS = frozenset({"s3", "s3a"})
# What one request lists or deletes, and the largest object that it copies.
PAGE_COUNT = 1000
_COPY_BYTES = 4 << 30


def pages(fs: AbstractFileSystem, full: str, count: int = PAGE_COUNT) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """All objects below a name, however deep, as fsspec describes them, `count` a request; and whether more come.

    In the order of their keys' bytes. An object "dir/" that stands for a directory is one of them.
    """
    bucket, _, key = full.partition("/")
    after: dict[str, str] = {}
    while True:
        prefix = f"{key}/" if key else ""
        answer = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=count, **after, **fs.req_kw)
        more = bool(answer.get("IsTruncated"))
        yield (
            [
                {**found, "name": f"{bucket}/{found['Key']}", "size": found["Size"], "type": "file"}
                for found in answer.get("Contents", ())
            ],
            more,
        )
        if not more:
            return
        after = {"ContinuationToken": answer["NextContinuationToken"]}


def look(fs: AbstractFileSystem, full: str) -> dict[str, Any]:
    """What is at a name, as fsspec describes it: as a rule one request, also where nothing is.

    Raises:
        FileNotFoundError: neither an object, nor a part of the names of others.
    """
    bucket, _, key = full.partition("/")
    # Of all keys that begin with it the key itself is the first; those behind a slash may come after others.
    for prefix in (key, f"{key}/"):
        answer = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1, **fs.req_kw)
        for found in answer.get("Contents", ()):
            if found["Key"] == key:
                return {**found, "size": found["Size"], "type": "file"}
            if found["Key"].startswith(f"{key}/"):
                return {"type": "directory"}
        if not answer.get("Contents"):
            break
    raise FileNotFoundError(full)


def remove_all(fs: AbstractFileSystem, names: Sequence[str], call: Call) -> None:
    """Remove objects; one that is not there is no error. A thousand a request where the server has that."""
    for first in range(0, len(names), PAGE_COUNT):
        some = names[first : first + PAGE_COUNT]
        call.moved()
        bucket = some[0].partition("/")[0]
        objects = [{"Key": name.partition("/")[2]} for name in some]
        failed = objects
        # Some that speak S3 know no such request, or not for keys that XML cannot hold: then one by one, which tells.
        with contextlib.suppress(OSError):
            answer = fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
            failed = answer.get("Errors", [])
        for one in failed:
            call.moved()
            fs.rm_file(f"{bucket}/{one['Key']}")


def copy(fs: AbstractFileSystem, old: str, new: str, size_bytes: int) -> None:
    """Copy an object whose size is known: without another look at it."""
    if size_bytes > _COPY_BYTES:
        fs.cp_file(old, new)
        return
    (bucket, _, key), (new_bucket, _, new_key) = old.partition("/"), new.partition("/")
    fs.call_s3("copy_object", Bucket=new_bucket, Key=new_key, CopySource={"Bucket": bucket, "Key": key})


def abort_uploads(fs: AbstractFileSystem, root: str, older_than_s: float) -> int:
    """Abort uploads in parts that were never completed: they are seen by nobody, and paid for. Returns how many."""
    bucket, _, prefix = root.partition("/")
    aborted_count = 0
    for upload in fs.list_multipart_uploads(bucket):
        key, begun = upload["Key"], upload["Initiated"]
        ours = not prefix or key.startswith(prefix + "/")
        if ours and (datetime.now(UTC) - begun).total_seconds() >= older_than_s:
            fs.abort_mpu(bucket, key, upload["UploadId"])
            aborted_count += 1
    return aborted_count
