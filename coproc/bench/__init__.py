"""The project's own measurements: ``coproc bench [NAME...] [--json]``, or ``python -m coproc.bench``."""

from __future__ import annotations

from coproc.bench.base import Options, Result, as_json, as_text, benches, run

__all__ = ["Options", "Result", "as_json", "as_text", "benches", "run"]
