"""Observers by name: those of this package, and the entry points of group `storage_tier.observers`.

    [project.entry-points."storage_tier.observers"]
    count = "my_package.count:Count"

The server only looks up where the code is; it is loaded in the observer's own process.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from storage_tier.errors import InvalidRequest

GROUP = "storage_tier.observers"

# There without any metadata of an installation too, as in a checkout.
SHIPPED = {
    "average": "storage_tier.observers.average:Average",
    "keep_best": "storage_tier.observers.keep_best:KeepBest",
    "validate": "storage_tier.observers.validate:Validate",
}


def names() -> list[str]:
    """All names that can be attached here, in order. Reads the metadata of what is installed: milliseconds."""
    return sorted({*SHIPPED, *(entry.name for entry in entry_points(group=GROUP))})


def find(name: str) -> EntryPoint:
    """Where the code of a name is. Loads nothing.

    Raises:
        InvalidRequest: not registered, or registered by two packages for different code.
    """
    found = {entry.value: entry for entry in entry_points(group=GROUP) if entry.name == name}
    if name in SHIPPED:
        found.setdefault(SHIPPED[name], EntryPoint(name, SHIPPED[name], GROUP))
    if len(found) > 1:
        raise InvalidRequest(f"the observer {name!r:.80} is registered more than once: {', '.join(sorted(found))}")
    if not found:
        raise InvalidRequest(
            f"there is no observer {name!r:.80} on this server: it knows {', '.join(names())}. An observer is an "
            f"entry point of group {GROUP!r} of a package that is installed where the server runs"
        )
    return next(iter(found.values()))
