"""A model in slices, one a peer: where they begin, what travels of them, and the files they rest in between tasks.

A *version* is a directory of the tier. Its files are a function of the version before and of the gradients on it, so an
attempt that is made again writes the same; a directory is named once, and removed when the next one is whole.

    weights-00002   the slice of peer 2 as it travels
    state-00002     what only its owner needs: the optimizer's rows, and the parameters where they travel with less
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from coproc import optim
from coproc.exchange import Spent
from coproc.layout import Flat, ParamLayout
from coproc.local import Descent
from coproc.wire import as_coproc
from storage_tier import TierClient
from storage_tier.errors import PathNotFound, TierError
from storage_tier.wire import trust

T = TypeVar("T")
Codes = NDArray[Any]  # float32, or uint16

# As BigDL's: so many slices come at the same time, from as many hosts.
_FETCHING = 4
# Smaller ones are there sooner than another thread.
_THREADS_FROM_BYTES = 1 << 20


@dataclass(frozen=True)
class Terms:
    """What the peers of one group have to know. Names and numbers only: it travels as JSON."""

    address: str
    token: str | None
    tls_authority: str | None
    directory: str
    """Of the run, in the tier."""
    shapes: Mapping[str, Sequence[int]]
    optimizer: Mapping[str, Any]
    peers: int
    truncated: bool
    """Upper 16 bits of each float32 travel, as in BigDL's `FP16CompressedTensor`; the owner has all of them."""
    begin: str = ""
    """The version that the group begins from."""
    end: str = ""
    """The version that it leaves."""
    step: int = 0
    """Its first step."""
    until: int = 0
    """One past its last."""
    learning_rate: float = 0.0
    secret: str = ""
    """What peers show each other."""

    def to_settings(self) -> dict[str, Any]:
        """As settings of an `ExchangeSpec`, and arguments of a call."""
        return asdict(self)

    @property
    def layout(self) -> ParamLayout:
        return ParamLayout({name: tuple(shape) for name, shape in self.shapes.items()})


def bounds(size: int, peers: int) -> list[slice]:
    """The slices of a vector (size,): size // peers each, and one more for the first size % peers of them."""
    each, more = divmod(size, peers)
    starts = [peer * each + min(peer, more) for peer in range(peers + 1)]
    return [slice(lo, hi) for lo, hi in pairwise(starts)]


def coded(values: Flat, truncated: bool, out: Codes | None = None) -> Codes:
    """What travels of `values` (n,): themselves, or a copy of their upper 16 bits, which rounds towards 0.

    Args:
        out: uint16 (n,), for that copy.
    """
    if not truncated:
        return values
    made = np.empty(values.size, np.uint16) if out is None else out
    np.copyto(made, values.view("<u2")[1::2])
    return made


def decode(codes: Codes, out: Flat) -> None:
    """The inverse of `coded`, into `out` (n,)."""
    if codes.dtype == np.float32:
        np.copyto(out, codes)
    else:
        bits = out.view(np.uint32)
        np.copyto(bits, codes)
        np.left_shift(bits, 16, out=bits)


@contextlib.contextmanager
def translated(*expected: type[TierError]) -> Iterator[None]:
    """Errors of the tier as errors of this package, but those that the caller expects."""
    try:
        yield
    except TierError as error:
        if isinstance(error, expected):
            raise
        raise as_coproc(error) from None


@dataclass
class Slices:
    """The files of a run, as one peer or the driver sees them. A context manager."""

    terms: Terms
    spent: Spent = field(default_factory=Spent)
    """Of what goes to other peers, and comes of them."""
    tier: TierClient = field(init=False)

    def __post_init__(self) -> None:
        terms = self.terms
        self.tier = TierClient(terms.address, token=terms.token, tls=trust(terms.tls_authority))
        self.layout = terms.layout
        self.bounds = bounds(self.layout.size, terms.peers)
        self.optimizer = optim.from_config(terms.optimizer)

    def path(self, version: str, name: str) -> str:
        """Of a file."""
        return f"{self.terms.directory}/{version}/{name}"

    def codes(self, view: Any) -> Codes:
        """What an open file holds, without a copy; as long as the array lives, the file stays mapped."""
        return np.frombuffer(view.data, "<u2" if self.terms.truncated else "<f4")

    # ---- weights

    def pull(self, peer: int) -> tuple[Flat, int]:
        """The version that the group begins from, for a peer (-1: for the driver): (P,), and its updates. A copy.

        Raises:
            CoprocError: a file is not there.
        """
        terms = self.terms
        out = np.empty(self.layout.size, np.float32)

        def one(owner: int) -> tuple[int, int, bool]:
            view = self.tier.open(self.path(terms.begin, f"weights-{owner:05d}"))
            decode(self.codes(view), out[self.bounds[owner]])
            return int(view.metadata["updates"] or 0), view.size_bytes if owner != peer else 0, view.near

        found = self._all(one)
        for _, size_bytes, near in found:
            self.spent.came(size_bytes, near)
        return out, found[0][0]

    def _all(self, do: Callable[[int], T]) -> list[T]:
        peers = range(self.terms.peers)
        with translated():
            if 4 * self.layout.size < _THREADS_FROM_BYTES * self.terms.peers:
                return [do(peer) for peer in peers]
            with ThreadPoolExecutor(_FETCHING) as threads:
                return list(threads.map(do, peers))

    # ---- what a peer owns

    def owned(self, peer: int) -> Descent:
        """The slice of `peer`, with its optimizer, as the group begins; the caller closes it."""
        terms, where = self.terms, self.bounds[peer]
        with translated():
            kept = self.tier.open(self.path(terms.begin, f"state-{peer:05d}"))
            rows = np.frombuffer(kept.data, "<f4").reshape(-1, where.stop - where.start)
            params = rows[0] if terms.truncated else self.codes(self._weights(peer))
        # A task has one core.
        descent = Descent(self.optimizer, self.layout, params, whole=where, threads=1)
        for row, was in zip(descent.rows[0 if terms.truncated else 1 :], rows, strict=True):
            row[:] = was
        descent.updates = int(kept.metadata["updates"] or 0)
        descent.learning_rate = terms.learning_rate
        return descent

    def _weights(self, peer: int) -> Any:
        return self.tier.open(self.path(self.terms.begin, f"weights-{peer:05d}"))

    def publish(self, peer: int, descent: Descent) -> dict[str, int]:
        """Write what a peer owns as of the group's end, both files at once; what `told` will tell of it."""
        codes = coded(descent.params, self.terms.truncated)
        rows = descent.rows[0 if self.terms.truncated else 1 :]
        facts = {"updates": descent.updates}
        with translated():
            self.spent.went(codes.nbytes * (self.terms.peers - 1), self.tier.near)  # all others read it
            writers = []
            for name, parts in (("weights", [codes]), ("state", list(rows))):
                path = self.path(self.terms.end, f"{name}-{peer:05d}")
                writers.append(self.tier.create(path, facts, overwrite=True))
                writers[-1].write(*parts)
            self.tier.commit_all(writers)
        return facts

    # ---- the driver's

    def begin(self, flat: Flat) -> None:
        """Write the first version, `terms.end`, of `flat` (P,).

        Raises:
            ConfigError: the optimizer needs norms that no peer knows.
        """
        for peer, where in enumerate(self.bounds):
            with Descent(self.optimizer, self.layout, flat[where], whole=where, threads=1) as descent:
                self.publish(peer, descent)

    def told(self, version: str) -> list[dict[str, Any]]:
        """Of each slice that is there, by owner: the updates it has had."""
        with translated():
            files = self.tier.list(f"{self.terms.directory}/{version}")
        return [dict(file.metadata) for file in files if file.path.rpartition("/")[2].startswith("weights-")]

    def whole(self) -> tuple[int, Flat]:
        """(updates, all parameters (P,) with all of their bits) of the version that the group begins from."""
        flat, updates = self.pull(-1)
        if self.terms.truncated:
            with translated():
                for peer, where in enumerate(self.bounds):
                    kept = self.tier.open(self.path(self.terms.begin, f"state-{peer:05d}"))
                    flat[where] = np.frombuffer(kept.data, "<f4")[: where.stop - where.start]
        return updates, flat

    def remove(self, version: str = "") -> None:
        """Remove a version, or all of the run; what is gone already is no error."""
        with translated(), contextlib.suppress(PathNotFound):
            self.tier.remove_directory(f"{self.terms.directory}/{version}", recursive=True)

    def at(self, **changed: Any) -> Terms:
        """The terms of another group."""
        return replace(self.terms, **changed)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self.tier.close()

    def __enter__(self) -> Slices:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def writable(values: Flat) -> Flat:
    """The same memory, for a kernel that only reads it: for writable and other arrays each would be compiled anew.

    The caller keeps `values` as long.
    """
    memory: Any = (ctypes.c_float * values.size).from_address(values.ctypes.data)
    return np.frombuffer(memory, np.float32)
