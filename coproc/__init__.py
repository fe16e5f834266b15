"""A parameter coprocessor for Spark: workers compute gradients, a memory tier stores the model and descends.

import coproc
with coproc.LocalCluster() as cluster:
    client = coproc.connect(cluster.address)
    model = client.create_model("demo", params={"w": w0}, optimizer=coproc.optim.SGD(learning_rate=0.1))
    with model.join(worker=0) as worker:
        snapshot = worker.pull()
        worker.push({"w": gradient_at(snapshot.params)}, step=worker.next_step, examples=128)
"""

from __future__ import annotations

from coproc import compression, optim, schedules
from coproc.client import Client, connect
from coproc.cluster import LocalCluster, LocalServer
from coproc.consistency import Asp, Bsp, Quorum, Ssp
from coproc.errors import (
    ConfigError,
    CoprocError,
    CorruptCheckpoint,
    DataError,
    DataLost,
    Diverged,
    LeaseExpired,
    ModelExists,
    ModelNotFound,
    OutOfMemory,
    PushRejected,
    ServerError,
    Timeout,
    Unauthenticated,
    Unreachable,
    Unsupported,
    WorkerLost,
)
from coproc.layout import ParamLayout
from coproc.model import Model, Snapshot, Worker
from coproc.near import Receipt
from coproc.spec import Checkpoints

__version__ = "0.1.0"

__all__ = [
    "Asp",
    "Bsp",
    "Checkpoints",
    "Client",
    "ConfigError",
    "CoprocError",
    "CorruptCheckpoint",
    "DataError",
    "DataLost",
    "Diverged",
    "LeaseExpired",
    "LocalCluster",
    "LocalServer",
    "Model",
    "ModelExists",
    "ModelNotFound",
    "OutOfMemory",
    "ParamLayout",
    "PushRejected",
    "Quorum",
    "Receipt",
    "ServerError",
    "Snapshot",
    "Ssp",
    "Timeout",
    "Unauthenticated",
    "Unreachable",
    "Unsupported",
    "Worker",
    "WorkerLost",
    "compression",
    "connect",
    "optim",
    "schedules",
]
