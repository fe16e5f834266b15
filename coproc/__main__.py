"""``python -m coproc``: the command line."""

from __future__ import annotations

from coproc.cli import main

main()
