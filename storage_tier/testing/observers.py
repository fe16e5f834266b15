"""What every observer must do: `ObserverSuite`, to be inherited by a test class.

    class TestValidate(ObserverSuite):
        name = "validate"
        parameters = {"tensors": {"w": {"dtype": "F32"}}}
        bad_parameters = [{}, {"tensors": 3}]
        files = [("/watched/a.safetensors", b"...", {})]

The observer runs in its own process, over a tier in a dictionary. The suite asks what holds for all of them: bad
parameters are refused with a sentence, odd files are no failure, a batch that comes twice does what it does once,
its own writes do not call it, it stops when it is asked to, it starts again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from storage_tier.errors import InvalidRequest
from storage_tier.headers import Metadata
from storage_tier.observers.base import ObserverFailed, Vetoed
from storage_tier.observers.options import AttachmentState, ObserverOptions
from storage_tier.testing.memory import MemoryTier

TIMEOUT_S = 60.0
DIRECTORY = "/watched"

ODD = [
    b"",
    b"\0",
    b"\xff" * 7,
    b"\xff" * 8,
    (1 << 62).to_bytes(8, "little") + b"{}",
    (2).to_bytes(8, "little") + b"{}",
    (3).to_bytes(8, "little") + b"[1]",
    b"PAR1\xff\xff\xff\x7fPAR1",
    b"ARROW1\0\0" + b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"[" * 100_000,
    b"{" * 4096,
    random.Random(7).randbytes(70_000),
]
"""Files that are nothing, or less than they say."""


def refusal(tier: MemoryTier, path: str, data: bytes, metadata: Metadata | None = None) -> str | None:
    """Commit a file; the sentence of a veto, or None."""
    try:
        tier.put(path, data, metadata)
    except Vetoed as veto:
        return str(veto)
    return None


class ObserverSuite:
    """Inherit, and fill in what follows."""

    name: ClassVar[str]
    parameters: ClassVar[Mapping[str, Any]] = {}
    bad_parameters: ClassVar[Sequence[Mapping[str, Any]]] = ()
    files: ClassVar[Sequence[tuple[str, bytes, Metadata]]] = ()
    """Some that it accepts and works on, all below /watched."""
    odd_paths: ClassVar[Sequence[str]] = ("/watched/odd",)
    """Names under which it would look at any file."""

    @pytest.fixture
    def tier(self) -> Iterator[MemoryTier]:
        with MemoryTier() as made:
            yield made

    def attach(self, tier: MemoryTier, **arguments: Any) -> str:
        options = ObserverOptions(restart_delays_s=())
        return tier.host.attach(DIRECTORY, self.name, self.parameters, options, **arguments)

    def state(self, tier: MemoryTier) -> AttachmentState:
        (state,) = tier.host.attachments()
        return state

    def put_all(self, tier: MemoryTier) -> None:
        for path, data, metadata in self.files:
            tier.put(path, data, metadata)

    def settle(self, tier: MemoryTier) -> dict[str, bytes]:
        """Its work done without a failure; the files that there are then."""
        assert tier.host.flush(TIMEOUT_S), self.state(tier).traceback
        assert self.state(tier).failure == "", self.state(tier).traceback
        return {path: stored.data for path, stored in tier.stored.items()}

    def test_it_works_on_its_files(self, tier: MemoryTier) -> None:
        self.attach(tier)
        self.put_all(tier)
        self.settle(tier)
        state = self.state(tier)
        assert state.hooks, "it has no hook"
        for hook, count in (("pre_commit", state.checked_count), ("post_commit", state.delivered_count)):
            assert (count >= len(self.files)) == (hook in state.hooks)

    def test_bad_parameters_are_refused_with_a_sentence(self, tier: MemoryTier) -> None:
        for parameters in [*self.bad_parameters, {**self.parameters, "no such parameter": 1}]:
            with pytest.raises(InvalidRequest, match=r"\w+ \w+ \w+") as raised:
                tier.host.attach(DIRECTORY, self.name, parameters)
            assert "Traceback" not in str(raised.value)
        assert tier.host.attachments() == []

    def test_odd_files_are_no_failure(self, tier: MemoryTier) -> None:
        self.attach(tier)
        for path in self.odd_paths:
            for data in ODD:
                sentence = refusal(tier, path, data)
                assert sentence is None or len(sentence.split()) > 3
        self.settle(tier)

    def test_a_batch_that_comes_twice_does_what_it_does_once(self, tier: MemoryTier) -> None:
        attached = self.attach(tier)
        self.put_all(tier)
        once = self.settle(tier)
        tier.host.detach(attached)
        self.attach(tier, since=0)
        assert self.settle(tier) == once

    def test_its_own_writes_do_not_call_it(self, tier: MemoryTier) -> None:
        self.attach(tier)
        self.put_all(tier)
        self.settle(tier)
        state = self.state(tier)
        if "post_commit" in state.hooks:
            assert state.delivered_count == len(self.files)
        if "pre_commit" in state.hooks:
            assert state.checked_count == len(self.files)

    def test_it_stops_when_it_is_asked_to(self, tier: MemoryTier) -> None:
        attached = self.attach(tier)
        self.put_all(tier)
        self.settle(tier)
        start_s = time.monotonic()
        tier.host.detach(attached, timeout_s=TIMEOUT_S)
        assert time.monotonic() - start_s < 5.0, "it had to be killed"

    def test_it_comes_back_after_it_was_killed(self, tier: MemoryTier) -> None:
        attached = tier.host.attach(DIRECTORY, self.name, self.parameters, ObserverOptions(restart_delays_s=(0.0,) * 3))
        self.put_all(tier)
        self.settle(tier)
        state = self.state(tier)
        attachment = tier.host._find(attached)
        child = attachment._child
        assert child is not None
        child.fail("killed by a test")
        deadline_s = time.monotonic() + TIMEOUT_S
        while self.state(tier).pid in (None, state.pid) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert self.state(tier).state == "running"
        for path, data, metadata in self.files:
            try:
                tier.put(path, data, metadata)
            except ObserverFailed as error:
                pytest.fail(f"it does not work after its restart: {error}")
        assert tier.host.flush(TIMEOUT_S)
        assert self.state(tier).failure_count == 1, self.state(tier).traceback
