"""The models of a server, as their directories need them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from coproc.layout import Flat
from coproc.near import NearWorker
from coproc.spec import ModelSpec


class Source(Protocol):
    """Thread-safe. Errors are those of `coproc.errors`."""

    @property
    def server_id(self) -> str:
        """The server's name for life."""

    def spec(self, name: str) -> ModelSpec | None:
        """Of a model that this server has a part of."""

    def version(self, spec: ModelSpec) -> int:
        """The newest whole version of such a model; 0 if it is gone."""

    def sequenced(self) -> list[ModelSpec]:
        """The models whose pushes this server orders."""

    def knows(self, name: str, identity: str) -> bool:
        """Whether a model is here, is being created here, or is here and cannot be served."""

    def read(self, spec: ModelSpec, out: Flat, timeout_s: float) -> int:
        """Copy the newest whole version of any model into `out` (P,); its number."""

    def join(self, spec: ModelSpec, worker: int) -> tuple[NearWorker, Callable[[], None]]:
        """A seat for a worker of a model that is sequenced here, and what gives it back."""

    def next_step(self, spec: ModelSpec, worker: int) -> int:
        """The first step of a worker of a model that is sequenced here which nobody has pushed."""
