"""Going on with a run that was killed or stopped: from its directory, and the newest whole of its checkpoints.

The settings and the fingerprints of the data are in run.json, written before the first step; the model, the optimizer's
state and the step of each worker are in the checkpoint. A batch is a function of the step, so a synchronous run that
goes on ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from coproc import checkpoint
from coproc.errors import ConfigError, DataError
from coproc.ingest import Ingested
from coproc.training.base import Plan, TrainConfig
from coproc.training.output import HISTORY, RUN
from storage_tier import TierClient
from storage_tier.errors import TierError

# What may be another than before: who computes, where, and what is kept on the way. The result does not depend on it.
FREE = {
    *("pool", "servers", "shards", "address", "token", "tls_authority", "group_size"),
    *("checkpoints", "checkpoint_every", "checkpoint_s", "checkpoint_keep"),
}
_NAME = re.compile(r"[0-9]{12,19}\.safetensors")


def recorded(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What a run wrote of itself into its output directory.

    Raises:
        ConfigError: it is no directory of a run.
    """
    path = Path(directory) / RUN
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or not isinstance(found["config"], dict) or not isinstance(found["run"], str):
            raise ValueError("it has other contents")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no run in {directory} to be resumed: {path} is missing. Name the --output of that run"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is not what a run has written: {error}") from None
    return found


def config_of(directory: str | os.PathLike[str], changes: Mapping[str, Any]) -> TrainConfig:
    """The settings of the run in `directory`, with changes of where it runs.

    Raises:
        ConfigError: no run, or a setting that does not exist any more, or as `TrainConfig`.
    """
    known = {each.name: each for each in fields(TrainConfig)}
    values = recorded(directory)["config"]
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        raise ConfigError(f"the run in {directory} was begun by another version of coproc: it has settings {unknown}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    # A cluster that it had for itself is gone, and so may the other one be: that is named again.
    given["address"] = None
    missing = [name for name, each in known.items() if name not in given and each.default is MISSING]
    if missing:
        raise ConfigError(f"{Path(directory) / RUN} lacks the settings {missing}")
    return TrainConfig(**{**given, **changes})


def check_settings(before: Mapping[str, Any], config: TrainConfig) -> None:
    """Raises ConfigError if a run would go on with other settings than it had."""
    now = json.loads(json.dumps(config.to_json_values()))
    for name, value in now.items():
        was = before["config"].get(name, value)
        if name not in FREE | {"model"} and was != value:
            raise ConfigError(
                f"a run is resumed with its own settings: {name} was {was!r}, not {value!r}. For others begin a new one"
            )


def check_data(before: Mapping[str, Any], ingested: Ingested) -> None:
    """Raises DataError if the rows are not those that the run began with."""
    was = [part["fingerprint"] for part in before["data"]["partitions"]]
    now = [part.fingerprint for part in ingested.partitions]
    if was != now:
        differ = [number for number, (one, other) in enumerate(zip(was, now, strict=False)) if one != other]
        raise DataError(
            f"the run had {len(was)} partitions of data, and {ingested.origin} gives {len(now)}, of which the numbers "
            f"{differ[:5]} have other rows: resume it with the data that it had, or begin a new run"
        )


def history_before(directory: Path, epoch: int) -> list[dict[str, Any]]:
    """The rows of epochs that were over when the checkpoint was taken: 1, 2, 3, ... without holes.

    Fewer than `epoch` if the run ended between an epoch's last push and its row.
    """
    rows: list[dict[str, Any]] = []
    try:
        for line in (directory / HISTORY).read_text().splitlines():
            row = json.loads(line)
            if row["epoch"] == len(rows) + 1 <= epoch:
                rows.append(row)
    except (OSError, ValueError):
        return rows  # killed within the last line
    return rows


class Place:
    """Where the checkpoints of a run go: an under-store, mounted where its model writes them."""

    def __init__(self, tier: TierClient, model: str, url: str) -> None:
        """Mount it. What is committed there is in the under-store before it counts: the memory may be gone at once.

        Raises:
            TierError: it cannot be opened, or something else is there.
        """
        self.url = url
        self.path = f"/models/{model}/checkpoints"
        self._tier = tier
        tier.mount(self.path, url, write_type="cache_through")

    def newest_first(self) -> list[str]:
        """Paths of the checkpoints in it."""
        found = [info.path for info in self._tier.list(self.path) if _NAME.fullmatch(info.path.rpartition("/")[2])]
        return sorted(found, reverse=True)

    def epoch_of(self, path: str, plan: Plan) -> int:
        """The epoch that is open in a checkpoint, 0 the first: some worker still has something to do in it.

        Raises:
            CorruptCheckpoint.
        """
        with self._tier.open(path) as file:
            ledger = checkpoint.read_facts(file.data, path).ledger
        steps = {worker: next_step for worker, _, next_step, _ in ledger}
        begun = [steps.get(worker, 0) // pushes for worker, pushes in enumerate(plan.pushes_per_epoch) if pushes]
        return min([*begun, plan.config.epochs])

    def close(self) -> None:
        """Unmount it, after the model is gone. An unreachable tier has nothing mounted any more."""
        with contextlib.suppress(TierError), contextlib.closing(self._tier):
            self._tier.unmount(self.path)
            self._tier.remove_directory(self.path.removesuffix("/checkpoints"), recursive=True)
