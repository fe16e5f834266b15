"""Creating a model over its servers, from first parameters or from a checkpoint, and removing it from them.

The server that is asked becomes the sequencer. It makes its own part, asks the others for theirs, and from the moment
that it activates its own the model exists; whatever fails before that is taken back everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from coproc.errors import ConfigError, CoprocError, ModelNotFound, OutOfMemory
from coproc.observers.directory import ModelDirectory
from coproc.server.engine import Engine
from coproc.server.models import Beginning, Models
from coproc.spec import ModelSpec, ShardPlace
from coproc.v1 import coproc_pb2 as pb
from storage_tier import wire as tier_wire
from storage_tier.budget import Budget
from storage_tier.errors import TierError

PEER_TIMEOUT_S = 60.0


class Creation:
    """Thread-safe. Errors are those of both packages."""

    def __init__(self, models: Models, directory: ModelDirectory, budget: Budget, peer: Callable[[str], Any]) -> None:
        """`peer` gives the service of another server by its address; its errors are typed."""
        self._models = models
        self._directory = directory
        self._budget = budget
        self._peer = peer

    def place(self, spec: ModelSpec, servers: Sequence[str], shards: int) -> ModelSpec:
        """Deal `shards` shards (0: one a server) to the servers in turn.

        Raises:
            ConfigError: no servers, or too many shards. OutOfMemory: they do not fit here.
        """
        if not servers:
            raise ConfigError("no server was named for the model's shards")
        ranges = spec.layout.shards(shards or len(servers))
        places = tuple(ShardPlace(lo, hi, servers[n % len(servers)], "") for n, (lo, hi) in enumerate(ranges))
        spec = replace(spec, shards=places)
        need_bytes, free_bytes = spec.memory_bytes(servers[0]), self._budget.free_bytes
        if need_bytes > free_bytes:
            raise OutOfMemory(
                f"model {spec.name!r} needs {need_bytes:,} bytes on server {servers[0]} ({spec.buffers} buffers of its "
                f"parameters and 2 banks of its optimizer's state), and {free_bytes:,} of its memory budget are free: "
                f"delete what is no longer needed, use more servers, or {self._budget.remedy}"
            )
        return spec

    def create(self, spec: ModelSpec, beginning: Beginning, again: bool = False) -> Engine:
        """Make a model that `place` has placed. Atomic.

        Args:
            again: its memory was lost, and it comes back under its name and identity.

        Raises:
            ModelExists, OutOfMemory, Unsupported, Unreachable, TierError.
        """
        servers = list(dict.fromkeys(place.server for place in spec.shards))
        made: list[str] = []
        if again:  # what others still have is of the life before
            self.drop_on(servers[1:], spec)
        spec, first = self._models.begin(spec, beginning)
        try:
            spec = self._models.make_shards(spec, servers[0], first)
            for server in servers[1:]:
                made.append(server)  # before the call: what it made is to be dropped also if its answer is lost
                answer = self._peer(server).ServeShards(
                    pb.ServeShardsRequest(spec_json=spec.to_json(), parameters_path=str(first), server=server),
                    timeout=PEER_TIMEOUT_S,
                )
                spec = ModelSpec.from_json(answer.spec_json)
            for server in made:
                complete = pb.ServeShardsRequest(spec_json=spec.to_json(), server=server)
                self._peer(server).ServeShards(complete, timeout=PEER_TIMEOUT_S)
            if not again:
                self._directory.appear(spec)
            engine = self._models.activate(spec)
        except BaseException:
            self.drop_on(made, spec)
            self._models.abandon(spec)
            if not again:  # what says that there was such a model is what the next attempt goes by
                self.disappear(spec)
            raise
        if again:
            self._directory.appear(spec, again=True)
        self._directory.pusher.wake()
        return engine

    def has_part(self, server: str, spec: ModelSpec) -> bool:
        """Whether another server serves its shards of a model.

        Raises:
            Unreachable, Timeout: it does not say.
        """
        try:
            answer = self._peer(server).GetModel(pb.GetModelRequest(name=spec.name), timeout=PEER_TIMEOUT_S)
        except ModelNotFound:
            return False
        return ModelSpec.from_json(answer.spec_json).identity == spec.identity

    def drop_on(self, servers: list[str], spec: ModelSpec) -> None:
        """Have other servers drop their parts. One that is down removes its part at its next start."""
        for server in servers:
            try:
                request = pb.DropShardsRequest(name=spec.name, identity=spec.identity)
                self._peer(server).DropShards(request, timeout=PEER_TIMEOUT_S)
            except CoprocError as error:
                tier_wire.LOG.warning("server %s could not drop model %s: %s", server, spec.name, error)

    def disappear(self, spec: ModelSpec) -> None:
        """Remove the model's directory, but for files of users."""
        try:
            self._directory.disappear(spec.name, spec.identity)
        except TierError as error:
            # The model is gone all the same; the next start, or the next model of the name, removes what is left.
            tier_wire.LOG.warning("the directory of model %s could not be removed: %s", spec.name, error)
