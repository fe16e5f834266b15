"""Settings of consistency: what cannot be is refused, and what can be travels as plain values."""

from __future__ import annotations

import json

import pytest

from coproc.consistency import Asp, Bsp, Quorum, Ssp, from_config
from coproc.errors import ConfigError

ALL = [
    Asp(),
    Bsp(workers=3, on_loss="close", patience_s=2.5),
    Quorum(workers=5, count=4),
    Quorum(workers=5, count=5, grace_s=0.25, late="carry", on_loss="close", patience_s=1),
    Ssp(bound=7),
]


@pytest.mark.parametrize("rule", ALL, ids=repr)
def test_a_rule_travels_as_plain_values(rule):
    assert from_config(json.loads(json.dumps(rule.to_config()))) == rule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "the count of Quorum"),
        ({"count": 5}, "the count of Quorum"),
        ({"count": 2.5}, "the count of Quorum"),
        ({"workers": 0, "count": 0}, "workers"),
        ({"grace_s": -1}, "grace_s must be"),
        ({"grace_s": float("nan")}, "grace_s must be"),
        ({"grace_s": float("inf")}, "grace_s must be"),
        ({"grace_s": "1"}, "grace_s must be"),
        ({"late": "keep"}, 'late must be "drop" or "carry"'),
        ({"on_loss": "die"}, "on_loss must be"),
        ({"patience_s": 0}, "patience_s must be"),
    ],
    ids=str,
)
def test_a_quorum_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Quorum(**{"workers": 4, "count": 3, **arguments})


@pytest.mark.parametrize("config", [{}, {"name": "psb"}, {"name": "quorum", "workers": 2}, {"name": "asp", "bound": 1}])
def test_a_rule_that_nobody_knows_is_refused(config):
    with pytest.raises(ConfigError, match="consistency"):
        from_config(config)
