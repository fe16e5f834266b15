"""`average`: the exponential average of the versions of a model, as a file.

    attach /models/demo average {"files": "checkpoints/*.safetensors", "decay": 0.9}

makes and keeps /models/demo/average.safetensors: with each safetensors file that is committed,

    average = decay x average + (1 - decay) x file

where the first file is the average to begin with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_tier.errors import BlockNotFound, InvalidRequest, PathNotFound, ServerFailed, VersionConflict
from storage_tier.headers import Metadata
from storage_tier.observers.base import CommittedFile, Context, Environment, Observer, OpenFile
from storage_tier.observers.parameters import Parameters, is_text
from storage_tier.observers.safetensors_header import NotSafetensors, make_header, read_header

# Of these the average is taken; of all others the newest.
_FLOATS: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
# Other servers may run it too, each for the files that are committed through it.
_TRIES = 100
_GONE = (PathNotFound, BlockNotFound)

Key = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of a tensor."""


@dataclass
class _Average:
    """What is in the target, and what it was made of."""

    version: int
    """0 where there is none."""
    count: int
    told: dict[str, int]
    """Address of a server -> the last of its commits that is in the average: what comes again is left out."""
    tensors: dict[Key, NDArray[Any]]
    """Of `_FLOATS` in at least 32 bits, of others as bytes."""


class Average(Observer):
    """Keeps an exponential average. What is no safetensors, or not finite, is left out; other tensors begin a new one.

    Each commit counts once, also after a restart, and with several servers. A version that was replaced before it was
    looked at does not count.

    Parameters:
        decay: from 0 (the newest) to less than 1; 0.99 by default: of the last hundred.
        files: a pattern of paths below the directory; '*.safetensors' by default: those directly in it.
        target: where the average goes, below the directory or absolute; 'average.safetensors' by default.
    """

    def __init__(self, decay: float, pattern: str, target: str) -> None:
        self._decay = decay
        self._pattern = pattern.split("/")
        self._target = target

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Average:
        given = Parameters("average", parameters)
        decay = given.take("decay", 0.99, _is_decay, "a number from 0 to less than 1")
        pattern = given.take("files", "*.safetensors", _is_relative, "a pattern of paths below the directory")
        target = given.take("target", "average.safetensors", is_text, "a path")
        given.done()
        return cls(float(decay), pattern, target)

    def start(self, env: Environment) -> None:
        if not self._target.startswith("/"):
            self._target = f"{env.directory.rstrip('/')}/{self._target}"
        if self._target.endswith("/"):
            raise InvalidRequest(f"target of average is a file, and {self._target} would be a directory")

    def post_commit(self, context: Context, batch: Sequence[CommittedFile]) -> None:
        env = context.env
        files = [file for file in batch if self._matches(env, file.path)]
        if not files:
            return
        me = str(env.facts.get("address", ""))
        for _ in range(_TRIES):
            average = _read_average(env, self._target)
            last = average.told.get(me, -1)
            fresh = [file for file in files if file.sequence > last]
            if not fresh:
                return
            if not sum(self._take(env, average, file) for file in fresh):
                return
            average.told[me] = fresh[-1].sequence
            try:
                env.write(self._target, _as_file(average), _facts(average), average.version)
                return
            except VersionConflict:
                continue  # another server was faster
        raise ServerFailed(f"{self._target} was replaced {_TRIES} times while it was averaged: who else writes it?")

    def _matches(self, env: Environment, path: str) -> bool:
        names = path.removeprefix(env.directory.rstrip("/") + "/").split("/")
        return path != self._target and len(names) == len(self._pattern) and all(map(fnmatchcase, names, self._pattern))

    def _take(self, env: Environment, average: _Average, file: CommittedFile) -> bool:
        """Take one file into the average; whether it was one."""
        try:
            with env.open(file.path, file.version) as opened:
                found = _read_tensors(opened)
        except (*_GONE, VersionConflict) as error:
            env.log.info("%s is left out: %s", file.path, error)
            return False
        except NotSafetensors as error:
            env.log.warning("%s is left out: it %s", file.path, error)
            return False
        if not all(key[1] not in _FLOATS or np.isfinite(values).all() for key, values in found.items()):
            env.log.warning("%s is left out: it is not finite, and the average would be so for ever", file.path)
            return False
        if average.tensors.keys() != found.keys():
            if average.tensors:
                env.log.warning("%s has other tensors than those before it: a new average begins", file.path)
            average.tensors, average.count = found, 1
            return True
        for key, values in found.items():
            if key[1] in _FLOATS:
                mean = average.tensors[key]
                mean *= self._decay
                values *= 1 - self._decay
                mean += values
            else:
                average.tensors[key] = values
        average.count += 1
        return True


def _read_average(env: Environment, path: str) -> _Average:
    try:
        with env.open(path) as file:
            try:
                told = {str(name): int(number) for name, number in json.loads(str(file.metadata["told"])).items()}
                return _Average(file.info.version, int(file.metadata["count"]), told, _read_tensors(file))
            except (KeyError, ValueError, AttributeError, TypeError, NotSafetensors):
                env.log.warning("%s is no average of this observer: a new one takes its place", path)
                return _Average(file.info.version, 0, {}, {})
    except _GONE:
        return _Average(0, 0, {}, {})


def _read_tensors(file: OpenFile) -> dict[Key, NDArray[Any]]:
    """Copies, of floats in the type in which they are averaged.

    Raises:
        NotSafetensors.
    """
    data = file.data
    found: dict[Key, NDArray[Any]] = {}
    for name, tensor in read_header(data)[0].items():
        part = data[tensor.begin_bytes : tensor.end_bytes]
        kind = _FLOATS.get(tensor.dtype)
        values: NDArray[Any] = np.frombuffer(part, np.uint8 if kind is None else kind)
        wide = values.dtype if kind is None or kind.itemsize > 4 else np.dtype(np.float32)
        found[name, tensor.dtype, tensor.shape] = values.astype(wide)
    return found


def _as_file(average: _Average) -> bytearray:
    parts = [
        values.astype(_FLOATS[dtype], copy=False) if dtype in _FLOATS else values
        for (_, dtype, _), values in average.tensors.items()
    ]
    content = bytearray(make_header(average.tensors, {"count": str(average.count)}))
    for values in parts:
        content += values.tobytes()
    return content


def _facts(average: _Average) -> Metadata:
    return {"count": average.count, "told": json.dumps(average.told)}


def _is_decay(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value < 1


def _is_relative(value: Any) -> bool:
    return is_text(value) and not value.startswith("/")
