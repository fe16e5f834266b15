"""``python -m coproc.cli``: the same as the command `coproc`."""

from __future__ import annotations

from coproc.cli import main

if __name__ == "__main__":
    main()
