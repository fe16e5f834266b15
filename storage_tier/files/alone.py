"""Being the only one who works at some paths of an under-store, among the threads of all servers."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator

from storage_tier.catalog import Catalog
from storage_tier.errors import DeadlineExceeded, Fenced, TierError

LOG = logging.getLogger(__name__)
# Threads of one server that want the same path wait here, for a lock costs less than asking again and again. Those of
# different paths seldom wait for each other, and a lock for each path would have to be forgotten.
STRIPE_COUNT = 64
FIRST_WAIT_S, LONGEST_WAIT_S = 0.005, 0.1


class Alone:
    """Claims paths in the catalog. Thread-safe."""

    def __init__(self, catalog: Catalog, dead_after_s: float, timeout_s: float) -> None:
        """`timeout_s` is how long the work of another is waited for."""
        self._catalog = catalog
        self._dead_after_s = dead_after_s
        self._timeout_s = timeout_s
        self._stripes = [threading.Lock() for _ in range(STRIPE_COUNT)]
        self._lock = threading.Lock()
        self._left: list[str] = []

    @contextlib.contextmanager
    def at(self, paths: Iterable[str]) -> Iterator[None]:
        """Be the only one of all servers that changes the under-store at these paths and below, or loads from there.

        Whoever publishes there holds it until the catalog knows; else the object of one writer could be left under the
        version of another, or a file that was removed could come back. Not twice in one thread.

        Raises:
            DeadlineExceeded: another did not end; as the catalog.
        """
        wanted = sorted(set(paths))
        deadline_s = time.monotonic() + self._timeout_s
        with contextlib.ExitStack() as held:
            for number in sorted({zlib.crc32(path.encode()) % STRIPE_COUNT for path in wanted}):
                stripe = self._stripes[number]
                if not stripe.acquire(timeout=max(deadline_s - time.monotonic(), 0)):
                    raise self._too_long(wanted[0])
                held.callback(stripe.release)
            claim_id = uuid.uuid4().hex
            # Before: it is not known whether a claim was made when the catalog does not answer.
            held.callback(self._give_back, claim_id)
            self._take(claim_id, wanted, deadline_s)
            yield

    def give_back_left(self) -> None:
        """End claims that could not be ended when they should.

        Raises:
            as the catalog.
        """
        while self._left:
            self._catalog.claims.give_back(self._left[-1])
            with self._lock:
                self._left.pop()

    # ---------------------------------------------------------------- inside

    def _take(self, claim_id: str, wanted: list[str], deadline_s: float) -> None:
        wait_s = FIRST_WAIT_S
        while (taken := self._catalog.claims.take(claim_id, wanted, self._dead_after_s)) is not None:
            if time.monotonic() >= deadline_s:
                raise self._too_long(taken)
            time.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 1.5, LONGEST_WAIT_S)

    def _give_back(self, claim_id: str) -> None:
        try:
            self._catalog.claims.give_back(claim_id)
        except Fenced:
            LOG.debug("the server was started anew, which has ended the claim")
        except TierError as error:
            LOG.warning("a claim below a mount point could not be given back yet: %s", error)
            with self._lock:
                self._left.append(claim_id)

    def _too_long(self, path: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{path} was on its way to or from the under-store for more than {self._timeout_s:g} s: try again later"
        )
