"""What a run leaves in its output directory: model.safetensors, history.jsonl, run.json; checkpoints beside them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coproc.errors import ConfigError
from coproc.training.base import EpochRow, Flat

MODEL, HISTORY, RUN = "model.safetensors", "history.jsonl", "run.json"
CHECKPOINTS = "checkpoints"


class Output:
    """The files of one run. Each is written whole or not at all; only the history grows, by lines."""

    def __init__(self, directory: str | os.PathLike[str], resume: bool = False) -> None:
        """Make the directory, and begin the history; of a run that is resumed leave it as it is.

        Raises:
            ConfigError: it cannot be written to; better said before the training than after it.
        """
        self.directory = Path(directory)
        self._made = not self.directory.exists()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not resume:
                (self.directory / HISTORY).write_text("")
        except OSError as error:
            raise ConfigError(f"--output {self.directory} cannot be written to: {error.strerror}") from None

    def discard(self) -> None:
        """Nothing came of the run: remove the directory, if the run made it and it still has no model."""
        if self._made and not (self.directory / MODEL).exists():
            shutil.rmtree(self.directory, ignore_errors=True)

    def checkpoints_url(self) -> str:
        """Of a directory for them, which is made."""
        folder = self.directory.absolute() / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        return folder.as_uri()

    def begin_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Have these rows and no others before the next one."""
        _replace(self.directory / HISTORY, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def row(self, row: EpochRow) -> None:
        """Add a line to the history."""
        with open(self.directory / HISTORY, "a") as file:
            file.write(json.dumps(row.to_json_values()) + "\n")

    def model(self, params: Mapping[str, Flat], facts: Mapping[str, str]) -> Path:
        """Write the parameters; `facts` goes into the header of the file."""
        from safetensors.numpy import save

        path = self.directory / MODEL
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in params.items()}
        _replace(path, save(tensors, dict(facts)))
        return path

    def run(self, values: Mapping[str, Any]) -> None:
        """Write what was asked for and what came out."""
        _replace(self.directory / RUN, (json.dumps(values, indent=2) + "\n").encode())


def checksum(flat: Flat) -> str:
    """32 hexadecimal digits of the parameters' bytes: two runs with the same are the same model."""
    return hashlib.blake2b(np.ascontiguousarray(flat).tobytes(), digest_size=16).hexdigest()


def versions() -> dict[str, str]:
    """Of what the result depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("coproc", "numpy", "numba", "pyarrow", "pyspark"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _replace(path: Path, data: bytes) -> None:
    """Atomic: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
