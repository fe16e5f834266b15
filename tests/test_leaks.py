"""The leak check itself: a leak of any kind fails its test, and what a wider fixture owns does not."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py").read_text()

LEAKS = {
    "descriptor": "os.open(os.devnull, os.O_RDONLY)",
    "anonymous_descriptor": "os.eventfd(0)",
    "process": "subprocess.Popen(['sleep', '60'])",
    "orphan": "subprocess.run(['sh', '-c', 'sleep 60 >/dev/null 2>&1 &'], check=True)",
    "thread": "threading.Thread(target=STOP.wait, args=(60,), daemon=True).start()",
    "name": "Path(f'/dev/shm/leak-{os.getpid()}').touch()",
    "name_in_a_folder": "Path(f'/dev/shm/leak-{os.getpid()}-folder/a').mkdir(parents=True)",
    "variable": "os.environ.update(COPROC_FAIL='a')",
}
PRELUDE = """
import atexit, os, shutil, subprocess, threading
from pathlib import Path
import pytest
STOP = threading.Event()
OPEN = []
"""
# What the leaking session leaves is removed here, not by the check: its job is to tell.
TIDY = """
def pytest_unconfigure():
    import os, shutil, signal
    from pathlib import Path
    for path in Path('/dev/shm').glob(f'leak-{os.getpid()}*'):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for pid in family():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
"""


def run(pytester: pytest.Pytester, body: str, settle_s: float = 5.0) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST + TIDY + f"\nSETTLE_S = {settle_s}\n")
    pytester.makepyfile(PRELUDE + body)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=60)


def test_each_kind_of_leak_fails_the_test_that_made_it_and_no_other(pytester: pytest.Pytester) -> None:
    body = ""
    for kind, leak in LEAKS.items():
        body += f"def test_{kind}():\n    OPEN.append({leak})\n\n"
        body += f"def test_after_{kind}():\n    pass\n\n"
    result = run(pytester, body, settle_s=0.2)
    result.assert_outcomes(passed=2 * len(LEAKS), errors=len(LEAKS))
    for kind in LEAKS:
        result.stdout.re_match_lines([rf".*ERROR at teardown of test_{kind}", r"this test left \d behind:"])


def test_what_ends_a_little_later_is_waited_for(pytester: pytest.Pytester) -> None:
    body = """
def test_soon():
    OPEN.append(subprocess.Popen(['sleep', '0.1']))
    threading.Thread(target=STOP.wait, args=(0.1,)).start()
"""
    run(pytester, body).assert_outcomes(passed=1)


def test_a_module_fixture_owns_what_it_took_and_what_its_processes_start(pytester: pytest.Pytester) -> None:
    body = """
@pytest.fixture(scope="module")
def held():
    folder = Path(f'/dev/shm/leak-{os.getpid()}')
    folder.mkdir()
    process = subprocess.Popen(['sh', '-c', f'read line; sleep 60 & touch {folder}/a; echo; wait'],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
    yield process
    os.killpg(process.pid, 9)
    process.communicate()
    shutil.rmtree(folder)

def test_first(held):
    held.stdin.write(b'\\n')
    held.stdin.flush()
    held.stdout.readline()

def test_second(held):
    pass

def test_third():
    pass
"""
    run(pytester, body).assert_outcomes(passed=3)


def test_a_module_fixture_that_keeps_something_is_named(pytester: pytest.Pytester) -> None:
    body = """
@pytest.fixture(scope="module")
def keeps():
    OPEN.append(os.open(os.devnull, os.O_RDONLY))

def test_it(keeps):
    pass
"""
    result = run(pytester, body, settle_s=0.2)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.re_match_lines([r"fixture keeps of .* left 1 behind:"])


def test_a_failed_test_is_not_checked(pytester: pytest.Pytester) -> None:
    run(pytester, "def test_it():\n    OPEN.append(os.eventfd(0))\n    assert False\n").assert_outcomes(failed=1)


def test_what_lies_where_others_have_something_open_is_theirs(pytester: pytest.Pytester) -> None:
    folder = Path(f"/dev/shm/leak-theirs-{secrets.token_hex(8)}x")  # without a pid, which would do as well
    folder.mkdir()
    try:
        with (folder / "lock").open("w"):
            body = f"def test_it():\n    (Path({str(folder)!r}) / 'a').touch()\n"
            run(pytester, body).assert_outcomes(passed=1)
    finally:
        shutil.rmtree(folder)


def test_what_is_named_after_a_process_of_others_is_theirs_as_long_as_it_lives(pytester: pytest.Pytester) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    paths = [Path(f"/dev/shm/leak-{number}") for number in (f"{os.getpid()}-a", f"{ended.pid}-a", f"1{os.getpid()}x-1")]
    body = "".join(f"def test_{number}():\n    Path({str(path)!r}).touch()\n\n" for number, path in enumerate(paths))
    try:
        result = run(pytester, body, settle_s=0.2)
    finally:
        for path in paths:
            path.unlink()
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.re_match_lines([r".*ERROR at teardown of test_1", r".*ERROR at teardown of test_2"])
