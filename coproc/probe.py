"""The coprocessor's points for tests and measurements (`storage_tier.probe`), before and after each durable act.

``COPROC_FAILPOINT="log.append.after:3"`` kills with SIGKILL at the third hit.
"""

from __future__ import annotations

from storage_tier.probe import Probe

_PROBE = Probe(
    (
        "log.append.before",
        "log.append.after",
        "push.commit.before",
        "push.commit.after",
        "push.claim.before",
        "sweep.before",
        "sweep.middle",
        "publish.before",
        "publish.after",
        "release.before",
        "release.after",
        "checkpoint.cut.before",
        "checkpoint.cut.after",
        "checkpoint.copy.after",
        "checkpoint.commit.after",
        "restore.announce.after",
        "restore.drop.after",
    ),
    "COPROC_FAILPOINT",
)
POINTS, left, watched = _PROBE.points, _PROBE.left, _PROBE.watched
number, hit, watch = _PROBE.number, _PROBE.hit, _PROBE.watch
