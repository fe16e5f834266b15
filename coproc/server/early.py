"""Pulls before the server is up: an interpreter with numpy and gRPC is there long before what descends is imported.

A restart has the published versions in memory already, and while nothing descends they stand still. So they are read
without a seat, until `end`. Whatever is not plainly this is left to the whole server, its refusals included.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from coproc.consistency import Asp
from coproc.errors import CoprocError
from coproc.layout import Flat
from coproc.shared.control import Control
from coproc.shared.published import Published
from coproc.spec import ModelSpec, check_name
from coproc.v1 import coproc_pb2 as pb
from coproc.wire import plain_parts, pull_written
from storage_tier.errors import TierError
from storage_tier.regions import Region

log = logging.getLogger(__name__)

METHOD = "/coproc.v1.Coprocessor/Pull"


class EarlyPulls:
    """Reads models that lie whole in the directory of a server that does not run yet. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        """`directory` holds the models, and belongs to this process alone."""
        self._directory = directory
        self._lock = threading.Lock()
        self._ended = False

    def end(self) -> None:
        """Read no more, from here on: the models begin to descend. Waits for a copy that is being made. Idempotent."""
        with self._lock:
            self._ended = True

    def pull(self, data: bytes) -> Iterator[bytes] | None:
        """Answer a request of Pull with the published version; None: this one is for the whole server.

        One copy, in this process's memory: a client that takes long does not hold up the start.
        """
        try:
            request = pb.PullRequest.FromString(data)
            with self._lock:
                found = None if self._ended else self._read(request)
        except (DecodeError, CoprocError, TierError, OSError, ValueError, LookupError) as error:
            log.info("a pull waits for the whole server: %s", error)
            return None
        return None if found is None else _answers(*found)

    def _read(self, request: pb.PullRequest) -> tuple[pb.ResponseHeader, Flat] | None:
        homes = list(self._directory.glob(f"{check_name(request.name)}~*"))
        if len(homes) != 1:
            return None
        [home] = homes
        spec = ModelSpec.from_json((home / "spec.json").read_text())
        # Shards of other servers descend meanwhile; and only the whole server knows another part of the name.
        here = spec.home == str(home) and all(Path(place.path).parent == home for place in spec.shards)
        if not here or request.identity not in ("", spec.identity):
            return None
        # Which version a worker may read in step with others follows from its seat, which its lease stood for.
        if request.lease_id and not isinstance(spec.consistency, Asp):
            return None
        with ExitStack() as opened:
            control = Control.open(spec.control_path)
            opened.callback(control.region.close)
            if control.deleted:
                return None
            shards = []
            for place in spec.shards:
                # Not populated: one buffer of all that is there is touched, and once.
                region = Region.open(Path(place.path))
                rows = len(spec.optimizer.state_rows)
                shards.append(Published(region, place.hi - place.lo, rows, spec.buffers))
                opened.callback(shards[-1].close)
            versions = {shard.version for shard in shards}
            if len(versions) != 1 or min(versions) < request.min_version:
                return None
            out = np.empty(spec.layout.size, np.float32)
            for place, shard in zip(spec.shards, shards, strict=True):
                out[place.lo : place.hi] = shard.buffers[shard.front()[1]]
            return pb.ResponseHeader(epoch=control.epoch, version=min(versions)), out


def _answers(header: pb.ResponseHeader, flat: Flat) -> Iterator[bytes]:
    yield pull_written(pb.PullResponse(header=header))
    yield from map(pull_written, plain_parts(flat))
