"""Every compression of the folder, through the suite that ships with the package."""

from __future__ import annotations

from coproc.testing.compression import CompressionSuite


class TestCompressions(CompressionSuite):
    pass
