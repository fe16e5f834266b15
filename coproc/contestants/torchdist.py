"""PyTorch's own way on Spark: pyspark's TorchDistributor, DistributedDataParallel, all-reduce by gloo. Synchronous.

A process a worker, with one thread. The network of the modes, with the same initial parameters; the same rows in the
same batches, mapped, without a loader. As DDP is used today for the most speed: gradients are views of its buckets,
the graph is told to be static, and optimizers are the fused ones. Its mean is of equal shares, so each loss is
weighted by rows; a rank without a batch takes part with none.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from coproc.contestants.base import refuse, require_packages
from coproc.contestants.course import Course, mean_loss, run_of, watched
from coproc.contestants.work import Work, config_of, opened
from coproc.errors import ConfigError, CoprocError
from coproc.grads.mlp import Mlp
from coproc.layout import Flat
from coproc.modes.base import Costs
from coproc.pools.base import failure_in, failure_text, quiet, require_slots
from coproc.pools.spark import sentence
from coproc.training.opening import open_pool
from coproc.training.output import checksum, versions
from coproc.trials.base import Point, Run, Tell
from coproc.trials.memory import pss_bytes

if TYPE_CHECKING:
    from coproc.trials.workloads import Prepared

NEEDS = ("torch", "pyspark", "pandas")
EXTRA = "spark,torch"
SUMMARY = "pyspark's TorchDistributor: DistributedDataParallel over gloo, synchronous"

# torch's optimizer for each of ours that it has in the same form, and its arguments from our settings.
OPTIMIZERS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": "momentum", "nesterov": "nesterov"}),
    "adam": ("Adam", {"eps": "epsilon"}),
    "adamw": ("AdamW", {"eps": "epsilon", "weight_decay": "weight_decay"}),
}

# A validation lies between two collective calls.
TIMEOUT_S = 600.0

NOTES = (
    "The exchange of DDP overlaps with the backward pass: compute has both. Push is the optimizer's step, which every "
    "rank does.",
    "Bytes by formula: a ring moves 2 (N-1)/N of the gradient out of each rank, and as much in, each step.",
)


def check(point: Point) -> None:
    """Raises ConfigError for a point that this cannot do."""
    refuse(point)
    if point.optimizer not in OPTIMIZERS:
        raise ConfigError(
            f"the contestant 'torchdist' has the optimizers {', '.join(OPTIMIZERS)}, not {point.optimizer}: torch has "
            "no other in the same form"
        )
    if point.pool != "spark":
        raise ConfigError(f"the contestant 'torchdist' runs on the pool 'spark', not {point.pool!r}")


def run(point: Point, prepared: Prepared, tell: Tell) -> Run:
    """Train as one barrier job, on the active Spark or one of its own; blocks.

    Raises:
        CoprocError: settings, rows or a training that cannot work, or torch's failure in a sentence.
    """
    check(point)
    require_packages("torchdist")
    config = config_of(point, prepared)
    with contextlib.ExitStack() as stack:
        pool: Any = open_pool(config, prepared.train, None, lambda progress: tell("starting Spark"))
        stack.callback(pool.close)
        require_slots(pool, config.workers, "fewer workers")
        tell("dealing the rows")
        work = stack.enter_context(opened(config, point, prepared))
        tell("starting torch in Spark tasks")
        with watched(work, tell), quiet():
            from pyspark.ml.torch.distributor import TorchDistributor

            distributor: Any = TorchDistributor(num_processes=work.workers, local_mode=False, use_gpu=False)
            try:
                told: Mapping[str, Any] = distributor.run(rank, work.to_json())
            except Exception as error:
                raise work.failure() or sentence(error) from None
    failure = failure_in(told.get("failure", ""))
    if failure is not None:
        raise failure
    return run_of(told)


def rank(work: str) -> dict[str, Any] | None:
    """All epochs of a work, as one of the processes that torchrun starts.

    Returns:
        Of rank 0 what `Run` has to know, else None.
    """
    torch: Any = importlib.import_module("torch")
    dist: Any = importlib.import_module("torch.distributed")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=TIMEOUT_S))
    job = Work.from_json(work)
    try:
        return Rank(torch, dist, job).train()
    except Exception as error:
        job.fail(error)  # of a barrier job Spark tells only that it failed
        raise
    finally:
        gc.collect()  # a network, which is in cycles, that outlives its group may abort the process at its end
        dist.destroy_process_group()


class Rank:
    """One process: its part of the rows and its copy of the network."""

    def __init__(self, torch: Any, dist: Any, work: Work) -> None:
        parallel: Any = importlib.import_module("torch.nn.parallel")
        self._torch, self._dist, self._work = torch, dist, work
        self._rank: int = dist.get_rank()
        self._backend = work.backend_made()
        self._source = work.batches(self._rank)
        self._network = network(torch, self._backend, self._backend.init(work.seed))
        self._parallel = parallel.DistributedDataParallel(
            self._network, gradient_as_bucket_view=True, static_graph=True
        )
        self._loss = loss_of(torch, self._backend.loss.name)
        self._optimizer = optimizer_of(torch, self._network.parameters(), work.optimizer)
        self._course = Course(work, work.evaluator(self._backend)) if self._rank == 0 else None
        self._samples: list[tuple[Any, ...]] = []
        self._progress = work.progress()
        self._update_s = 0.0

    def train(self) -> dict[str, Any] | None:
        """All epochs, or as many as are enough."""
        steps, failure = 0, None
        for epoch, rate in enumerate(self._work.rates):
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            first = len(self._samples)
            self._dist.barrier()
            began_s = time.monotonic()
            self._epoch(epoch)
            steps += self._work.steps_per_epoch
            self._dist.barrier()
            ended_s = time.monotonic()
            parts = self._gathered((began_s, ended_s, self._samples[first:]))
            try:
                enough = self._course is not None and self._course.over(
                    min(began_s for began_s, _, _ in parts),
                    max(ended_s for _, ended_s, _ in parts),
                    mean_loss([each for _, _, samples in parts for each in samples]),
                    self._flat(),
                )
            except CoprocError as error:
                enough, failure = True, failure_text(error)
            flag = self._torch.tensor([enough])
            self._dist.broadcast(flag, 0)
            if flag.item():
                break
        samples = self._gathered(self._samples)
        others = self._gathered((self._update_s, pss_bytes(os.getpid())))
        if self._course is None:
            return None
        if failure is not None:
            return {"failure": failure}
        flat = self._flat()
        return {
            "groups": self._course.groups,
            "samples": [each for part in samples for each in part],
            "epochs": self._course.epochs,
            "costs": asdict(costs(self._work.workers, steps, flat.nbytes, sum(update_s for update_s, _ in others))),
            "parameters": flat.size,
            "version": steps,
            "checksum": checksum(flat),
            "memory": {"worker": sum(size for _, size in others)},
            "notes": [*NOTES, *self._course.notes],
            "versions": {**versions(), "torch": str(self._torch.__version__)},
        }

    def _epoch(self, epoch: int) -> None:
        torch, work, source = self._torch, self._work, self._source
        turned_s = time.monotonic()
        for k in range(work.steps_per_epoch):
            counts = work.examples(k)
            count = counts[self._rank]
            if count:
                batch = source.batch(epoch, k)
                features, labels = torch.from_numpy(batch.features), torch.from_numpy(batch.labels)
            else:
                features, labels = torch.empty(0, self._backend.inputs), torch.empty(0, dtype=torch.int32)
            self._optimizer.zero_grad()
            loss = self._loss(self._parallel(features), labels)
            (loss * (work.workers / sum(counts))).backward()
            value = loss.item() / max(1, count)
            computed_s = time.monotonic()
            self._optimizer.step()
            ended_s = time.monotonic()
            self._update_s += ended_s - computed_s
            if self._rank == 0:
                self._progress[:] = epoch + 1, epoch * work.steps_per_epoch + k + 1, value
            if count:
                step = epoch * work.steps_per_epoch + k
                compute_s, push_s = computed_s - turned_s, ended_s - computed_s
                self._samples.append((self._rank, step, turned_s, 0.0, compute_s, push_s, count, value, 0))
            turned_s = ended_s

    def _gathered(self, mine: Any) -> list[Any]:
        """What each rank gives, at rank 0; of the others []."""
        parts: list[Any] | None = [None] * self._work.workers if self._rank == 0 else None
        self._dist.gather_object(mine, parts)
        return parts or []

    def _flat(self) -> Flat:
        return flat_of(self._network)


def network(torch: Any, backend: Any, flat: Flat) -> Any:
    """The network of a backend in torch, with these parameters. torch has weights as (out, in), we as (in, out).

    Raises:
        ConfigError: no multilayer perceptron, or one with dropout, whose random numbers torch has not.
    """
    if not isinstance(backend, Mlp) or backend.dropout:
        raise ConfigError(f"the contestant 'torchdist' has no network like {backend.spec()}")
    views = backend.layout.views(flat)
    activation = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[backend.activation]
    layers: list[Any] = []
    for i in range(len(backend.hidden) + 1):
        weight, bias = (torch.from_numpy(views[f"layers.{i}.{part}"]) for part in ("weight", "bias"))
        layer = torch.nn.utils.skip_init(torch.nn.Linear, *weight.shape)
        with torch.no_grad():
            layer.weight.copy_(weight.T)
            layer.bias.copy_(bias)
        layers += [layer] if i == len(backend.hidden) else [layer, activation()]
    return torch.nn.Sequential(*layers)


def flat_of(network: Any) -> Flat:
    """The parameters (P,) of a network in our order and form; a copy."""
    parts = [parameter.detach().numpy().T.reshape(-1) for parameter in network.parameters()]
    flat: Flat = np.concatenate(parts)
    return flat


def loss_of(torch: Any, name: str) -> Any:
    """(raw outputs, labels) -> the sum of the losses of a batch."""
    functional = torch.nn.functional
    if name == "softmax":
        return lambda raw, labels: functional.cross_entropy(raw, labels.long(), reduction="sum")
    if name == "logistic":
        return lambda raw, labels: functional.binary_cross_entropy_with_logits(
            raw, labels.reshape(raw.shape).float(), reduction="sum"
        )
    return lambda raw, labels: functional.mse_loss(raw, labels.reshape(raw.shape).float(), reduction="sum") / 2


def optimizer_of(torch: Any, parameters: Any, config: Mapping[str, Any]) -> Any:
    """torch's optimizer for one of ours, given by its config."""
    name, arguments = OPTIMIZERS[config["name"]]
    settings = {theirs: config[ours] for theirs, ours in arguments.items()}
    if "beta1" in config:
        settings["betas"] = (config["beta1"], config["beta2"])
    return getattr(torch.optim, name)(parameters, lr=config["learning_rate"], fused=True, **settings)


def costs(workers: int, steps: int, model_bytes: int, update_s: float) -> Costs:
    """What so many steps cost: one job, and between ranks what a ring moves."""
    moved = steps * 2 * (workers - 1) * model_bytes
    return Costs(jobs_count=1, worker_in_bytes=moved, worker_out_bytes=moved, update_s=update_s)
