"""``python -m coproc.bench [NAME...] [--json] [--quick] [--rounds N]``."""

from __future__ import annotations

import argparse
import sys

from coproc import bench
from coproc.errors import CoprocError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m coproc.bench", description=bench.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="measurements to take; all if none is named")
    parser.add_argument("--json", action="store_true", help="raw samples and environment as one JSON document")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: see that it runs, not how fast")
    parser.add_argument("--rounds", type=int, default=bench.Options.rounds, help="samples of each contestant")
    asked = parser.parse_args(arguments)
    options = bench.Options(quick=asked.quick, rounds=asked.rounds)
    try:
        results = bench.run(asked.names, options)
    except CoprocError as error:
        print(error, file=sys.stderr)
        return 2
    print(bench.as_json(results, options) if asked.json else bench.as_text(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
