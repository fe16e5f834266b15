"""A real server and real sockets: what counts, what is refused, who waits, and what is left when somebody dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from coproc import optim
from coproc.errors import ConfigError, PushRejected, ServerError, Timeout, Unauthenticated, Unreachable
from coproc.http.client import Served
from coproc.layout import ParamLayout

TIMEOUT_S = 20.0
LARGE = 1 << 18


def push(connection, worker, step, value, size=4, examples=1, read=0):
    gradient = None if value is None else np.full(size, value, np.float32)
    return connection.push(worker, step, examples, 0.5, read, gradient, TIMEOUT_S)


def pull(connection, size=4, held=-1, worker=None, timeout_s=TIMEOUT_S):
    """(version, the one value of all elements)."""
    out = np.full(size, np.nan, np.float32)
    version = connection.pull(out, held, timeout_s, worker)
    assert (out == out[0]).all()
    return version, float(out[0])


def talk(served, head, body=b"", *, token=None):
    """Send a request as it is; (status, answer), or None where the server says nothing and ends the connection."""
    host, port = served.address.split(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as line:
        lines = [head, f"Host: {host}", f"Authorization: Bearer {token or served.token}", "Connection: close", "", ""]
        line.sendall("\r\n".join(lines).encode() + body)
        line.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: line.recv(1 << 16), b""))
    if not received:
        return None
    top, _, rest = received.partition(b"\r\n\r\n")
    return int(top.split()[1]), rest


@contextlib.contextmanager
def together(*calls):
    """Each in a thread that is over at the end; what they returned."""
    found: list[object] = [None] * len(calls)

    def one(number, call):
        try:
            found[number] = call()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=one, args=each) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    yield found
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def test_a_round_is_the_mean_over_its_examples(serve, connect):
    served = serve()
    one, two = connect(served), connect(served)
    assert one.join(0, TIMEOUT_S) == two.join(1, TIMEOUT_S) == 0
    assert push(one, 0, 0, 8.0, examples=3) == {"duplicate": False, "next_step": 1, "version": 0}
    assert pull(two) == (0, 0.0)
    assert push(two, 1, 0, 4.0, examples=1) == {"duplicate": False, "next_step": 1, "version": 1}
    assert pull(one, worker=0) == (1, -7.0)
    counted = one.status()
    assert (counted["pushes_count"], counted["examples_count"], counted["loss_sum"]) == (2, 4, 2.0)
    # Who is no worker is not counted.
    assert (counted["bytes_in"], counted["bytes_out"]) == (32, 16)
    assert counted["update_s"] > 0


def test_without_rounds_each_push_is_in_when_it_is_acknowledged(serve, connect):
    one = connect(serve(workers=None))
    one.join(5, TIMEOUT_S)
    for step in range(4):
        assert push(one, 5, step, 2.0**step)["version"] == step + 1
    assert pull(one) == (4, -15.0)
    push(one, 5, 4, 1.0, read=1)
    counted = one.status()
    assert (counted["staleness_sum"], counted["staleness_max"]) == (0 + 1 + 2 + 3 + 3, 3)


def test_what_is_held_does_not_travel(serve, connect):
    one = connect(serve(workers=None))
    one.join(0, TIMEOUT_S)
    push(one, 0, 0, 1.0)
    assert pull(one) == (1, -1.0)
    before = one.status()["bytes_out"]
    out = np.full(4, 7, np.float32)
    assert one.pull(out, 1, TIMEOUT_S, worker=0) == 1
    assert (out == 7).all()
    assert one.status()["bytes_out"] == before
    assert pull(one, held=0) == (1, -1.0)


def test_a_worker_waits_for_the_round_that_it_is_in(serve, connect):
    served = serve()
    one, two = connect(served), connect(served)
    one.join(0, TIMEOUT_S)
    two.join(1, TIMEOUT_S)
    assert pull(one, worker=0) == (0, 0.0)  # it has given nothing
    push(one, 0, 0, 2.0)
    with pytest.raises(Timeout, match=r"waits for workers \[1\]"):
        pull(one, worker=0, timeout_s=0.05)
    with together(lambda: pull(one, worker=0)) as found:
        push(two, 1, 0, 4.0)
    assert found == [(1, -3.0)]


def test_a_leave_ends_the_wait_for_who_leaves(serve, connect):
    served = serve()
    one, two = connect(served), connect(served)
    one.join(0, TIMEOUT_S)
    two.join(1, TIMEOUT_S)
    push(one, 0, 0, 2.0)
    with together(lambda: pull(one, worker=0)) as found:
        two.leave(1)
    assert found == [(1, -2.0)]


def test_steps_without_gradients_are_given_ahead(serve, connect):
    served = serve()
    one, two = connect(served), connect(served)
    one.join(0, TIMEOUT_S)
    two.join(1, TIMEOUT_S)
    for step in range(3):
        push(one, 0, step, None)
    assert pull(two, worker=1) == (0, 0.0)
    for step in range(2):
        push(two, 1, step, 1.0)
    push(two, 1, 2, None)
    assert pull(one, worker=0) == (3, -2.0)
    assert one.status()["pushes_count"] == 2


def test_of_twins_that_post_at_once_one_is_in(serve, connect):
    """Of each step two attempts with a value of their own, of which a part would show in the sum."""
    served = serve(LARGE, workers=None)
    twins = [connect(served), connect(served)]
    for twin in twins:
        twin.join(0, TIMEOUT_S)
    total, rounds = 0.0, 20
    values = (1.0, 1024.0)
    for step in range(rounds):
        calls = [lambda n=n, step=step: push(twins[n], 0, step, values[n], LARGE) for n in range(2)]
        with together(*calls) as found:
            pass
        duplicates = [answer["duplicate"] for answer in found]
        assert sorted(duplicates) == [False, True]
        total += values[duplicates.index(False)]
    assert pull(twins[0], LARGE) == (rounds, -total)


def test_who_reads_while_others_write_reads_whole_versions(serve, connect):
    size, pushes = 1 << 21, 15  # of more bytes than the sockets between them hold
    served = serve(size, workers=None)
    writers = [connect(served) for _ in range(2)]
    reader, over = connect(served), threading.Event()

    def write(worker):
        writers[worker].join(worker, TIMEOUT_S)
        for step in range(pushes):
            push(writers[worker], worker, step, 1.0, size)

    def read():
        seen = []
        while not over.is_set():
            seen.append(pull(reader, size))
        return seen

    with together(read) as reads:
        with together(lambda: write(0), lambda: write(1)) as written:
            pass
        over.set()
    assert written == [None, None]
    assert all(value == -version for version, value in reads[0])
    assert len({version for version, _ in reads[0]}) > 2
    assert pull(reader, size) == (2 * pushes, -2.0 * pushes)


def test_what_is_not_finite_changes_nothing(serve, connect):
    one = connect(serve(workers=None))
    one.join(0, TIMEOUT_S)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(PushRejected, match="worker 0 at step 0 is not finite"):
            push(one, 0, 0, value)
    assert pull(one) == (0, 0.0)
    push(one, 0, 0, 1.0)
    assert pull(one) == (1, -1.0)


def test_steps_out_of_turn_and_strangers_are_refused(serve, connect):
    one = connect(serve())
    with pytest.raises(PushRejected, match="worker 0 has not joined"):
        push(one, 0, 0, 1.0)
    one.join(0, TIMEOUT_S)
    with pytest.raises(PushRejected, match="steps have no holes"):
        push(one, 0, 1, 1.0)
    with pytest.raises(ConfigError, match="numbered 0 to 1"):
        one.join(2, TIMEOUT_S)


def test_another_token_reads_and_writes_nothing(serve, connect):
    served = serve(LARGE, workers=None)
    connect(served).join(0, TIMEOUT_S)
    stranger = connect(served, token="guessed")
    for call in (
        lambda: stranger.join(0, TIMEOUT_S),
        lambda: push(stranger, 0, 0, 1.0, LARGE),  # answered while the bytes are still coming
        lambda: pull(stranger, LARGE),
        lambda: stranger.set_learning_rate(0.5),
        stranger.status,
    ):
        with pytest.raises(Unauthenticated, match="token"):
            call()
    assert pull(connect(served), LARGE) == (0, 0.0)


def test_bodies_of_another_size_are_refused(serve, connect):
    served = serve(workers=None)
    one = connect(served)
    one.join(0, TIMEOUT_S)
    head = "POST /update?worker=0&step=0&examples=1&read=0 HTTP/1.1\r\n"
    for count in (0, 12, 20):
        status, answer = talk(served, f"{head}Content-Length: {count}", bytes(count))
        assert status == 400
        assert json.loads(answer)["message"] == f"a gradient has 16 bytes, and {count} are announced"
        chunk = f"{count:x}\r\n".encode() + bytes(count) + b"\r\n" if count else b""
        status, answer = talk(served, f"{head}Transfer-Encoding: chunked", chunk + b"0\r\n\r\n")
        assert status == 400
        assert "a gradient has 16 bytes" in json.loads(answer)["message"]
    push(one, 0, 0, 1.0)
    assert pull(one) == (1, -1.0)


def test_who_dies_in_the_middle_of_a_body_has_given_nothing(serve, connect):
    served = serve(LARGE, workers=None)
    one = connect(served)
    one.join(0, TIMEOUT_S)
    head = f"POST /update?worker=0&step=0&examples=1&read=0 HTTP/1.1\r\nContent-Length: {4 * LARGE}"
    for _ in range(3):
        talk(served, head, np.ones(LARGE // 2, np.float32).tobytes())
    assert pull(one, LARGE) == (0, 0.0)
    push(one, 0, 0, 2.0, LARGE)
    assert pull(one, LARGE) == (1, -2.0)


NONSENSE = {
    "GET /nothing": 404,
    "GET /update": 405,
    "POST /join?worker=x": 400,
    "POST /join": 400,
    "GET /model?worker=0&timeout_s=nan": 400,
    "GET /model?worker=0&timeout_s=1e9": 400,
    "POST /rate?learning_rate=nan": 400,
    "POST /update?worker=0&step=0&examples=1&read=0&loss=low": 400,
}


def test_calls_that_make_no_sense_are_refused(serve):
    served = serve()
    for request_line, status in NONSENSE.items():
        found, answer = talk(served, f"{request_line} HTTP/1.1")
        assert found == status
        if status == 400:
            assert json.loads(answer)["kind"] == "ConfigError"


def test_another_learning_rate_counts_from_the_next_descent_on(serve, connect):
    one = connect(serve(workers=None))
    one.join(0, TIMEOUT_S)
    push(one, 0, 0, 1.0)
    one.set_learning_rate(0.25)
    push(one, 0, 1, 1.0)
    assert pull(one) == (2, -1.25)


def test_a_connection_that_broke_is_made_again(serve, connect):
    one = connect(serve(workers=None))
    one.join(0, TIMEOUT_S)
    # Broken before the push was sent, or before its answer came: it is no duplicate of itself, and counts once.
    for step, side in enumerate((socket.SHUT_RDWR, socket.SHUT_RD, socket.SHUT_RDWR, socket.SHUT_RD)):
        one._connection.sock.shutdown(side)
        assert push(one, 0, step, 1.0) == {"duplicate": False, "next_step": step + 1, "version": step + 1}
    assert pull(one) == (4, -4.0)


def test_every_call_to_a_server_that_was_killed_is_a_sentence(serve, connect):
    served = serve(workers=None)
    one = connect(served)
    one.join(0, TIMEOUT_S)
    with together(lambda: [pull(one) for _ in range(100_000)]) as found:
        os.kill(served.pid, signal.SIGKILL)
    assert isinstance(found[0], Unreachable)
    for call in (lambda: one.join(0, TIMEOUT_S), lambda: push(one, 0, 0, 1.0), lambda: pull(one), one.status):
        with pytest.raises(Unreachable, match=r"the parameter server at 127\.0\.0\.1:\d+ does not answer .* is lost"):
            call()


DRIVER = """
import sys, numpy as np
from coproc import optim
from coproc.http.client import Connection, Served
from coproc.layout import ParamLayout
served = Served(ParamLayout.of({"w": (4,)}), np.zeros(4, np.float32), optim.SGD(1.0),
                workers=2, min_updates=2, max_updates=2)
print(served.pid, served.address, served.token, flush=True)
sys.stdin.read()
"""


def test_a_server_ends_with_the_driver_however_that_ends(connect):
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        pid, address, token = driver.stdout.readline().split()
        served = type("Served", (), {"address": address, "token": token})
        one, two = connect(served), connect(served)
        one.join(0, TIMEOUT_S)
        two.join(1, TIMEOUT_S)
        push(one, 0, 0, 1.0)
        watched = os.pidfd_open(int(pid))
        try:
            with together(lambda: pull(one, worker=0)) as found:  # a wait does not hold it up
                driver.kill()
                began = time.monotonic()
                signal.pidfd_send_signal(watched, 0)
                poll(watched)
                assert time.monotonic() - began < 5
            assert isinstance(found[0], Unreachable)
        finally:
            os.close(watched)
        driver.stdin.close()


def poll(pidfd):
    import select

    assert select.select([pidfd], [], [], TIMEOUT_S)[0], "the server is still there"


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(ServerError, match=r"did not start.*(assign requested address|Cannot assign)"):
        Served(
            ParamLayout.of({"w": (4,)}),
            np.zeros(4, np.float32),
            optim.SGD(1.0),
            workers=2,
            min_updates=2,
            max_updates=2,
            host="192.0.2.1",  # an address that is nobody's
        )


def test_closing_twice_is_closing(serve):
    served = serve()
    served.close()
    served.close()
    with pytest.raises(ProcessLookupError):
        os.kill(served.pid, 0)
