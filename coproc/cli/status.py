"""`coprocessor status`: servers, models, versions, memory, pushes a second, staleness."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from coproc.cli.base import amount, in_sentences, require_address, size, token_from_environment

if TYPE_CHECKING:
    from coproc.status import ClusterStatus, ModelStatus, ServerStatus


@in_sentences
def status(
    address: Annotated[str, typer.Argument(help="coproc://HOST:PORT[,HOST:PORT…]")],
    token: Annotated[str | None, typer.Option(help="Better in COPROC_TOKEN.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """Show a running cluster and its models."""
    from coproc.client import connect

    require_address(address)
    with connect(address, token=token or token_from_environment()) as client:
        now = client.status()
    typer.echo(json.dumps(dataclasses.asdict(now), indent=2) if as_json else as_text(now))


def as_text(now: ClusterStatus) -> str:
    """A block a server and a model: names have the line for themselves, so that nothing has to be cut."""
    blocks = [block(f"server {server.address}", server_facts(server)) for server in now.servers]
    blocks += [block(f"model {model.name}", model_facts(model)) for model in now.models]
    return "\n\n".join(blocks if now.models else [*blocks, "no models"])


def block(title: str, facts: dict[str, str]) -> str:
    """A title and its facts below it, one a line."""
    width = max(map(len, facts))
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())])


def server_facts(server: ServerStatus) -> dict[str, str]:
    """What is known of a server."""
    if server.error:
        return {"down": server.error}
    return {
        "up": f"{server.uptime_s:.0f} s, start {server.epoch}",
        "memory": f"{size(server.memory_used_bytes)} of {size(server.memory_limit_bytes)}",
    }


def model_facts(model: ModelStatus) -> dict[str, str]:
    """What is known of a model."""
    facts = {
        "version": amount(model.version),
        "parameters": amount(model.parameters_count),
        "optimizer": model.optimizer,
        "consistency": model.consistency,
        "shards": str(model.shards_count),
        "workers": str(model.workers_count),
        "pushes": f"{amount(model.pushes_count)}, {model.pushes_per_s:,.1f} a second",
        "staleness": f"{model.staleness_mean:.1f}, at most {model.staleness_max}",
        "memory": size(model.memory_bytes),
    }
    if model.failure:
        facts["failed"] = model.failure
    elif model.waiting_for and not model.pushes_per_s:
        # Every round waits for somebody while it goes on; it is news where nothing has moved for seconds.
        facts["waits for"] = f"worker{'s' if len(model.waiting_for) > 1 else ''} " + ", ".join(
            map(str, model.waiting_for)
        )
    return facts
