"""`coproc status`: servers, models, versions, memory, pushes a second, staleness."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coproc.cli.base import amount, in_sentences, size, token_from_environment

if TYPE_CHECKING:
    from coproc.status import ClusterStatus


@in_sentences
def status(
    address: Annotated[str, typer.Argument(help="coproc://HOST:PORT[,HOST:PORT…]")],
    token: Annotated[str | None, typer.Option(help="Better in COPROC_TOKEN.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """Show a running cluster and its models."""
    from coproc.client import connect

    with connect(address, token=token or token_from_environment()) as client:
        now = client.status()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(now), indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for table in tables(now):
        console.print(table)
    for model in now.models:
        if model.failure:
            console.print(f"model {model.name}: {model.failure}", style="red")
        elif model.waiting_for:
            console.print(f"model {model.name} waits for workers {', '.join(map(str, model.waiting_for))}")


def tables(now: ClusterStatus) -> list[Any]:
    """One of the servers, and one of the models if there are any."""
    from rich import box
    from rich.table import Table

    servers = Table("server", "state", "up", "starts", "memory", "of", box=box.SIMPLE)
    for server in now.servers:
        if server.error:
            servers.add_row(server.address, "down", "", "", "", "")
            continue
        memory = (size(server.memory_used_bytes), size(server.memory_limit_bytes))
        servers.add_row(server.address, "serves", f"{server.uptime_s:.0f} s", str(server.epoch), *memory)
    if not now.models:
        return [servers, "no models"]
    models = Table(
        "model", "version", "parameters", "optimizer", "consistency", "shards", "workers", "pushes",
        "pushes/s", "staleness", "memory", box=box.SIMPLE,
    )  # fmt: skip
    for model in now.models:
        models.add_row(
            model.name,
            amount(model.version),
            amount(model.parameters_count),
            model.optimizer,
            model.consistency,
            str(model.shards_count),
            str(model.workers_count),
            amount(model.pushes_count),
            f"{model.pushes_per_s:,.1f}",
            f"{model.staleness_mean:.1f} (max {model.staleness_max})",
            size(model.memory_bytes),
        )
    return [servers, models]
