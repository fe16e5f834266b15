"""The last words of a training: what was reached, where it is, what to try next."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from coproc.cli.base import PROGRAM, amount

if TYPE_CHECKING:
    from coproc.training import Result, TrainConfig

# Below it a measure says more about which rows there were than about the network.
ROWS_THAT_TELL = 100
# An epoch that gains more is worth another one: a tenth of a percent of the rows, or a hundredth of an error.
GAIN_ACCURACY = 0.001
GAIN_ERROR = 0.01
# A loss on unseen rows so many times the one on the training rows is learned by heart.
BY_HEART = 2.0


def closing_words(result: Result, config: TrainConfig, *, demo: bool, validated: bool) -> str:
    """Some lines for a person, each short enough for 80 columns but for the names in it."""
    lines = [*_reached(result, validated), *_saved(result)]
    if demo:
        lines += _after_demo()
    elif result.history and not result.interrupted:
        lines += _next(result.history, config, validated)
    return "\n".join(lines)


def _reached(result: Result, validated: bool) -> list[str]:
    epochs = len(result.history)
    ended = "Stopped" if result.interrupted else "Trained"
    text = f"{ended} after {epochs} epoch{'s' if epochs != 1 else ''} and {result.wall_s:.0f} s"
    if not result.history:
        return [f"{text}; no epoch was finished."]
    last = result.history[-1]
    rows = "the validation rows" if validated else "a sample of the training rows"
    text += f": {amount(result.backend.layout.size)} parameters, training loss {last['loss']:.4f}."
    if "accuracy" in last:
        return [text, f"{100 * last['accuracy']:.2f} % of {rows} are right."]
    rmse = last.get("validation_rmse", last.get("sample_rmse", float("nan")))
    return [text, f"Root mean square error {rmse:.4g} on {rows}."]


def _saved(result: Result) -> list[str]:
    path = os.path.join(result.output or "", "model.safetensors")
    return [f"Saved {path}", "with history.jsonl and run.json beside it."]


def _after_demo() -> list[str]:
    return [
        "Try next:",
        f"  {PROGRAM} train --consistency ssp",
        "      the same, with workers up to 4 steps apart",
        f"  {PROGRAM} train YOUR.parquet --label COLUMN --validation OTHER.parquet",
        "      your own data",
        f"  {PROGRAM} serve",
        "      a cluster that stays; then train with --address",
    ]


def _next(history: list[dict[str, Any]], config: TrainConfig, validated: bool) -> list[str]:
    """What is worth trying, by what was just done."""
    if history[-1]["examples"] < ROWS_THAT_TELL:
        return ["These are few rows: more of them will help more than any setting."]
    lines = []
    if not validated:
        lines.append("  --validation FILE   rows it has not seen tell how good it is")
    advice = advise(history, config, validated)
    if advice:
        lines.append(f"  {advice}")
    if config.consistency == "bsp" and config.workers > 1:
        lines.append("  --consistency ssp   workers wait less for each other")
    return ["Try next, with the same command:", *lines] if lines else []


def advise(history: list[dict[str, Any]], config: TrainConfig, validated: bool) -> str:
    """The one setting that should help most, by the last two epochs; empty if none suggests itself.

    `history` has a row at least. Its measures are of the validation rows, or else of a sample of the training rows.
    """
    first, last = history[0], history[-1]
    if last["loss"] > first["loss"]:
        return f"--learning-rate {config.rate / 10:g}   the loss grew: the steps are too large"
    if len(history) == 1:
        return f"--epochs {5 * config.epochs}   one pass over the rows is seldom enough"
    if improved(history[-2], last):
        return f"--epochs {2 * config.epochs}   the last epoch still made it better"
    if validated and last.get("validation_loss", 0.0) > BY_HEART * last["loss"]:
        if config.hidden and config.dropout < 0.5:
            return f"--dropout {config.dropout + 0.3:.1f}   it knows the training rows better than the others"
        return ""
    if sum(config.hidden) < 1024 and last.get("accuracy", 0.0) < 1 - GAIN_ACCURACY:
        return f"--hidden {'1024,1024' if config.hidden else '256'}   a larger network"
    return ""


def improved(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether an epoch made the model better on the rows that it is measured on."""
    if "accuracy" in after:
        return after["accuracy"] - before["accuracy"] > GAIN_ACCURACY
    for name in ("validation_rmse", "sample_rmse"):
        if math.isfinite(after.get(name, math.nan)):
            return after[name] < (1 - GAIN_ERROR) * before[name]
    return False
