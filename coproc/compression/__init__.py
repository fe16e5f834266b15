"""Compressions of gradients and parameters between hosts, by name or as values: `Model.join(compression=...)`.

    "fp16"   coproc.compression.FP16()                 1/2 of the bytes, 11 significant bits
    "bf16"   coproc.compression.BF16()                 1/2, 8 significant bits, the range of float32
    "int8"   coproc.compression.Int8()                 1/4, 254 levels between the extremes of each 4,096 values
    "topk"   coproc.compression.TopK(fraction=0.01)    1.5 times the fraction: the largest values exactly, no others

A compression more is one file more in this folder; see `coproc.compression.base`. What it leaves out of one push or
pull is in a later one; see `coproc.compression.feedback`.
"""

from __future__ import annotations

from coproc.compression.base import Compression, as_compression, from_config, from_json, registered
from coproc.compression.bf16 import BF16
from coproc.compression.feedback import Replica, Residual, Sending
from coproc.compression.fp16 import FP16
from coproc.compression.int8 import Int8
from coproc.compression.topk import TopK

__all__ = [
    "BF16",
    "FP16",
    "Compression",
    "Int8",
    "Replica",
    "Residual",
    "Sending",
    "TopK",
    "as_compression",
    "from_config",
    "from_json",
    "registered",
]


def __getattr__(name: str) -> type[Compression]:
    """A compression that somebody added as a file."""
    for kind in registered().values():
        if kind.__name__ == name:
            return kind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
