"""Every mode of the folder, through the suite that ships with the package."""

from __future__ import annotations

import pytest

from coproc.modes.base import names
from coproc.testing.modes import ModeTests


class TestEveryMode(ModeTests):
    @pytest.fixture(params=names())
    def mode(self, request):
        return request.param
