"""Every backend, found by listing the folder, holds what a backend has to hold."""

from __future__ import annotations

from typing import Any

import pytest

from coproc.testing.grads import GradientBackendTests, example_specs


def _name(spec: dict[str, Any]) -> str:
    return "-".join(str(value) for value in spec.values())


class TestEveryBackend(GradientBackendTests):
    @pytest.fixture(params=example_specs(), ids=_name)
    def spec(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return dict(request.param)
