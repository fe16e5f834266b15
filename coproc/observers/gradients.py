"""A gradient as a safetensors file, believed in nothing. Pure.

Its tensors are the model's, by name, all float32. Its metadata, strings as the format has them, say whose it is:
`worker`, `step` and `examples` (the number of examples that it is the mean of), and, where they are known, `loss`
(the mean loss over them) and `version` (the model's version that it was computed on).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coproc.consistency import Bsp
from coproc.layout import Flat, ParamLayout, all_finite
from coproc.shared.control import MAX_WORKERS
from coproc.spec import MOST_EXAMPLES, MOST_STEPS, ModelSpec
from storage_tier.observers.safetensors_header import NotSafetensors, Tensor, read_header

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
# Of one entry: its name has 256 characters at most, escaped six bytes each.
_ENTRY_BYTES = 2048
_HEADER_BYTES = 1 << 16
_NAMES_SHOWN = 5
# 1 MiB: what is looked at is still in the cache.
_PIECE = 1 << 18


class NotGradient(ValueError):
    """No gradient of its model; the message says why, and goes after 'it'."""


@dataclass(frozen=True)
class Gradient:
    """What a file says of itself, checked but for the values."""

    worker: int
    step: int
    examples: int
    loss: float
    """NaN if it is not told."""
    version: int
    """-1 if it is not told."""
    tensors: Mapping[str, Tensor]

    @property
    def turn(self) -> tuple[int, int]:
        """Whose push it is: counted once, whatever files there are."""
        return self.worker, self.step


def read_gradient(data: memoryview, spec: ModelSpec) -> Gradient:
    """Take a file's header apart. Reads no tensor.

    Raises:
        NotGradient.
    """
    shapes = spec.layout.shapes
    try:
        tensors, metadata = read_header(data, _HEADER_BYTES + _ENTRY_BYTES * len(shapes))
    except NotSafetensors as error:
        raise NotGradient(str(error)) from None
    for problem, names in (
        ("lacks", [name for name in shapes if name not in tensors]),
        ("has, beyond the model's,", [name for name in tensors if name not in shapes]),
    ):
        if names:
            more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
            shown = ", ".join(f"{name!r:.80}" for name in names[:_NAMES_SHOWN])
            raise NotGradient(f"{problem} the tensor{'s' if len(names) > 1 else ''} {shown}{more}")
    for name, shape in shapes.items():
        found = tensors[name]
        if found.dtype != "F32":
            raise NotGradient(f"has tensor {name!r:.80} of dtype {found.dtype}, and gradients are F32")
        if found.shape != shape:
            raise NotGradient(
                f"has tensor {name!r:.80} of shape {list(found.shape)}, and the model's has {list(shape)}"
            )
    consistency = spec.consistency
    most_workers = consistency.workers if isinstance(consistency, Bsp) else MAX_WORKERS
    return Gradient(
        worker=_number(metadata, "worker", 0, most_workers - 1),
        step=_number(metadata, "step", 0, MOST_STEPS),
        examples=_number(metadata, "examples", 1, MOST_EXAMPLES),
        loss=_loss(metadata),
        version=_number(metadata, "version", 0, MOST_STEPS) if "version" in metadata else -1,
        tensors=tensors,
    )


def check_finite(gradient: Gradient, data: memoryview) -> None:
    """Look at all values.

    Raises:
        NotGradient: one is not finite.
    """
    for name, values in _values(gradient, data).items():
        for start in range(0, values.size, _PIECE):
            piece = values[start : start + _PIECE]
            if all_finite(piece):
                continue
            at = start + int(np.flatnonzero(~np.isfinite(piece))[0])
            shape = gradient.tensors[name].shape
            index = [int(i) for i in np.unravel_index(at, shape)] if shape else []
            raise NotGradient(f"is not finite: {name}{index} is {values[at]}")


def fill(gradient: Gradient, data: memoryview, layout: ParamLayout, flat: Flat) -> bool:
    """Copy the values to where a model's vector (P,) has them; whether all are finite."""
    values = _values(gradient, data)
    return layout.fill(flat, {name: values[name].reshape(shape) for name, shape in layout.shapes.items()})


def _values(gradient: Gradient, data: memoryview) -> dict[str, Flat]:
    return {
        name: np.frombuffer(data[tensor.begin_bytes : tensor.end_bytes], "<f4")
        for name, tensor in gradient.tensors.items()
    }


def _number(metadata: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = metadata.get(name)
    if text is None:
        raise NotGradient(
            f"lacks {name!r} in its metadata: worker, step and examples are whole numbers, written as strings"
        )
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise NotGradient(f"has {name} {text!r:.60} in its metadata, and it is a whole number from {least} to {most}")
    return int(text)


def _loss(metadata: Mapping[str, str]) -> float:
    text = metadata.get("loss")
    if text is None:
        return math.nan
    try:
        loss = float(text)
    except ValueError:
        loss = math.inf
    if not math.isfinite(loss):
        raise NotGradient(f"has loss {text!r:.60} in its metadata, and a finite number is wanted")
    return loss
