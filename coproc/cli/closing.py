"""The last words of a training: what was reached, where it is, what to try next."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from coproc.cli.base import amount

if TYPE_CHECKING:
    from coproc.training import Result, TrainConfig


def closing_words(result: Result, config: TrainConfig, *, demo: bool, validated: bool) -> str:
    """Some lines for a person."""
    return "\n".join([_reached(result, config, validated), _saved(result), *_next(result, config, demo, validated)])


def _reached(result: Result, config: TrainConfig, validated: bool) -> str:
    epochs = len(result.history)
    ended = "Stopped" if result.interrupted else "Trained"
    text = f"{ended} after {epochs} epoch{'s' if epochs != 1 else ''} and {result.wall_s:.0f} s"
    if not result.history:
        return f"{text}; no epoch was finished."
    last = result.history[-1]
    rows = "the validation rows" if validated else "a sample of the training rows"
    if "accuracy" in last:
        text += f": {100 * last['accuracy']:.2f} % of {rows} are right"
    else:
        rmse = last.get("validation_rmse", last.get("sample_rmse", float("nan")))
        text += f": root mean square error {rmse:.4g} on {rows}"
    parameters = result.backend.layout.size
    return f"{text} ({amount(parameters)} parameters, training loss {last['loss']:.4f})."


def _saved(result: Result) -> str:
    directory = result.output or ""
    return f"Saved {os.path.join(directory, 'model.safetensors')}, with history.jsonl and run.json beside it."


def _next(result: Result, config: TrainConfig, demo: bool, validated: bool) -> list[str]:
    """What is worth trying, by what was just done."""
    lines = ["Try next:"]
    if demo:
        lines.append("  coproc train --consistency ssp            the same, with workers up to 4 steps apart")
        lines.append("  coproc train YOUR.parquet --features COLUMNS --label COLUMN --validation OTHER.parquet")
        lines.append("  coproc serve                              a cluster that stays; then train --address …")
        return lines
    losses = [row["loss"] for row in result.history]
    if not validated:
        lines.append("  --validation FILE   rows the training has not seen tell how good it really is")
    if len(losses) > 1 and losses[-1] > losses[0]:
        lines.append(f"  --learning-rate {config.rate / 10:g}   the loss grew: the steps are too large")
    elif len(losses) > 1 and losses[-1] < 0.9 * losses[-2]:
        lines.append(f"  --epochs {2 * config.epochs}   the loss was still falling")
    if validated and _overfits(result):
        lines.append("  --dropout 0.3   it knows the training rows better than the validation rows")
    if sum(config.hidden) < 1024:
        lines.append("  --hidden 1024,1024   a larger network")
    if config.consistency == "bsp":
        lines.append("  --consistency ssp   workers that need not wait for each other at every step")
    return lines


def _overfits(result: Result) -> bool:
    last = result.history[-1] if result.history else {}
    return bool(last.get("validation_loss", 0.0) > 2 * last.get("loss", float("inf")))
