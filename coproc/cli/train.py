"""`coprocessor train`: from a Parquet file, or the bundled digits, to a model on disk."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coproc.cli.base import in_sentences, require_address, token_from_environment, usage_error
from coproc.cli.fs_options import AUTHORITY_VARIABLE, settings

if TYPE_CHECKING:
    from coproc.training import TrainConfig

# What the demonstration does differently: 1,437 small images are few, so small batches and more epochs.
DEMO: dict[str, Any] = {"epochs": 20, "batch_size": 32, "hidden": (128,), "learning_rate": 3e-3}

# The file of their training rows.
DIGITS = "digits_train.parquet"

_DATA = "What to train on"
_NET = "The network"
_HOW = "How to train"
_WHERE = "Where"


@in_sentences
def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(help="Parquet file or folder; without it, scikit-learn's handwritten digits."),
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Parquet file measured after each epoch.", rich_help_panel=_DATA)
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Feature column: lists, vectors or bytes; or several of numbers, repeated or with commas "
            "(default: features).",
            rich_help_panel=_DATA,
        ),
    ] = None,
    label: Annotated[str, typer.Option(help="Label column.", rich_help_panel=_DATA)] = "label",
    scale: Annotated[
        str, typer.Option(help="Divide features by this; auto: 255 for bytes, else 1.", rich_help_panel=_DATA)
    ] = "auto",
    hidden: Annotated[
        str | None,
        typer.Option(help="Sizes of hidden layers, as 1024,1024, or none (default: 256).", rich_help_panel=_NET),
    ] = None,
    activation: Annotated[str, typer.Option(help="relu or tanh.", rich_help_panel=_NET)] = "relu",
    dropout: Annotated[float, typer.Option(help="Share of activations left out.", rich_help_panel=_NET)] = 0.0,
    loss: Annotated[
        str,
        typer.Option(help="softmax (classes), logistic (0 or 1), squared (numbers).", rich_help_panel=_NET),
    ] = "softmax",
    epochs: Annotated[int | None, typer.Option(help="Passes over the data (default: 5).", rich_help_panel=_HOW)] = None,
    workers: Annotated[int, typer.Option(help="Gradient workers.", rich_help_panel=_HOW)] = 2,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows a gradient (default: 128).", rich_help_panel=_HOW)
    ] = None,
    optimizer: Annotated[
        str, typer.Option(help="adam, adamw, momentum, sgd, …: any of coproc.optim.", rich_help_panel=_HOW)
    ] = "adam",
    learning_rate: Annotated[
        float | None, typer.Option(help="Step size (default: 0.001 for adam, adamw).", rich_help_panel=_HOW)
    ] = None,
    schedule: Annotated[
        str, typer.Option(help="Learning rate by epoch: linear, cosine, constant.", rich_help_panel=_HOW)
    ] = "linear",
    delay_compensation: Annotated[
        float | None,
        typer.Option(help="ssp, asp: corrects gradients for their delay; 0.04 is usual.", rich_help_panel=_HOW),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="Architecture: coproc (default); to compare, allreduce, broadcast, hogwild, http, localsgd, storage.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    tau: Annotated[
        int | None, typer.Option(help="localsgd: steps between two averagings (default: 10).", rich_help_panel=_HOW)
    ] = None,
    combine: Annotated[
        str | None, typer.Option(help="localsgd: mean (default), or best by loss.", rich_help_panel=_HOW)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="downpour, ssp, bsp, hogwild: a method's mode, consistency, bound, n-send; options win.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    consistency: Annotated[
        str | None,
        typer.Option(
            help="bsp (synchronous; the default), quorum, ssp (bounded), asp (asynchronous).", rich_help_panel=_HOW
        ),
    ] = None,
    quorum: Annotated[
        int | None, typer.Option(help="quorum: gradients that close a round.", rich_help_panel=_HOW)
    ] = None,
    grace_s: Annotated[
        float, typer.Option("--grace-s", help="quorum: seconds it waits for the others.", rich_help_panel=_HOW)
    ] = 0.0,
    late: Annotated[
        str, typer.Option(help="quorum: drop what comes late, or carry it on.", rich_help_panel=_HOW)
    ] = "drop",
    bound: Annotated[
        int | None, typer.Option(help="ssp: steps the fastest may be ahead (default: 4).", rich_help_panel=_HOW)
    ] = None,
    n_send: Annotated[
        int | None, typer.Option(help="Batches summed into one push (default: 1).", rich_help_panel=_HOW)
    ] = None,
    n_fetch: Annotated[
        int | None, typer.Option(help="Batches from pull to pull (default: n-send).", rich_help_panel=_HOW)
    ] = None,
    prefetch: Annotated[
        bool | None,
        typer.Option("--prefetch", help="asp: pull while a gradient is computed and pushed.", rich_help_panel=_HOW),
    ] = None,
    group_size: Annotated[
        str | None,
        typer.Option(help="Pushes a task (default: an epoch); auto: scheduling stays small.", rich_help_panel=_HOW),
    ] = None,
    compression: Annotated[
        str | None,
        typer.Option(
            metavar="NAME [NAME=VALUE…]",
            help="Of what travels between hosts: bf16, fp16, int8, topk, 'topk fraction=0.05'.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.", rich_help_panel=_HOW)] = 0,
    pool: Annotated[
        str, typer.Option(help="spark, processes (no Java needed), inline.", rich_help_panel=_WHERE)
    ] = "spark",
    output: Annotated[
        str | None,
        typer.Option(
            help="Directory for model, history and settings (default: coproc-runs/…).", rich_help_panel=_WHERE
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Go on with the run whose --output this is, with its settings and data.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where checkpoints go: s3://…, file:///… (embedded cluster: the output directory).",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Versions from one to the next.", rich_help_panel=_WHERE)
    ] = None,
    checkpoint_s: Annotated[
        float | None, typer.Option(help="Seconds from one to the next (default: 60).", rich_help_panel=_WHERE)
    ] = None,
    checkpoint_keep: Annotated[int, typer.Option(help="So many stay.", rich_help_panel=_WHERE)] = 2,
    address: Annotated[
        str | None,
        typer.Option(help="coproc://HOST:PORT[,…] of a running cluster; else an embedded one.", rich_help_panel=_WHERE),
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Its token; better in COPROC_TOKEN.", rich_help_panel=_WHERE)
    ] = None,
    tls_authority: Annotated[
        str | None,
        typer.Option(
            envvar=AUTHORITY_VARIABLE,
            show_envvar=False,
            help=f"Whom to trust, PEM, where its servers speak TLS; or {AUTHORITY_VARIABLE}. On every worker's host.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model in the cluster.", rich_help_panel=_WHERE)] = None,
    storage_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="storage: a folder instead of the tier: s3://…, file:///….", rich_help_panel=_WHERE
        ),
    ] = None,
    parts: Annotated[
        bool | None,
        typer.Option(
            "--parts", help="coproc: a part of the model on each server, also on several hosts.", rich_help_panel=_WHERE
        ),
    ] = None,
    driver_host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="http: where workers reach the driver's server.", rich_help_panel=_WHERE),
    ] = None,
    servers: Annotated[int, typer.Option(help="Servers of the embedded cluster.", rich_help_panel=_WHERE)] = 1,
    shards: Annotated[
        int | None, typer.Option(help="Shards of the model (default: one a server).", rich_help_panel=_WHERE)
    ] = None,
) -> None:
    """Train a network; leaves model.safetensors, history.jsonl and run.json."""
    given: dict[str, Any] = {
        "features": _columns(features),
        "label": label,
        "hidden": None if hidden is None else _sizes(hidden),
        "activation": activation,
        "dropout": dropout,
        "loss": loss,
        "epochs": epochs,
        "workers": workers,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "delay_compensation": delay_compensation,
        "mode": mode,
        "tau": tau,
        "combine": combine,
        "storage_url": storage_url,
        "driver_host": driver_host,
        "parts": parts,
        "preset": preset,
        "consistency": consistency,
        "bound": bound,
        "quorum": quorum,
        "grace_s": grace_s,
        "late": late,
        "n_send": n_send,
        "n_fetch": n_fetch,
        "prefetch": prefetch,
        "group_size": None if group_size is None else _group_size(group_size),
        "compression": None if compression is None else _compression(compression),
        "scale": _scale(scale),
        "seed": seed,
        "pool": pool,
        "checkpoints": checkpoints,
        "checkpoint_every": checkpoint_every,
        "checkpoint_s": checkpoint_s,
        "checkpoint_keep": checkpoint_keep,
        "servers": servers,
        "shards": shards,
        "address": address,
        "token": token or token_from_environment(),
        # Of the environment it is for clusters that are named.
        "tls_authority": None if address is None else tls_authority,
        "model": model,
    }
    if resume is not None:
        named = [name for name in (*given, "output") if _is_named(context, name)]
        go_on(resume, data, validation, {name: given.get(name) for name in named})
        return
    if data is None and (validation is not None or features is not None):
        usage_error("--validation and --features belong to DATA, and none was named")
    if address is not None:
        require_address(address)
    run(data, validation, output, {name: value for name, value in given.items() if value is not None})


def _is_named(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def go_on(directory: str, data: str | None, validation: str | None, changes: dict[str, Any]) -> None:
    """Resume the run in `directory`; what changes its result cannot be named again."""
    from coproc.training.resume import FREE, config_of, recorded

    for name in changes:
        if name not in FREE:
            usage_error(
                f"--{name.replace('_', '-')} cannot be given with --resume: the run goes on with its own settings"
            )
    if changes.get("address") is not None:
        require_address(changes["address"])
    else:
        changes["tls_authority"] = None
    changes["token"] = changes.get("token") or token_from_environment()
    was = recorded(directory)["data"]
    source, measured_on = data or was.get("source"), validation or was.get("validation")
    if source is None:
        usage_error(f"the rows of the run in {directory} were in no file: resume it from the program that began it")
    # Those of the demonstration were written for that run only.
    demo = data is None and Path(source).name == DIGITS and not Path(source).exists()
    config = config_of(directory, changes)
    train_and_tell(config, None if demo else source, measured_on, directory, resume=True)


def run(data: str | None, validation: str | None, output: str | None, given: dict[str, Any]) -> None:
    """Train with progress on standard error, and say at the end what came of it."""
    name = "digits" if data is None else Path(data).stem
    directory = output or f"coproc-runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if data is None:
        from coproc.cli.digits import SCALE

        given = {"scale": SCALE, **DEMO, **given}
    train_and_tell(_config(given), data, validation, directory)


def train_and_tell(
    config: TrainConfig, data: str | None, validation: str | None, directory: str, resume: bool = False
) -> None:
    """Train on a file, or without one on the digits, into a directory."""
    from coproc.cli.show import Display
    from coproc.training import train as train_on

    with ExitStack() as stack:
        source, measured_on = data, validation
        if data is None:
            from coproc.cli.digits import write_digits

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="coproc-digits-"))
            source, measured_on = (str(path) for path in write_digits(Path(folder)))
        with Display() as display:
            result = train_on(
                config, source, validation=measured_on, output=directory, resume=resume, on_progress=display.update
            )
    from coproc.cli.closing import closing_words

    typer.echo(closing_words(result, config, demo=data is None, validated=measured_on is not None))
    if result.interrupted:
        raise typer.Exit(130)


def _config(given: dict[str, Any]) -> TrainConfig:
    """The settings; what cannot work whatever the data are is a usage error."""
    from coproc.errors import ConfigError
    from coproc.training import TrainConfig

    try:
        return TrainConfig(**given)
    except ConfigError as error:
        usage_error(str(error))


def _columns(names: list[str] | None) -> str | tuple[str, ...] | None:
    if names is None:
        return None
    split = tuple(name.strip() for text in names for name in text.split(",") if name.strip())
    if not split:
        usage_error("--features needs at least one column")
    return split[0] if len(split) == 1 else split


def _compression(text: str) -> str | dict[str, Any]:
    """A name, or a name with settings as `settings` reads them."""
    name, *given = text.split() or [""]
    return {**settings(given, "a setting of --compression"), "name": name} if given else name


def _sizes(text: str) -> tuple[int, ...]:
    if text.strip() in ("", "none"):
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        usage_error(f"--hidden is a list of sizes such as 1024,1024, or none, not {text!r}")


def _group_size(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        usage_error(f"--group-size is a number of pushes or auto, not {text!r}")


def _scale(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        usage_error(f"--scale is a number or auto, not {text!r}")
