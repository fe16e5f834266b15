"""Every mode of the folder, through the suite that ships with the package."""

from __future__ import annotations

from coproc.modes.base import names
from coproc.testing.modes import ModeTests


class TestEveryMode(ModeTests):
    modes = names()
