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
import time
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from coproc import checkpoint
from coproc.client import Client, connect
from coproc.errors import ConfigError, CoprocError, DataError, ModelExists, ModelNotFound
from coproc.ingest import Ingested
from coproc.modes.base import ModeSettings, deletion
from coproc.training.base import Plan
from coproc.training.config import TrainConfig
from coproc.training.output import HISTORY, RUN
from storage_tier import TierClient
from storage_tier.errors import DirectoryNotEmpty, MountConflict, PathNotFound, TierError
from storage_tier.wire import trust

# What may be another than before: who computes, where, and what is kept on the way. The result does not depend on it.
FREE = {
    *("pool", "servers", "shards", "address", "token", "tls_authority", "group_size"),
    *("checkpoints", "checkpoint_every", "checkpoint_s", "checkpoint_keep"),
}
# Workers of a driver that was killed end soon after it; a model that somebody holds without a push for so long is left.
GONE_WITHIN_S, STILL_S = 20.0, 2.0
PERSISTED_WITHIN_S = 10.0
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


def own_name(run: str) -> str:
    """Of the model of a run that was given none; no other one has it."""
    return f"train-{run}"


def identity_of(tier: TierClient, model: str) -> str:
    """What tells a model from others that had its name; '' where its mode does not say so."""
    try:
        return str(tier.stat(f"/models/{model}/spec.json").metadata.get("identity", ""))
    except PathNotFound:
        return ""


def require_own(client: Client, name: str, before: Mapping[str, Any], config: TrainConfig) -> None:
    """Refuse to resume where the run's model stands and is another run's by now, or is still pushed to.

    Waits for workers whose driver was killed to end.

    Raises:
        ModelExists: with what differs, or who is there.
    """
    try:
        model = client.model(name)
    except ModelNotFound:
        return
    spec, differs = model.spec, []
    if spec.layout.size != before.get("parameters"):
        differs.append(f"it has {spec.layout.size:,} parameters, and this run's has {before.get('parameters'):,}")
    for what, its, own in (
        ("optimizer", spec.optimizer, config.optimizer_rule()),
        ("consistency", spec.consistency, config.consistency_rule()),
    ):
        if its.to_config() != own.to_config():
            differs.append(f"its {what} is {its.to_config()}, and this run's is {own.to_config()}")
    if name != own_name(before["run"]) and spec.identity != before.get("identity"):
        differs.append("it was created by another run, or anew")
    there = f"there is a model {name!r} at {client.address} already, and"
    delete = deletion(name, client.address, config.token)
    if differs:
        raise ModelExists(
            f"{there} it is not the one of the run that is to be resumed: {'; '.join(differs)}. If nobody needs it, "
            f"delete it, and the run goes on from its newest checkpoint: {delete}"
        )
    still_since = time.monotonic()
    deadline, now = still_since + GONE_WITHIN_S, model.status()
    while now.seats_count and time.monotonic() - still_since < STILL_S:  # who only reads has a seat too
        time.sleep(0.1)
        then, now = now, model.status()
        if now.pushes_count != then.pushes_count:
            still_since = time.monotonic()
        if time.monotonic() > deadline:
            raise ModelExists(
                f"{there} its workers push: the run that is to be resumed still goes on somewhere. End it first"
            )


def take_over(settings: ModeSettings) -> None:
    """Where the model of a run that is resumed still stands: write it as a checkpoint, and remove it.

    So a run goes on in one way only, and with the shards and places that it is given now. Nothing that was acknowledged
    and could be admitted is lost.

    Raises:
        CoprocError: no checkpoint could be written; then the model stays, and the sentence says what to do.
    """
    with connect(settings.address, token=settings.token, tls=trust(settings.tls_authority)) as client:
        try:
            model = client.model(settings.model)
        except ModelNotFound:
            return
        try:
            model.checkpoint()
        except CoprocError as error:
            delete = deletion(settings.model, settings.address, settings.token)
            raise type(error)(
                f"the model of this run still stands at {settings.address}, and no checkpoint of it can be written: "
                f"{error}. To go on from the newest one that there is, delete it: {delete}"
            ) from error
        model.delete()


class Place:
    """Where the checkpoints of a run go: an under-store, mounted where its model writes them."""

    def __init__(self, tier: TierClient, model: str, url: str, again: bool = False) -> None:
        """Mount it. What is committed there is in the under-store before it counts: the memory may be gone at once.

        Args:
            again: of a run that is resumed, which may have left it mounted.

        Raises:
            TierError: it cannot be opened, or something else is there.
        """
        self.url = url
        self.path = f"/models/{model}/checkpoints"
        self._tier = tier
        if again:
            with contextlib.suppress(PathNotFound, MountConflict):
                self._unmount()
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

    def _unmount(self) -> None:
        deadline = time.monotonic() + PERSISTED_WITHIN_S
        while True:
            try:
                return self._tier.unmount(self.path)
            except DirectoryNotEmpty:  # the newest is on its way to the under-store
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def close(self) -> None:
        """Unmount it, after the model is gone. An unreachable tier has nothing mounted any more."""
        with contextlib.suppress(TierError), contextlib.closing(self._tier):
            self._unmount()
            self._tier.remove_directory(self.path.removesuffix("/checkpoints"), recursive=True)
