"""Gradient backends: what a worker computes. One file in this folder is one backend, found by its name."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from coproc.errors import ConfigError
from coproc.grads.base import Batch, GradientBackend

__all__ = ["Batch", "GradientBackend", "backend_class", "backend_names", "create"]


def backend_names() -> list[str]:
    """The backends there are: the files of this folder."""
    files = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in files if name != "base" and not name.startswith("_"))


def backend_class(name: str) -> type[GradientBackend]:
    """The backend called `name`; imports its file only.

    Raises:
        ConfigError: there is none.
    """
    # Only names from the listing are imported: a spec may come from a file or over the wire.
    if name not in backend_names():
        raise ConfigError(f"there is no gradient backend {name!r}; there are: {', '.join(backend_names())}")
    for value in vars(import_module(f"{__name__}.{name}")).values():
        if isinstance(value, type) and issubclass(value, GradientBackend) and vars(value).get("name") == name:
            return value
    raise ConfigError(f"coproc/grads/{name}.py defines no GradientBackend with name = {name!r}")


def create(spec: Mapping[str, Any]) -> GradientBackend:
    """The backend that `spec` describes: `{"backend": "mlp", "inputs": 784, ...}`. Cheap.

    Raises:
        ConfigError: no such backend, an unknown key, or a value that cannot work.
    """
    name = spec.get("backend")
    if not isinstance(name, str):
        raise ConfigError(f"a backend's spec names it under 'backend'; this one has {sorted(spec)}")
    return backend_class(name).from_spec(spec)
