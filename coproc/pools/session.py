"""A local Spark for those who have none running: checked, quiet, and gone without a trace when closed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coproc.cluster import own, remove_abandoned
from coproc.errors import Unsupported
from coproc.pools.base import ATTEMPT_LIMIT, python_path, quiet

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JAVA_MINIMUM = 17  # of Spark 4
JAVA_TIMEOUT_S = 30.0
INSTALL_JAVA = (
    "install a Java runtime of version 17 or newer (Debian and Ubuntu: apt-get install "
    "openjdk-17-jre-headless; Fedora: dnf install java-17-openjdk-headless; macOS: brew install openjdk@17), "
    "or use --pool processes, which needs none"
)

PREFIX = "coproc-spark-"

# Nothing below ERROR, and no stack walls of tasks: a task's failure reaches the driver as a sentence.
LOG4J = """\
rootLogger.level = error
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n%ex
"""


def require_java() -> None:
    """Refuse before pyspark does, which would say it with a stack wall.

    Raises:
        Unsupported: no Java, or one that is too old; with what to install.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else shutil.which("java")
    if java is None:
        raise Unsupported(f"Spark needs Java and there is no `java` on the PATH: {INSTALL_JAVA}")
    try:
        answer = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=JAVA_TIMEOUT_S, check=True
        ).stderr
    except (OSError, subprocess.SubprocessError) as error:
        where = f"JAVA_HOME={home}" if home else java
        raise Unsupported(f"Spark needs Java and {where} does not run ({error}): {INSTALL_JAVA}") from None
    found = re.search(r'version "(\d+)(?:\.(\d+))?', answer)
    if found is None:
        raise Unsupported(f"`{java} -version` does not tell a version: {INSTALL_JAVA}")
    major = int(found.group(1)) if found.group(1) != "1" else int(found.group(2) or 0)
    if major < JAVA_MINIMUM:
        raise Unsupported(f"Spark 4 needs Java {JAVA_MINIMUM} or newer, and {java} is Java {major}: {INSTALL_JAVA}")


def require_pyspark() -> None:
    """Raises Unsupported with the install line where pyspark is not installed."""
    try:
        import pyspark  # noqa: F401
    except ImportError:
        raise Unsupported(
            "the pool `spark` needs pyspark: pip install 'coproc[spark]', or use --pool processes"
        ) from None


@contextlib.contextmanager
def _python_of_workers(executable: str) -> Iterator[None]:
    """Have pyspark start this interpreter for its workers; it takes it from nowhere but the environment."""
    before = os.environ.get("PYSPARK_PYTHON")
    os.environ["PYSPARK_PYTHON"] = before or executable
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYSPARK_PYTHON"]


@contextlib.contextmanager
def _home_in(home: Path) -> Iterator[None]:
    """Have Spark's own workers write below `home`, for they do it where it is installed."""
    import pyspark

    before = os.environ.get("SPARK_HOME")
    home.mkdir()
    for each in Path(before or pyspark.__path__[0]).iterdir():
        if each.name != "work":
            (home / each.name).symlink_to(each)
    os.environ["SPARK_HOME"] = str(home)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SPARK_HOME"]
        else:
            os.environ["SPARK_HOME"] = before


@contextlib.contextmanager
def _own_interrupt() -> Iterator[None]:
    """Keep this process's answer to Ctrl-C: pyspark's asks a session that may be closed by then."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


class LocalSpark:
    """An embedded Spark on this host with `slots` task slots; `close` ends it and removes its files.

    Everything it writes (sockets, shuffle files, the log of its first words) is in one directory of ours.
    """

    def __init__(self, slots: int, *, memory: str = "2g", master: str | None = None) -> None:
        """Start it; takes some seconds.

        Args:
            master: local-cluster[EXECUTORS,SLOTS,MEGABYTES], for executors that are processes; None: `slots` in one.

        Raises:
            Unsupported: no pyspark or no Java.
        """
        require_pyspark()
        require_java()
        remove_abandoned(Path(tempfile.gettempdir()), PREFIX)
        self._dir = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._owner = own(self._dir)
        try:
            self.session = self._start(slots, memory, master or f"local[{slots},{ATTEMPT_LIMIT}]")
        except Exception as error:
            log = self._log_tail()
            self._remove()
            raise Unsupported(f"Spark did not start ({type(error).__name__}): {log or error}") from error

    def _start(self, slots: int, memory: str, master: str) -> SparkSession:
        (self._dir / "log4j2.properties").write_text(LOG4J)
        # It lives for one training, and the work is done in Python: what the optimizing compiler and a
        # parallel collector cost (a third of all its processor time) they never bring in again.
        java_options = (
            f"-Dlog4j2.configurationFile={self._dir / 'log4j2.properties'} -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
        )
        settings: dict[str, Any] = {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.memory": memory,
            "spark.driver.extraJavaOptions": java_options,
            "spark.executorEnv.PYTHONPATH": python_path(),
            "spark.local.dir": str(self._dir),
            # Half the time of a job goes into TCP between the JVM and Python.
            "spark.python.unix.domain.socket.enabled": "true",
            "spark.python.unix.domain.socket.dir": str(self._dir),
            # Nothing here shuffles more than once; 200 would be 200 tasks.
            "spark.sql.shuffle.partitions": str(slots),
            "spark.sql.warehouse.dir": str(self._dir / "warehouse"),
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            # Executors that are processes register one by one: begin when all have.
            "spark.scheduler.minRegisteredResourcesRatio": "1.0",
            "spark.scheduler.maxRegisteredResourcesWaitingTime": "60s",
        }
        with quiet():
            from pyspark.sql import SparkSession

            # local[N] alone never retries a failed task.
            builder = SparkSession.builder.master(master).appName("coproc")
            for name, value in settings.items():
                builder = builder.config(name, value)
            home = contextlib.nullcontext() if master.startswith("local[") else _home_in(self._dir / "home")
            with home, self._stderr_to_log(), _python_of_workers(sys.executable), _own_interrupt():
                return builder.getOrCreate()

    def close(self) -> None:
        """End Spark, its JVM, and remove its directory. Idempotent."""
        if not self._dir.exists():
            return
        from pyspark import SparkContext

        with quiet():
            self.session.stop()
        gateway = SparkContext._gateway
        if gateway is not None:
            # The JVM would stay until this interpreter ends, with its memory.
            gateway.shutdown()
            process = getattr(gateway, "proc", None)
            if process is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
                process.wait(timeout=JAVA_TIMEOUT_S)
            SparkContext._gateway = None
            SparkContext._jvm = None
        self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self._dir)
        os.close(self._owner)

    def _log_tail(self) -> str:
        log = self._dir / "stderr.log"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return " ".join(line.strip() for line in lines[-3:])

    @contextlib.contextmanager
    def _stderr_to_log(self) -> Iterator[None]:
        """The JVM inherits this process's standard error: let it be a file, for it greets with 10 lines."""
        sys.stderr.flush()
        saved = os.dup(2)
        try:
            with open(self._dir / "stderr.log", "ab") as log:
                os.dup2(log.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
