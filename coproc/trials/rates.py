"""Rates of links and delays as people write them."""

from __future__ import annotations

import re

from coproc.errors import ConfigError

_RATE = re.compile(r"(\d+(?:\.\d+)?)([kmg]?)bit", re.IGNORECASE)
_DELAY = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def rate_of(link: str) -> float:
    """Bytes a second of a link, from `1gbit`, `100mbit`, ….

    Raises:
        ConfigError: not such a text.
    """
    found = _RATE.fullmatch(link.strip())
    if found is None or not float(found[1]):
        raise ConfigError(f"a link is written as 1gbit or 100mbit, not {link!r:.50}")
    return float(found[1]) * _UNITS[found[2].lower()] / 8


def delay_of(delay: str) -> float:
    """Seconds of a delay, from `0.2ms`, `50us`, ….

    Raises:
        ConfigError: not such a text.
    """
    found = _DELAY.fullmatch(delay.strip())
    if found is None:
        raise ConfigError(f"a delay is written as 0.2ms or 50us, not {delay!r:.50}")
    return float(found[1]) * _UNITS[found[2]]
