"""Every optimizer of the folder, through the suite that ships with the package."""

from __future__ import annotations

from coproc.testing.optim import OptimizerSuite


class TestOptimizers(OptimizerSuite):
    pass
