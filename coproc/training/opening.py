"""Opening what computes: the pool of a run, with the Spark that it needs; and telling data apart."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coproc.errors import ConfigError
from coproc.pools.base import Pool
from coproc.training.config import TrainConfig

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def open_pool(config: TrainConfig, data: Any, session: SparkSession | None, tell: Callable[[str], None]) -> Pool:
    """The pool of a run, to be closed by the caller. `tell` is told what takes long."""
    if config.pool == "spark":
        return _spark_pool(config, data, session, tell)
    if config.pool == "processes":
        from coproc.pools.processes import ProcessPool

        return ProcessPool(config.workers)
    from coproc.pools.inline import InlinePool

    return InlinePool()


def _spark_pool(config: TrainConfig, data: Any, session: SparkSession | None, tell: Callable[[str], None]) -> Pool:
    session = session or (data.sparkSession if is_frame(data) else _active_session())
    if session is None:
        # Said before the imports, which take long, too.
        tell("starting Spark")
    from coproc.pools.session import LocalSpark, require_pyspark

    require_pyspark()
    from coproc.pools.spark import SparkPool

    if session is not None:
        _require_reachable(config, session)
        return SparkPool(session)
    local = LocalSpark(config.workers)
    return SparkPool(local.session, on_close=local.close)


def _require_reachable(config: TrainConfig, session: SparkSession) -> None:
    """Refuse an embedded cluster where executors on other hosts would look for it in vain."""
    master = session.conf.get("spark.master", None) or ""
    if config.address is None and not re.match(r"local|spark://(127\.|localhost)|$", master):
        raise ConfigError(
            f"the executors of {master} may be on other hosts and cannot reach a cluster that is "
            "embedded in this process: start one with `coprocessor serve --host …` where they reach it, and "
            "name its address"
        )


def _active_session() -> SparkSession | None:
    """The Spark that this thread uses already. Where pyspark was not imported there is none."""
    loaded: Any = sys.modules.get("pyspark.sql")
    session: SparkSession | None = loaded.SparkSession.getActiveSession() if loaded is not None else None
    return session


def is_frame(data: Any) -> bool:
    """A Spark DataFrame, classic or Connect, without importing pyspark."""
    return hasattr(data, "sparkSession") and hasattr(data, "mapInArrow")


def is_table(data: Any) -> bool:
    """Anything in Arrow's form."""
    return hasattr(data, "to_batches") and hasattr(data, "column_names")
