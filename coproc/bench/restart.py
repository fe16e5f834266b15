"""restart: SIGKILL of the server of a model of 14.3 million parameters with Adam, and what its clients notice.

From the kill, the starting of the new process included, to

- *ready*: the new server says that it serves.
- *far client*: a client that may not touch shared memory has the whole model, pulled from the new server.
- *near client*: the next push of a client on the host, committed while there is no server, is part of the version that
  it pulls. Reading and committing themselves go on without a server.
"""

from __future__ import annotations

import time

import numpy as np

import coproc
from coproc import optim
from coproc.bench.base import Options, Result
from coproc.bench.limits import within
from coproc.bench.peers import Peer, peers

NAME = "restart"

SIZE, QUICK_SIZE = 14_305_295, 65_536
FAR_AT_MOST_S = 1.0

READY, FAR, NEAR = "ready", "first pull of a far client", "next push of a near client visible"


def run(options: Options) -> list[Result]:
    """A kill for each client a round; about a minute."""
    size = QUICK_SIZE if options.quick else SIZE
    rounds, warm_up = (1, 0) if options.quick else (options.rounds, 1)
    taken: dict[str, list[float]] = {READY: [], FAR: [], NEAR: []}
    with peers(2) as (far, near), coproc.LocalCluster() as cluster, coproc.connect(cluster.address) as client:
        model = client.create_model(
            "restart", params={"w": np.zeros(size, np.float32)}, optimizer=optim.Adam(learning_rate=1e-3)
        )
        far.call("join", address=cluster.address, model=model.name, worker=1, near=False)
        # The only one who pushes: its version is its step.
        near.call("join", address=cluster.address, model=model.name, worker=0)
        server = cluster.servers[0]
        for turn in range(warm_up + rounds):
            ready_s, far_s = _kill(server, far, "pull")
            near.call("fill")
            _, near_s = _kill(server, near, "round")
            if turn >= warm_up:
                for contestant, figure in ((READY, ready_s), (FAR, far_s), (NEAR, near_s)):
                    taken[contestant].append(figure)
        for peer in (far, near):
            peer.call("leave")
    case = f"SIGKILL of the server, adam, {size / 1e6:.3g} M"
    limits = {FAR: within(taken[FAR], FAR_AT_MOST_S, f"{FAR_AT_MOST_S:g} s", not options.quick)}
    return [Result(NAME, case, name, "s", tuple(figures), limits.get(name, ())) for name, figures in taken.items()]


def _kill(server: coproc.LocalServer, peer: Peer, method: str) -> tuple[float, float]:
    """Kill, let a client do something while there is no server, start again: seconds until ready, and until done."""
    killed_ns = time.monotonic_ns()
    server.kill()
    peer.ask(method)
    server.restart()
    ready_ns = time.monotonic_ns()
    done_ns = peer.answer()
    return (ready_ns - killed_ns) / 1e9, (done_ns[-1] - killed_ns) / 1e9
