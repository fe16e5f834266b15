"""How `coprocessor fs` writes: rows in columns, facts in lines, sizes and times, JSON. Pure."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from coproc.cli.base import size

if TYPE_CHECKING:
    from storage_tier.file_info import AttachmentInfo, Explanation, FileInfo, MountInfo

WIDTH = 100
_KEEP_WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}
_KINDS = {"file": "-", "directory": "d", "mount": "m"}
_PERSISTED = {"not_needed": "-", "waiting": "w", "done": "s"}


def flags(info: FileInfo) -> str:
    """Four letters: d directory, m mount; p pinned; s safe in the under-store, w waiting for it; t has a time limit."""
    return (
        _KINDS[info.kind]
        + ("p" if info.pinned else "-")
        + _PERSISTED[info.persisted]
        + ("-" if info.expires_ns is None else "t")
    )


def amount_of_bytes(count: int, exact: bool) -> str:
    """57.2 MB, or 57,200,000 when it is to be exact."""
    return f"{count:,}" if exact else size(count)


def moment(time_ns: int) -> str:
    """Local time, to the second."""
    if not time_ns:
        return "-"
    return datetime.fromtimestamp(time_ns / 1e9).strftime("%Y-%m-%d %H:%M:%S")


def name(info: FileInfo) -> str:
    """The last name; a slash after that of a directory."""
    return (info.path.rpartition("/")[2] or "") + ("/" if info.is_directory else "")


def listing(infos: Sequence[FileInfo], *, exact: bool) -> str:
    """A line an entry: flags, version, size, time of the version, name."""
    rows = []
    for info in infos:
        is_file = info.kind == "file"
        version = f"v{info.version}" if info.version else "-"
        held = amount_of_bytes(info.size_bytes, exact) if is_file else "-"
        rows.append((flags(info), version if is_file else "-", held, moment(info.modified_ns), name(info)))
    return columns(rows, right={1, 2})


def columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Rows as lines, their cells one below the other; those of `right` end together."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def facts(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    """A title and facts below it, each with its name before it; of neighbours of one name, only the first has it."""
    told = list(pairs)
    width = max((len(name) for name, _ in told), default=0)
    lines = [title]
    before = ""
    for name, value in told:
        first = f"  {'' if name == before else name:<{width}}  "
        # Addresses and paths stay in one piece, to be copied.
        wrapped = textwrap.wrap(value, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), **_KEEP_WORDS)
        lines += wrapped or [first]
        before = name
    return "\n".join(line.rstrip() for line in lines)


def stat_text(info: FileInfo, *, exact: bool) -> str:
    """All that is known of an entry."""
    told: list[tuple[str, str]] = [("kind", info.kind)]
    if info.kind == "file":
        told += [
            ("version", str(info.version) if info.version else "none yet: only the under-store has it"),
            ("size", amount_of_bytes(info.size_bytes, exact)),
        ]
    told += [("created", moment(info.created_ns)), ("modified", moment(info.modified_ns))]
    if info.kind == "file":
        told += [("pinned", "yes" if info.pinned else "no"), ("persisted", info.persisted.replace("_", " "))]
        if info.expires_ns is not None:
            told.append(("expires", moment(info.expires_ns)))
        told.append(("held by", ", ".join(info.locations) or "no server"))
        told += [(f"metadata {key}", json.dumps(value)) for key, value in sorted(info.metadata.items())]
    return facts(info.path, told)


def mounts_text(mounts: Sequence[MountInfo]) -> str:
    """A line a mount point: path, write type, URL."""
    return columns([(mount.path, mount.write_type, mount.url) for mount in mounts])


def observers_text(attached: Sequence[AttachmentInfo], *, traceback: bool) -> str:
    """A block an observer, with its last failure."""
    blocks = []
    for one in attached:
        told = [("observer", one.observer), ("state", one.state)]
        told += [("parameter", setting(key, value)) for key, value in sorted(one.parameters.items())]
        told.append(("commits", f"{one.delivered_count:,} delivered, {one.queued_count:,} waiting"))
        if one.failure:
            told.append(("failure", one.failure))
        block = facts(f"{one.directory}  {one.name}", told)
        if traceback and one.traceback:
            block += "\n" + "\n".join(f"    {line}" for line in one.traceback.rstrip().splitlines())
        blocks.append(block)
    return "\n\n".join(blocks)


def attached_text(attached: Sequence[AttachmentInfo], directory: str) -> str:
    """Half a sentence: who is attached to a directory, or if nobody is, who is anywhere."""
    here = [one.name for one in attached if one.directory == directory]
    if here:
        return f"attached there: {', '.join(here)}"
    elsewhere = [f"{one.name} of {one.directory}" for one in attached]
    return f"attached elsewhere: {', '.join(elsewhere)}" if elsewhere else "no observer is attached anywhere"


def setting(key: str, value: Any) -> str:
    """NAME=VALUE, to be typed at a shell: what `settings` of `fs_options` makes the same value of again."""
    # Text that would be read as something else has its quotes.
    plain = isinstance(value, str) and not _is_json(value)
    return shlex.quote(f"{key}={value if plain else json.dumps(value)}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def explain_text(found: Explanation, *, peer: str, near: bool, exact: bool) -> str:
    """Which way a read takes, where the block is, and why nothing is nearer."""
    routes = {
        "mapped": "mapped: no copy" if near else "mapped by the server; from here over the network",
        "peer": "peer: copied once from another server, and kept",
        "under-store": "under-store: loaded from there once, and kept",
        "virtual": "virtual: made by an observer when it is opened",
        "nowhere": "nothing: only files have bytes" if found.info and found.info.is_directory else "nowhere",
    }
    title = found.path
    if found.info is not None and found.info.kind == "file":
        version = f"v{found.info.version}, " if found.info.version else ""
        title += f"  {version}{amount_of_bytes(found.info.size_bytes, exact)}"
    told = [("read", routes[found.route]), ("asked", f"{peer}, {'on this host' if near else 'not on this host'}")]
    if found.block_id:
        told.append(("block", found.block_id))
    for holder in found.holders:
        heard = "not a member any more" if math.isinf(holder.silent_s) else f"heard of {holder.silent_s:.0f} s ago"
        where = [holder.level, "the asked server" if holder.here else heard]
        told.append(("held by", f"{holder.address or holder.server_id} ({', '.join(filter(None, where))})"))
    if found.under_url:
        told.append(("mount of", found.under_url))
    told += [("why", each) for each in found.sentences]
    if not near:
        told.append(
            (
                "why",
                "This process cannot read the asked server's memory (other host, container or user): it maps nothing.",
            )
        )
    return facts(title, told)


def to_json(value: Any) -> Any:
    """Plain values of what the client tells; an endless number is null, which JSON has no word for."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: to_json(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value: Any, indent: int | None = 2) -> str:
    """One JSON document."""
    return json.dumps(to_json(value), indent=indent)
