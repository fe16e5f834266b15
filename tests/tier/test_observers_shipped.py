"""The observers that are shipped: the suite that every observer has to pass, and what is their own."""

from __future__ import annotations

import io
import json
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from storage_tier.observers import ObserverOptions, Vetoed
from storage_tier.testing.memory import MemoryTier
from storage_tier.testing.observers import ObserverSuite, refusal

TIMEOUT_S = 60.0


def tensors(**shapes: tuple[int, ...]) -> bytes:
    data: bytes = safetensors.numpy.save({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    return data


def arrow(**columns: Any) -> bytes:
    table = pa.table(columns)
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


class TestValidateTensors(ObserverSuite):
    name = "validate"
    parameters: ClassVar = {
        "tensors": {"w": {"dtype": "F32", "shape": [3, None]}},
        "files": "*.safetensors",
    }
    bad_parameters: ClassVar = [
        {},
        {"tensors": {}, "columns": {}},
        {"tensors": 3},
        {"tensors": {"w": "F32"}},
        {"tensors": {"w": {"dtype": "float32"}}},
        {"tensors": {"w": {"dtype": []}}},
        {"tensors": {"w": {"shape": [-1]}}},
        {"tensors": {"w": {"shape": 3}}},
        {"tensors": {"w": {"shapes": []}}},
        {"tensors": {}, "extra": "maybe"},
        {"tensors": {}, "files": ""},
        {"tensors": {}, "metadata": "step"},
    ]
    files: ClassVar = [(f"/watched/{n}.safetensors", tensors(w=(3, n)), {}) for n in range(4)]
    odd_paths: ClassVar = ["/watched/odd.safetensors", "/watched/odd"]


class TestValidateColumns(ObserverSuite):
    name = "validate"
    parameters: ClassVar = {"columns": {"x": "int64", "y": None}}
    bad_parameters: ClassVar = [
        {"columns": ["x"]},
        {"columns": {"x": 3}},
        {"columns": {}, "tensors": {}},
    ]
    files: ClassVar = [
        ("/watched/a", arrow(x=[1], y=["b"]), {}),
        ("/watched/b", parquet(x=[1], y=[2.0]), {}),
    ]


class TestAverage(ObserverSuite):
    name = "average"
    parameters: ClassVar = {"decay": 0.5}
    bad_parameters: ClassVar = [
        {"decay": 1},
        {"decay": -0.1},
        {"decay": "0.5"},
        {"decay": True},
        {"files": "/models/*"},
        {"target": ""},
        {"target": "average/"},
    ]
    files: ClassVar = [(f"/watched/{n}.safetensors", tensors(w=(3,)), {}) for n in range(4)]
    odd_paths: ClassVar = ["/watched/odd.safetensors"]


class TestKeepBest(ObserverSuite):
    name = "keep_best"
    parameters: ClassVar = {"metric": "accuracy", "keep": 2, "files": "*", "best": "best"}
    bad_parameters: ClassVar = [
        {},
        {"metric": ""},
        {"metric": 3},
        {"metric": "a", "keep": 0},
        {"metric": "a", "keep": True},
        {"metric": "a", "order": "best"},
        {"metric": "a", "metric_file": "metrics.json"},
        {"metric": "a", "metric_file": "../{name}"},
        {"metric": "a", "best": "a/b"},
    ]
    files: ClassVar = [(f"/watched/{n}", b"%d" % n, {"accuracy": str(n * 5 % 7)}) for n in range(7)]


class TestKeepBestByFile(ObserverSuite):
    name = "keep_best"
    parameters: ClassVar = {"metric": "loss", "order": "min", "metric_file": "{stem}.json"}
    files: ClassVar = [
        ("/watched/a.safetensors", b"a", {}),
        ("/watched/a.json", b'{"loss": 3}', {}),
        ("/watched/b.json", b'{"loss": 2}', {}),
        ("/watched/b.safetensors", b"b", {}),
    ]
    odd_paths: ClassVar = ["/watched/odd.safetensors", "/watched/odd.json"]


@pytest.fixture
def tier() -> Any:
    with MemoryTier() as made:
        yield made


# ---- validate


@pytest.mark.parametrize(
    ("parameters", "data", "sentence"),
    [
        ({"tensors": {"w": {}}}, tensors(w=(2,)), None),
        ({"tensors": {"w": {"shape": [None]}}}, tensors(w=(2,)), None),
        ({"tensors": {"w": {}}}, tensors(v=(2,)), "lacks the tensor 'w'; it has 'v'"),
        ({"tensors": {"w": {}}}, tensors(w=(2,), v=(2,)), "has the tensor 'v', which nobody wants"),
        ({"tensors": {"w": {}}, "extra": "allow"}, tensors(w=(2,), v=(2,)), None),
        ({"tensors": {"w": {"dtype": "F64"}}}, tensors(w=(2,)), "of dtype F32, and F64 is wanted"),
        ({"tensors": {"w": {"shape": [3]}}}, tensors(w=(2,)), "of shape [2], and [3] is wanted"),
        ({"tensors": {"w": {"shape": [2, None]}}}, tensors(w=(2,)), "of shape [2], and [2, any] is wanted"),
        ({"tensors": {"w": {}}, "metadata": ["step"]}, tensors(w=(2,)), "lacks 'step' in its metadata"),
        ({"tensors": {"w": {}}}, tensors(w=(2,))[:-1], "8 bytes by its header, and 7 follow"),
        ({"tensors": {"w": {}}, "files": "*.safetensors"}, b"another name", None),
        ({"columns": {"x": "int64"}}, arrow(x=[1]), None),
        ({"columns": {"x": "int64"}}, parquet(x=[1]), None),
        ({"columns": {"x": "int32"}}, arrow(x=[1]), "column 'x' of type int64, and int32 is wanted"),
        ({"columns": {"y": None}}, parquet(x=[1]), "lacks the column 'y'; it has 'x'"),
        ({"columns": {"x": None}, "metadata": ["step"]}, arrow(x=[1]), "lacks 'step' in its metadata"),
        ({"columns": {"x": None}}, arrow(x=[1])[:-20], "is not whole"),
        ({"columns": {"x": None}}, parquet(x=[1])[:-1], "is cut"),
        ({"columns": {"x": None}}, tensors(w=(2,)), "is not whole or not of this kind"),
    ],
)
def test_validate_says_what_is_wrong(
    tier: MemoryTier, parameters: dict[str, Any], data: bytes, sentence: str | None
) -> None:
    tier.host.attach("/a", "validate", parameters)
    found = refusal(tier, "/a/x", data)
    if sentence is None:
        assert found is None
    else:
        assert found is not None
        assert sentence in found
        assert found.startswith("/a/x is not ")
        assert tier.stored == {}


def test_validate_takes_metadata_of_the_file_or_of_the_commit(tier: MemoryTier) -> None:
    tier.host.attach("/a", "validate", {"tensors": {"w": {}}, "metadata": ["step"]})
    inside = safetensors.numpy.save({"w": np.zeros(2, np.float32)}, {"step": "1"})
    assert refusal(tier, "/a/x", inside) is None
    assert refusal(tier, "/a/x", tensors(w=(2,)), {"step": 1}) is None


def test_validate_is_closed_unless_it_is_told_otherwise(tier: MemoryTier) -> None:
    for directory, options in (("/a", None), ("/b", ObserverOptions(on_failure="open"))):
        tier.host.attach(directory, "validate", {"tensors": {}}, options)
    assert [state.on_failure for state in tier.host.attachments()] == ["closed", "open"]


# ---- keep_best


def names(tier: MemoryTier) -> list[str]:
    assert tier.host.flush(TIMEOUT_S)
    assert [state.failure for state in tier.host.attachments()] == [""]
    return sorted(path.removeprefix("/a/") for path in tier.stored)


def put_metrics(tier: MemoryTier, **metrics: Any) -> None:
    for name, metric in metrics.items():
        tier.put(f"/a/{name}.safetensors", name.encode(), {} if metric is None else {"m": metric})


def test_keep_best_keeps_the_largest(tier: MemoryTier) -> None:
    tier.host.attach("/a", "keep_best", {"metric": "m", "keep": 2})
    put_metrics(tier, a="0.5", b="0.9", c="0.7", d="0.1", nan="nan", none=None, text="high")
    tier.put("/a/other.txt", b"", {"m": "0.0"})
    tier.put("/a/below/e.safetensors", b"", {"m": "0.0"})
    assert names(tier) == ["b.safetensors", "below/e.safetensors", "c.safetensors", "none.safetensors", "other.txt",
                           "text.safetensors"]  # fmt: skip


def test_keep_best_keeps_the_smallest_and_of_equals_the_later_name(tier: MemoryTier) -> None:
    tier.host.attach("/a", "keep_best", {"metric": "m", "order": "min", "keep": 2})
    put_metrics(tier, a=3, b=1, c=3, d=7, e="nan", f="-inf")
    assert names(tier) == ["b.safetensors", "f.safetensors"]
    put_metrics(tier, g=1)
    assert names(tier) == ["f.safetensors", "g.safetensors"]


def test_keep_best_publishes_the_best(tier: MemoryTier) -> None:
    tier.host.attach("/a", "keep_best", {"metric": "m", "best": "best.safetensors"})
    put_metrics(tier, a=1, b=3, c=2)
    assert names(tier) == ["b.safetensors", "best.safetensors"]
    assert tier.get("/a/best.safetensors") == b"b"
    put_metrics(tier, d=4)
    assert names(tier) == ["best.safetensors", "d.safetensors"]
    assert tier.get("/a/best.safetensors") == b"d"


def test_keep_best_reads_metrics_beside(tier: MemoryTier) -> None:
    tier.host.attach("/a", "keep_best", {"metric": "m", "metric_file": "{name}.metrics"})
    put_metrics(tier, a=9, b=9, c=9, d=9)
    assert len(names(tier)) == 4, "without a metric nothing goes"
    for name, text in (("a", {"m": 1}), ("b", {"m": 2}), ("c", {"n": 9}), ("d", {"m": True})):
        tier.put(f"/a/{name}.safetensors.metrics", json.dumps(text).encode())
    assert names(tier) == ["b.safetensors", "b.safetensors.metrics", "c.safetensors", "c.safetensors.metrics",
                           "d.safetensors", "d.safetensors.metrics"]  # fmt: skip


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"[1]", b'{"m": [1]}', b'{"m": 1e999}', b" " * (2 << 20)])
def test_keep_best_takes_odd_metrics_for_none(tier: MemoryTier, text: bytes) -> None:
    tier.host.attach("/a", "keep_best", {"metric": "m", "metric_file": "{stem}.json"})
    put_metrics(tier, a=None, b=None)
    tier.put("/a/a.json", text)
    assert len(names(tier)) == 3


def test_keep_best_leaves_a_version_that_came_meanwhile(tier: MemoryTier) -> None:
    """The delete names the version that was ranked."""
    put_metrics(tier, a=1, b=2)
    delete = tier.delete

    def late(path: str, if_version: int | None, origin: tuple[str, ...]) -> None:
        if path == "/a/a.safetensors" and if_version == 1:
            put_metrics(tier, a=3)
        delete(path, if_version, origin)

    tier.delete = late  # type: ignore[method-assign]
    tier.host.attach("/a", "keep_best", {"metric": "m"}, since=0)
    assert names(tier) == ["a.safetensors"]
    assert tier.stored["/a/a.safetensors"].file.version == 2


def test_both_at_once(tier: MemoryTier) -> None:
    tier.host.attach("/a", "validate", {"tensors": {"w": {}}, "files": "*.safetensors"})
    tier.host.attach("/a", "keep_best", {"metric": "m", "best": "best.safetensors"})
    for number in range(5):
        tier.put(f"/a/{number}.safetensors", tensors(w=(number,)), {"m": number})
    with pytest.raises(Vetoed):
        tier.put("/a/9.safetensors", tensors(v=(1,)), {"m": 9})
    assert tier.host.flush(TIMEOUT_S)
    assert sorted(tier.stored) == ["/a/4.safetensors", "/a/best.safetensors"]


# ---- average


def constant(value: float, dtype: str = "float32", **more: Any) -> bytes:
    data: bytes = safetensors.numpy.save({"w": np.full(1000, value, dtype), **more})
    return data


def averaged(tier: MemoryTier, path: str = "/a/average.safetensors") -> dict[str, Any]:
    assert tier.host.flush(TIMEOUT_S), tier.host.attachments()[0].traceback
    found: dict[str, Any] = safetensors.numpy.load(tier.get(path))
    return found


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_average_is_the_closed_form(tier: MemoryTier, dtype: str) -> None:
    tier.host.attach("/a", "average", {"decay": 0.75})
    expected = 0.0
    for number in range(8):
        tier.put(f"/a/{number}.safetensors", constant(number, dtype, count=np.array([number])))
        expected = number if number == 0 else 0.75 * expected + 0.25 * number
    found = averaged(tier)
    assert found["w"].dtype == dtype
    np.testing.assert_allclose(found["w"], expected, rtol=5e-3 if dtype == "float16" else 1e-6)
    assert found["count"].tolist() == [7], "what is no float is the newest"
    assert tier.stored["/a/average.safetensors"].file.metadata["count"] == 8


def test_average_of_a_folder_below_goes_where_it_is_told(tier: MemoryTier) -> None:
    parameters = {"decay": 0.5, "files": "checkpoints/*.safetensors", "target": "mean"}
    tier.host.attach("/a", "average", parameters)
    for path, value in (
        ("/a/checkpoints/1.safetensors", 1),
        ("/a/gradients/1.safetensors", 100),
        ("/a/2.safetensors", 7),
    ):
        tier.put(path, constant(value))
    tier.put("/a/checkpoints/nan.safetensors", constant(np.nan))
    tier.put("/a/checkpoints/3.safetensors", constant(3))
    assert (averaged(tier, "/a/mean")["w"] == 2).all()
    tier.put("/a/checkpoints/4.safetensors", tensors(other=(3,)))
    assert list(averaged(tier, "/a/mean")) == ["other"], "other tensors begin a new average"


def test_average_loses_nothing_to_another_server(tier: MemoryTier) -> None:
    """The other one writes between the look at the average and the write."""
    write, others = tier.write, []

    def late(path: str, fd: int, size_bytes: int, metadata: Any, origin: Any, if_version: int | None) -> Any:
        if not others:
            told = {"other": 5, **json.loads(str(tier.stored[path].file.metadata["told"]))}
            others.append(tier.put(path, constant(9), {"count": 2, "told": json.dumps(told)}))
        return write(path, fd, size_bytes, metadata, origin, if_version)

    tier.host.attach("/a", "average", {"decay": 0.5})
    tier.put("/a/1.safetensors", constant(1))
    assert (averaged(tier)["w"] == 1).all()
    tier.write = late  # type: ignore[method-assign]
    tier.put("/a/2.safetensors", constant(2))
    assert (averaged(tier)["w"] == 5.5).all()
    assert json.loads(str(tier.stored["/a/average.safetensors"].file.metadata["told"])).keys() == {"other", ""}
