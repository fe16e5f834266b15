"""`keep_best`: of the files of a directory the best K stay, by a metric; the others are deleted.

    attach /models/demo/checkpoints keep_best {"metric": "accuracy", "keep": 3, "best": "best.safetensors"}
    attach /models/demo/checkpoints keep_best {"metric": "loss", "order": "min", "metric_file": "{stem}.json"}

Each time something is committed there it looks at the whole directory. So it does not matter in which order files
and metrics come, nor whether it is told twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from storage_tier.errors import InvalidRequest, TierError
from storage_tier.observers.base import CommittedFile, Context, Environment, FileInfo, Observer
from storage_tier.observers.parameters import Parameters, is_count, is_text

MAX_METRIC_FILE_BYTES = 1 << 20


class KeepBest(Observer):
    """Deletes all but the best files directly in its directory. Files without a metric are left alone.

    Parameters:
        metric: its name. A number; in the metadata of a commit also as text. What is not a number ('nan') is worst.
        keep: how many stay; 1 when it is left out.
        order: 'max' (the default) or 'min': which is best. Of two that are equal the later name is the better.
        files: a pattern of names, '*.safetensors' by default.
        metric_file: where the metric is, if not in the metadata of the file: the name of a JSON file beside it, as
            '{stem}.json' or '{name}.metrics.json'. It is deleted with its file.
        best: a name in the directory under which the best file is also found.
    """

    def __init__(
        self, metric: str, keep_count: int, largest: bool, pattern: str, metric_file: str | None, best: str | None
    ) -> None:
        self._metric = metric
        self._keep_count = keep_count
        self._largest = largest
        self._pattern = pattern
        self._metric_file = metric_file
        self._best = best
        self._published: tuple[str, int] | None = None  # the file and version under `best`

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> KeepBest:
        given = Parameters("keep_best", parameters)
        metric = given.take("metric", "", is_text, "the name of a metric")
        keep_count = given.take("keep", 1, is_count, "a number of files from 1 on")
        order = given.take("order", "max", lambda value: value in ("max", "min"), "'max' or 'min'")
        pattern = given.take("files", "*.safetensors", is_text, "a pattern of names")
        metric_file = given.take("metric_file", None, _is_template, "a name with {stem} or {name} in it, without '/'")
        best = given.take("best", None, lambda value: is_text(value) and "/" not in value, "a name without '/'")
        given.done()
        if not metric:
            raise InvalidRequest("keep_best needs the name of its metric, such as metric=accuracy")
        return cls(metric, keep_count, order == "max", pattern, metric_file, best)

    def post_commit(self, context: Context, batch: Sequence[CommittedFile]) -> None:
        env = context.env
        prefix = env.directory.rstrip("/") + "/"
        beside = {info.path[len(prefix) :]: info for info in env.list(env.directory) if _is_in(info.path, prefix)}
        ranked: list[tuple[float, str]] = []
        for name in beside:
            if name != self._best and fnmatchcase(name, self._pattern):
                value = self._value(env, beside, name)
                if value is not None:
                    ranked.append((value, name))
        ranked.sort(reverse=True)
        if ranked and self._best is not None:
            self._publish(env, beside[ranked[0][1]], prefix + self._best)
        for value, name in ranked[self._keep_count :]:
            env.log.info("%s goes: %s ranks it at %g", name, self._metric, value)
            for gone in (name, self._beside(name)):
                if gone in beside:
                    _delete(env, beside[gone])

    def _publish(self, env: Environment, best: FileInfo, target: str) -> None:
        if self._published != (best.path, best.version):
            env.copy(best.path, target)
            self._published = (best.path, best.version)

    def _beside(self, name: str) -> str:
        stem = name.rpartition(".")[0] or name
        return (self._metric_file or "").replace("{stem}", stem).replace("{name}", name)

    def _value(self, env: Environment, beside: Mapping[str, FileInfo], name: str) -> float | None:
        """The metric of a file, larger is better; None when there is none."""
        if self._metric_file is None:
            found: object = beside[name].metadata.get(self._metric)
        else:
            info = beside.get(self._beside(name))
            found = None if info is None else _read(env, info, self._metric)
        try:
            value = float(found)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            if found is not None:
                env.log.warning("%s of %s is %.40r, which is no number", self._metric, name, found)
            return None
        if math.isnan(value):
            return -math.inf
        return value if self._largest else -value


def _read(env: Environment, info: FileInfo, metric: str) -> object:
    """The metric in a JSON file; None when it is not there, or that is no such file."""
    if info.size_bytes > MAX_METRIC_FILE_BYTES:
        env.log.warning("%s has %d bytes, too many for a file of metrics", info.path, info.size_bytes)
        return None
    try:
        with env.open(info.path, info.version) as file:
            found = json.loads(bytes(file.data))
    except TierError as error:
        # Gone, or another version by now: then we are told of that.
        env.log.info("%s is not read: %s", info.path, error)
        return None
    except (ValueError, RecursionError) as error:
        env.log.warning("%s is not JSON: %s", info.path, error)
        return None
    value = found.get(metric) if isinstance(found, dict) else None
    return None if isinstance(value, bool) else value


def _delete(env: Environment, info: FileInfo) -> None:
    try:
        env.delete(info.path, info.version)
    except TierError as error:
        # It is gone, or it is another version by now: then that is looked at when we are told of it.
        env.log.info("%s stays: %s", info.path, error)


def _is_in(path: str, prefix: str) -> bool:
    return path.startswith(prefix) and "/" not in path[len(prefix) :]


def _is_template(value: Any) -> bool:
    return is_text(value) and "/" not in value and ("{stem}" in value or "{name}" in value)
