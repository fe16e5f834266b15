"""A pool calls a function of the project in its tasks: names and numbers in, names and numbers out."""

from __future__ import annotations

import contextlib
import sys

import pytest

from coproc.errors import ConfigError, ServerError
from coproc.pools.inline import InlinePool
from coproc.pools.processes import ProcessPool
from coproc.pools.spark import SparkPool

WHOLE = "coproc.errors:whole"


class Connected:
    """A session as Spark Connect's: with queries, without a context."""

    def __init__(self, session):
        self._session = session

    @property
    def sparkContext(self):
        raise RuntimeError("there is no context")

    def __getattr__(self, name):
        return getattr(self._session, name)


@pytest.fixture(params=["inline", "processes", "spark", "spark without a context"])
def pool(request):
    made = {
        "inline": InlinePool,
        "processes": lambda: ProcessPool(2),
        "spark": lambda: SparkPool(request.getfixturevalue("spark")),
        "spark without a context": lambda: SparkPool(Connected(request.getfixturevalue("spark"))),
    }
    with contextlib.closing(made[request.param]()) as pool:
        yield pool


def arguments(value):
    return {"what": "it", "value": value, "least": 1, "most": 7}


def test_answers_come_in_the_order_of_the_arguments(pool):
    assert pool.call(WHOLE, [arguments(value) for value in (3, 1, 7, 2, 3)]) == [3, 1, 7, 2, 3]
    assert pool.call(WHOLE, []) == []


def test_what_a_function_raises_is_raised_here(pool):
    with pytest.raises(ConfigError, match="it must be a whole number from 1 to 7, not 8"):
        pool.call(WHOLE, [arguments(7), arguments(8)])


@pytest.mark.parametrize(
    "function",
    [
        *("os:getpid", "coprocessor.evil:do", "coproc.errors", "coproc.errors:", "coproc.errors:nothing"),
        *("coproc.modes.vectors:url_to_fs", "coproc.pools.processes:os"),
    ],
)
def test_only_functions_of_the_project_are_called(function):
    with pytest.raises(ConfigError, match=r"calls functions of coproc, as coproc\.module:name"):
        InlinePool().call(function, [{}])


def test_a_child_that_dies_is_called_again(tmp_path):
    program = (
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        f"    deaths = {str(tmp_path / 'deaths')!r}\n"
        "    count = os.path.getsize(deaths) if os.path.exists(deaths) else 0\n"
        "    if count < int(json.loads(line)['arguments']['deaths']):\n"
        "        open(deaths, 'a').write('x'); os.kill(os.getpid(), 9)\n"
        "    print(json.dumps({'after': count}), flush=True)\n"
    )
    with contextlib.closing(ProcessPool(1, [sys.executable, "-c", program])) as pool:
        assert pool.call("coproc.any:thing", [{"deaths": 3}]) == [{"after": 3}]
        with pytest.raises(ServerError, match=r"task 0 died 4 times \(SIGKILL"):
            pool.call("coproc.any:thing", [{"deaths": 99}])
