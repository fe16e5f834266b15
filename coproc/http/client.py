"""The two ends that use the server: who starts it, and a worker with a connection that is kept."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import IO, Any
from urllib.parse import urlencode

from coproc import errors
from coproc.errors import CoprocError, ServerError, Timeout, Unreachable
from coproc.layout import Flat, ParamLayout
from coproc.optim import Optimizer
from storage_tier.wire import target

_START_S = 60.0
# The bytes themselves take time too, on top of what the server may wait.
_BYTES_S = 30.0
_CONTROL_S = 30.0


class Served:
    """A server's process, from the program that started it; it ends with that, however that ends."""

    def __init__(
        self,
        layout: ParamLayout,
        params: Flat,
        optimizer: Optimizer,
        *,
        workers: int | None,
        min_updates: int,
        max_updates: int,
        host: str = "127.0.0.1",
    ) -> None:
        """Start it, and wait until it serves.

        Args:
            params: (P,), the first version.
            workers, min_updates, max_updates: as of `coproc.http.rounds.Rounds`.
            host: address of this machine that it is to listen at.

        Raises:
            ServerError: it did not start.
        """
        self.token = secrets.token_hex(16)
        # A file and not a pipe: nobody has to read it while the server works.
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "coproc.http.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for the driver, which ends its server in an orderly way
        )
        self.pid = self._process.pid
        given = {
            "shapes": {name: list(shape) for name, shape in layout.shapes.items()},
            "optimizer": optimizer.to_config(),
            "workers": workers,
            "min_updates": min_updates,
            "max_updates": max_updates,
            "host": host,
            "token": self.token,
        }
        late = threading.Timer(_START_S, self._process.kill)  # which ends every wait for it
        late.start()
        try:
            port = self._begin(given, params)
        except (BrokenPipeError, ValueError, KeyError):
            self._process.kill()
            self._process.wait()
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            self.close()
            raise ServerError(f"the parameter server did not start within {_START_S:g} s: {said[-1]}") from None
        except BaseException:
            self._process.kill()
            self.close()
            raise
        finally:
            late.cancel()
            late.join()
        self.address = target(host, port)

    def _begin(self, given: Mapping[str, Any], params: Flat) -> int:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(given).encode() + b"\n")
        process.stdin.write(params.data.cast("B"))
        process.stdin.flush()
        return int(json.loads(process.stdout.readline())["port"])

    def close(self) -> None:
        """End the process, and with it the model. Idempotent."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._log.close()


class Connection:
    """To one server, kept from call to call; made again once where it has broken meanwhile. Used by one thread."""

    def __init__(self, address: str, token: str) -> None:
        """Does no I/O."""
        self.address = address
        self._headers = {"Authorization": f"Bearer {token}"}
        self._connection = http.client.HTTPConnection(address)
        self._again = False
        """The last call was sent twice."""

    def join(self, worker: int, timeout_s: float) -> int:
        """Take part; the step to push next."""
        return int(self._json("POST", "join", timeout_s, worker=worker)["next_step"])

    def leave(self, worker: int, timeout_s: float = _CONTROL_S) -> None:
        """Nobody need wait for this worker any more."""
        self._json("POST", "leave", timeout_s, worker=worker)

    def set_learning_rate(self, learning_rate: float, timeout_s: float = _CONTROL_S) -> None:
        """Of the next descent on."""
        self._json("POST", "rate", timeout_s, learning_rate=repr(learning_rate))

    def status(self, timeout_s: float = _CONTROL_S) -> Mapping[str, Any]:
        """Counters."""
        return self._json("GET", "status", timeout_s)

    def pull(self, out: Flat, held: int, timeout_s: float, worker: int | None = None) -> int:
        """The newest version into `out` (P,), which holds version `held` (-1: none, or parts of one); its number.

        Nothing travels where that is the newest. Of a worker: the newest when all it has given is descended.

        Raises:
            Timeout: that was not in time. Unreachable.
        """
        query: dict[str, Any] = {}
        if worker is not None:
            query = {"worker": worker, "timeout_s": f"{timeout_s:.3f}"}
        answer = self._ask("GET", "model", timeout_s, query, None, {"If-None-Match": f'"{held}"'})
        try:
            if answer.status == 304:
                answer.read()
                return held
            view, at = out.data.cast("B"), 0
            if answer.length != len(view):
                self.close()
                raise ServerError(f"the model has {len(view):,} bytes, and the server sends {answer.length}")
            while at < len(view):
                count = answer.readinto(view[at:])
                if not count:
                    raise ConnectionResetError("it stopped in the middle")
                at += count
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from None
        return int(answer.headers["etag"].strip('"'))

    def push(
        self, worker: int, step: int, examples: int, loss: float, read: int, gradient: Flat | None, timeout_s: float
    ) -> Mapping[str, Any]:
        """Commit a gradient (P,) computed at version `read` (-1: unknown here), or a step without one.

        Returns:
            duplicate: another attempt's was first; next_step: to push next; version: the newest.
        """
        query: dict[str, Any] = {"worker": worker, "step": step}
        if read >= 0:
            query["read"] = read
        query["examples"] = examples if gradient is not None else 0
        if not math.isnan(loss):
            query["loss"] = repr(loss)
        body = b"" if gradient is None else gradient.data.cast("B")
        found = self._read(self._ask("POST", "update", timeout_s, query, body, {"Content-Length": str(len(body))}))
        # Sent twice, it may have been this very one that came first.
        return {**found, "duplicate": found["duplicate"] and not self._again}

    def close(self) -> None:
        """Close it; a later call connects again. Idempotent."""
        self._connection.close()

    def _json(self, method: str, path: str, timeout_s: float, **query: Any) -> Mapping[str, Any]:
        return self._read(self._ask(method, path, timeout_s, query, b"" if method == "POST" else None, {}))

    def _read(self, answer: http.client.HTTPResponse) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = json.loads(answer.read())
            return found
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._broken(error) from None

    def _ask(
        self, method: str, path: str, timeout_s: float, query: Mapping[str, Any], body: Any, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        connection, url, every = self._connection, f"/{path}?{urlencode(query)}", {**self._headers, **headers}
        connection.timeout = timeout_s + _BYTES_S
        for self._again in (False, True):
            kept = connection.sock is not None
            if connection.sock is not None:
                connection.sock.settimeout(connection.timeout)
            try:
                connection.request(method, url, body, every)
                answer = connection.getresponse()
                break
            except (OSError, http.client.HTTPException) as error:
                broken = self._broken(error)
                # What became of a connection while it was idle, only a call can tell.
                if self._again or not kept or isinstance(error, TimeoutError):
                    raise broken from None
        if answer.status >= 400:
            raise self._refusal(answer)
        return answer

    def _refusal(self, answer: http.client.HTTPResponse) -> CoprocError:
        try:
            said = json.loads(answer.read())
            message, kind = str(said["message"]), getattr(errors, str(said["kind"]), ServerError)
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
            self.close()
            return ServerError(f"the server at {self.address} answers with status {answer.status}")
        known = isinstance(kind, type) and issubclass(kind, CoprocError)
        return kind(message) if known else ServerError(message)

    def _broken(self, error: Exception) -> CoprocError:
        self.close()
        if isinstance(error, TimeoutError):
            return Timeout(f"the parameter server at {self.address} gave no answer in time")
        return Unreachable(
            f"the parameter server at {self.address} does not answer ({error!r:.100}); where its process has ended, "
            "what it had learned is lost: train again"
        )
