"""`coprocessor status`: servers, models, versions, memory, pushes a second, staleness."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from coproc.cli.base import ADDRESS_VARIABLE, amount, in_sentences, require_address, size, token_from_environment
from coproc.cli.fs_options import Authority, Token

if TYPE_CHECKING:
    from coproc.status import ClusterStatus, ModelStatus, ObserverStatus, ServerStatus


@in_sentences
def status(
    address: Annotated[str, typer.Argument(envvar=ADDRESS_VARIABLE, help="coproc://HOST:PORT[,HOST:PORT…]")],
    token: Token = None,
    tls_authority: Authority = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """Show a running cluster and its models."""
    from coproc.client import connect
    from storage_tier.wire import TlsClient

    require_address(address)
    tls = None if tls_authority is None else TlsClient(tls_authority)
    with connect(address, token=token or token_from_environment(), tls=tls) as client:
        now = client.status()
    typer.echo(json.dumps(dataclasses.asdict(now), indent=2) if as_json else as_text(now))


def as_text(now: ClusterStatus) -> str:
    """A block a server and a model: names have the line for themselves, so that nothing has to be cut."""
    blocks: list[str] = []
    for server in now.servers:
        blocks.append(block(f"server {server.address}", server_facts(server)))
        blocks += [
            block(f"observer {one.name} of {one.directory} on {server.address}", observer_facts(one))
            for one in server.tier.observers
        ]
    blocks += [block(f"model {model.name}", model_facts(model, now.servers)) for model in now.models]
    return "\n\n".join(blocks if now.models else [*blocks, "no models"])


def block(title: str, facts: dict[str, str]) -> str:
    """A title and its facts below it, one a line."""
    width = max(map(len, facts))
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())])


def server_facts(server: ServerStatus) -> dict[str, str]:
    """What is known of a server."""
    if server.error:
        return {"down": server.error}
    tier = server.tier
    facts = {
        "up": f"{server.uptime_s:.0f} s, start {server.epoch}",
        "memory": f"{size(server.memory_used_bytes)} of {size(server.memory_limit_bytes)}",
        "blocks": f"{amount(tier.block_count)}, {size(tier.block_bytes)}",
    }
    moved = {"evicted": tier.evicted_count, "from peers": tier.fetched_count, "from under-stores": tier.loaded_count}
    if any(moved.values()):
        facts["moved"] = ", ".join(f"{amount(count)} {what}" for what, count in moved.items() if count)
    if tier.spilled_count:
        facts["on disk"] = f"{amount(tier.spilled_count)} blocks, {size(tier.spilled_bytes)}"
    if tier.waiting_count:
        facts["to persist"] = f"{amount(tier.waiting_count)} files"
    if tier.mounts:
        facts["mounts"] = "; ".join(tier.mounts)
    if tier.failure:
        facts["failed"] = tier.failure
    return facts


def observer_facts(one: ObserverStatus) -> dict[str, str]:
    """What is known of an observer: how it does, and the traceback of its last failure."""
    facts = {
        "state": one.state if one.name == one.observer else f"{one.state} ({one.observer})",
        "files": f"{amount(one.delivered_count)} told, {amount(one.queued_count)} waiting, "
        f"{amount(one.vetoed_count)} refused",
    }
    if one.failure:
        facts["failed"] = one.failure
    if one.traceback:
        facts["traceback"] = "\n".join(["", *(f"    {line}" for line in one.traceback.splitlines())])
    return facts


def memory_text(name: str, servers: list[ServerStatus]) -> str:
    """What a model takes of the budget of each server that has a part of it."""
    parts = [
        f"{size(one.memory_bytes)} of {size(server.memory_limit_bytes)} on {server.address} "
        f"({size(one.shards_bytes)} in shards)"
        for server in servers
        for one in server.models
        if one.name == name
    ]
    return "; ".join(parts)


def model_facts(model: ModelStatus, servers: list[ServerStatus]) -> dict[str, str]:
    """What is known of a model."""
    facts = {
        "version": amount(model.version),
        "parameters": amount(model.parameters_count),
        "optimizer": model.optimizer,
        "consistency": model.consistency,
        "shards": str(model.shards_count),
        "workers": str(model.workers_count),
        "pushes": f"{amount(model.pushes_count)}, {model.pushes_per_s:,.1f} a second",
        **({"late": f"{amount(model.late_count)} after their round was closed"} if model.late_count else {}),
        **({"not finite": f"{amount(model.not_finite_count)} left out"} if model.not_finite_count else {}),
        "staleness": f"{model.staleness_mean:.1f}, at most {model.staleness_max}",
        "memory": memory_text(model.name, servers) or size(model.memory_bytes),
    }
    if model.pending_count:
        facts["pending"] = f"{amount(model.pending_count)} gradients"
    if model.behind_server:
        wait = "attempt waits" if model.blocked_count == 1 else "attempts wait"
        facts["behind"] = f"{model.behind_server}; {amount(model.blocked_count)} {wait} for a slot"
    if model.gradient_files_count:
        facts["gradient files"] = f"{amount(model.gradient_files_count)} to be applied"
    if model.gradient_files_note:
        facts["of these"] = model.gradient_files_note
    if model.checkpoint_version >= 0:
        facts["checkpoint"] = f"of version {amount(model.checkpoint_version)}"
    if model.checkpoint_failure:
        facts["no checkpoint"] = model.checkpoint_failure
    if model.failure:
        facts["failed"] = model.failure
    elif model.waiting_for and not model.pushes_per_s:
        # Every round waits for somebody while it goes on; it is news where nothing has moved for seconds.
        facts["waits for"] = f"worker{'s' if len(model.waiting_for) > 1 else ''} " + ", ".join(
            map(str, model.waiting_for)
        )
    return facts
