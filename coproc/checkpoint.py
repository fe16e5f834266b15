"""The file of a checkpoint: one whole version of a model, with all that is needed to go on from it. Pure.

A safetensors file. Its tensors are the model's, by name, and then the optimizer's state, `optimizer/ROW/TENSOR`; all
float32, in this order and without holes: one vector (1 + rows of state, P). Its metadata, strings as the format has
them:

    format      "coproc-checkpoint-1"
    model       JSON: the description of the model, without its places
    layout      the fingerprint of its layout
    version, updates, epoch
    learning_rate
    ledger      JSON: [[worker, presence, next step, offset], ...], the log's sum as of the version
    metadata    JSON: what the user gave along
    crc32       of the tensors' bytes, 8 hexadecimal digits

A file is believed in nothing: what was cut or altered is found before anything is made of it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coproc.errors import CorruptCheckpoint
from coproc.layout import ParamLayout
from storage_tier.observers.safetensors_header import NotSafetensors, make_header, read_header

FORMAT = "coproc-checkpoint-1"
# Room for workers that join between the measuring of the header and the cut.
SPARE_WORKERS = 64
# Digits of a ledger's row at the most, and of the numbers that stand alone.
_ROW_BYTES, _NUMBERS_BYTES = 56, 256
_FLOAT_BYTES = 4
# Of the checksum: long enough that a call is nothing, short enough that the thread can be stopped.
_PIECE_BYTES = 16 << 20

Value = str | int | float | bool | None
Ledger = tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says beside its tensors."""

    model: str
    """The description of the model, as JSON text."""
    version: int
    updates: int
    """That were descended so far: bias corrections count with it."""
    learning_rate: float
    """In force at the version."""
    epoch: int
    """Of the model: +1 at each restore."""
    ledger: Ledger
    """(worker, presence, next step, offset) as of the version."""
    metadata: Mapping[str, Value]
    """The user's."""


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read."""

    facts: Facts
    rows: NDArray[np.float32]
    """(1 + rows of state, P): the parameters, then the state. Views of the file's bytes."""


def tensors_of(layout: ParamLayout, state_rows: tuple[str, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of each tensor of the file, in order."""
    prefixes = ["", *(f"optimizer/{row}/" for row in state_rows)]
    return [(prefix + name, "F32", shape) for prefix in prefixes for name, shape in layout.shapes.items()]


def header_bytes(layout: ParamLayout, state_rows: tuple[str, ...], facts: Facts) -> int:
    """How long a header may become until the cut; `facts` as they are now. What `header` is given."""
    workers = len(facts.ledger) + SPARE_WORKERS
    shortest = len(make_header(tensors_of(layout, state_rows), _texts(layout, facts, 0)))
    return shortest + workers * _ROW_BYTES + _NUMBERS_BYTES


def header(layout: ParamLayout, state_rows: tuple[str, ...], facts: Facts, crc32: int, length_bytes: int) -> bytes:
    """The file's beginning, exactly as long as told; a multiple of 64.

    Raises:
        ValueError: it has no room there, for too many workers have joined.
    """
    tensors, texts = tensors_of(layout, state_rows), _texts(layout, facts, crc32)
    short = make_header(tensors, texts)
    if len(short) > length_bytes:
        raise ValueError(f"a header of {len(short):,} bytes does not fit into {length_bytes:,}")
    return (length_bytes - 8).to_bytes(8, "little") + short[8:].ljust(length_bytes - 8)


def _texts(layout: ParamLayout, facts: Facts, crc32: int) -> dict[str, str]:
    return {
        "format": FORMAT,
        "model": facts.model,
        "layout": layout.fingerprint,
        "version": str(facts.version),
        "updates": str(facts.updates),
        "epoch": str(facts.epoch),
        "learning_rate": repr(facts.learning_rate),
        "ledger": json.dumps(facts.ledger, separators=(",", ":")),
        "metadata": json.dumps(dict(facts.metadata)),
        "crc32": f"{crc32:08x}",
    }


def checksum(data: memoryview) -> int:
    """CRC-32 of bytes, in pieces without the interpreter lock."""
    crc32 = 0
    for start in range(0, len(data), _PIECE_BYTES):
        crc32 = zlib.crc32(data[start : start + _PIECE_BYTES], crc32)
    return crc32


def read_facts(data: memoryview, what: str) -> Facts:
    """What a file says beside its tensors. Reads no tensor.

    Raises:
        CorruptCheckpoint: it is none, or was cut; `what` names it.
    """
    return _read(data, what)[0]


def _read(data: memoryview, what: str) -> tuple[Facts, dict[str, str], dict[str, Any]]:
    try:
        tensors, texts = read_header(data)
    except NotSafetensors as error:
        raise CorruptCheckpoint(f"{what} is no whole checkpoint: it {error}") from None
    if texts.get("format") != FORMAT:
        found = texts.get("format")
        raise CorruptCheckpoint(
            f"{what} is no checkpoint: its metadata should say the format {FORMAT!r}, "
            f"{f'and say {found!r:.80}' if found is not None else 'and say none'}"
        )
    try:
        facts = Facts(
            model=texts["model"],
            version=_count(texts["version"]),
            updates=_count(texts["updates"]),
            learning_rate=float(texts["learning_rate"]),
            epoch=_count(texts["epoch"]),
            ledger=tuple(_row(row) for row in json.loads(texts["ledger"])),
            metadata=dict(json.loads(texts["metadata"])),
        )
        int(texts["crc32"], 16)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{what} was altered: its metadata cannot be: {type(error).__name__} {error}") from None
    return facts, texts, tensors


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number < 1 << 53:
        raise ValueError(f"{number} is no count")
    return number


def _row(row: Any) -> tuple[int, int, int, int]:
    worker, presence, next_step, offset = (int(number) for number in row)
    if not 0 <= worker < 1 << 20 or presence not in (1, 2) or not 0 <= next_step < 1 << 53 or abs(offset) >= 1 << 53:
        raise ValueError(f"{row} is no row of a ledger")
    return worker, presence, next_step, offset


def read(data: memoryview, layout: ParamLayout, state_rows: tuple[str, ...], what: str) -> Checkpoint:
    """A whole file of a model of this layout and these rows of state. One pass over its bytes; copies none.

    Raises:
        CorruptCheckpoint: it was cut or altered, or is another model's; `what` names it.
    """
    facts, texts, found = _read(data, what)
    if texts.get("layout") != layout.fingerprint:
        raise CorruptCheckpoint(
            f"{what} was altered: its tensors should have the layout {layout.fingerprint}, and its metadata say "
            f"{texts.get('layout')!r:.40}"
        )
    expected = tensors_of(layout, state_rows)
    begin = int.from_bytes(data[:8], "little") + 8
    at = begin
    for name, dtype, shape in expected:
        tensor = found.pop(name, None)
        if tensor is None:
            raise CorruptCheckpoint(f"{what} was altered: it should have tensor {name!r:.80}, and lacks it")
        if (tensor.dtype, tensor.shape, tensor.begin_bytes) != (dtype, shape, at):
            raise CorruptCheckpoint(
                f"{what} was altered: tensor {name!r:.80} should be {dtype} {list(shape)} at byte {at:,}, and is "
                f"{tensor.dtype} {list(tensor.shape)} at {tensor.begin_bytes:,}"
            )
        at = tensor.end_bytes
    if found:
        raise CorruptCheckpoint(
            f"{what} was altered: it has tensor {next(iter(found))!r:.80}, which is not the model's"
        )
    crc32 = checksum(data[begin:])
    if crc32 != int(texts["crc32"], 16):
        raise CorruptCheckpoint(
            f"{what} was altered: the checksum of its tensors should be {texts['crc32']!r:.20}, and is {crc32:08x}"
        )
    rows = np.frombuffer(data, np.float32, (1 + len(state_rows)) * layout.size, begin)
    return Checkpoint(facts, rows.reshape(1 + len(state_rows), layout.size))
