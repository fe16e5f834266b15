"""The server's process: a Starlette application on uvicorn.

    POST /join?worker=N                                     the step to push next
    GET  /model[?worker=N&timeout_s=S]                      float32, little-endian, its version as ETag; for a worker
                                                            it waits for the round that its last step is in
    POST /update?worker=N&step=S&examples=E&loss=L[&read=V] float32 likewise, computed at version V; E = 0, no body: a
                                                            step without one
    POST /leave?worker=N
    POST /rate?learning_rate=R
    GET  /status

Every answer but the model is JSON; a refusal is ``{"kind": a class of coproc.errors, "message": a sentence}``. The
process begins with what it reads from its standard input, a line of JSON and the first parameters, and ends with it.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import os
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coproc import optim
from coproc.errors import ConfigError, CoprocError, PushRejected, Timeout, Unauthenticated
from coproc.http.rounds import Given, Rounds
from coproc.layout import Flat, ParamLayout, all_finite
from coproc.local import Descent

# A round waits for the slowest worker, and its own wait ends first.
_MOST_WAIT_S = 600.0
_STATUS = {Timeout: 504, Unauthenticated: 401, PushRejected: 409, ConfigError: 400}

_COUNTS = (
    *("pushes_count", "examples_count", "loss_examples_count", "staleness_sum", "staleness_max"),
    *("bytes_in", "bytes_out"),
)

Handler = Callable[[Request], Awaitable[Response]]


class ParameterServer:
    """One model. All but descents is done by the thread of its event loop."""

    def __init__(self, descent: Descent, rounds: Rounds, token: str) -> None:
        self._descent = descent
        self._rounds = rounds
        self._authorization = f"Bearer {token}"
        self._size = descent.params.size
        self._version = 0
        self._content: tuple[int, bytes] = (-1, b"")
        """A version as it is sent: made once, however many workers fetch it."""
        self._changed = asyncio.Condition()
        self._descending = asyncio.Lock()
        self._free: list[Flat] = []
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._loss_sum = 0.0

    def application(self) -> Starlette:
        """To be served."""
        routes = [
            Route(f"/{name}", self._checked(handler), methods=[method])
            for method, name, handler in (
                ("POST", "join", self._join),
                ("GET", "model", self._model),
                ("POST", "update", self._update),
                ("POST", "leave", self._leave),
                ("POST", "rate", self._rate),
                ("GET", "status", self._status),
            )
        ]
        return Starlette(routes=routes)

    def _checked(self, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            try:
                given = request.headers.get("authorization", "")
                if not hmac.compare_digest(given.encode(), self._authorization.encode()):
                    raise Unauthenticated("the token is not the one that this server was started with")
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=400)  # to nobody
            except CoprocError as error:
                status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
                return JSONResponse({"kind": type(error).__name__, "message": str(error)}, status)
            except Exception as error:  # unforeseen: one call fails with it, and the log has the rest
                traceback.print_exc()
                return JSONResponse({"kind": "ServerError", "message": f"{type(error).__name__}: {error}"}, 500)

        return answer

    # ---- calls

    async def _join(self, request: Request) -> Response:
        return JSONResponse({"next_step": self._rounds.join(_whole(request, "worker"))})

    async def _model(self, request: Request) -> Response:
        of_worker = "worker" in request.query_params
        if of_worker:
            await self._own_round(_whole(request, "worker"), _seconds(request))
        async with self._descending:
            version = self._version
            tag = f'"{version}"'
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers={"etag": tag})
            if self._content[0] != version:
                self._content = version, self._descent.params.tobytes()
            content = self._content[1]
        self._counts["bytes_out"] += len(content) if of_worker else 0
        return Response(content, media_type="application/octet-stream", headers={"etag": tag})

    async def _update(self, request: Request) -> Response:
        rounds = self._rounds
        worker, step, examples = (_whole(request, name) for name in ("worker", "step", "examples"))
        loss = _number(request, "loss", math.nan)
        read = _whole(request, "read") if "read" in request.query_params else None
        gradient = await self._received(request) if examples else None
        given = Given(worker, examples, loss, gradient)
        try:
            # From here to `give` nothing else runs: of two attempts with one step, one is the first.
            duplicate = rounds.is_duplicate(worker, step)
            if not duplicate and gradient is not None and not all_finite(gradient):
                raise PushRejected(f"the gradient of worker {worker} at step {step} is not finite; nothing was pushed")
            if not duplicate:
                self._count(given, read)
                rounds.give(given)
                gradient = None
        finally:
            if gradient is not None:
                self._free.append(gradient)
        await self._descend(given)
        return JSONResponse({"duplicate": duplicate, "next_step": rounds.next_steps[worker], "version": self._version})

    async def _leave(self, request: Request) -> Response:
        self._rounds.leave(_whole(request, "worker"))
        await self._descend()
        return JSONResponse({})

    async def _rate(self, request: Request) -> Response:
        rate = _number(request, "learning_rate", math.nan)
        self._descent.optimizer.with_learning_rate(rate)  # refuses what cannot be
        async with self._descending:
            self._descent.learning_rate = rate
        return JSONResponse({})

    async def _status(self, request: Request) -> Response:
        told = {"version": self._version, "loss_sum": self._loss_sum, "update_s": self._descent.busy_s}
        return JSONResponse({**told, **self._counts})

    # ---- within

    async def _own_round(self, worker: int, timeout_s: float) -> None:
        """Wait until what this worker has given is descended."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: not self._rounds.waits(worker)), timeout_s)
            except TimeoutError:
                raise Timeout(
                    f"the round after version {self._version} was open for {timeout_s:g} s more; it waits for workers "
                    f"{self._rounds.missing}"
                ) from None

    async def _received(self, request: Request) -> Flat:
        """The body, a vector of the model's size, in memory that is used again."""
        told = request.headers.get("content-length")
        if told is not None and told != str(4 * self._size):
            raise ConfigError(f"a gradient has {4 * self._size:,} bytes, and {told:.20} are announced")
        gradient = self._free.pop() if self._free else optim.aligned_row(self._size)
        view, at = gradient.data.cast("B"), 0
        try:
            async for piece in request.stream():
                if at + len(piece) > len(view):
                    raise ConfigError(f"a gradient has {len(view):,} bytes; more than that were sent")
                view[at : at + len(piece)] = piece
                at += len(piece)
            if at != len(view):
                raise ConfigError(f"a gradient has {len(view):,} bytes, and {at:,} were sent")
        except BaseException:
            self._free.append(gradient)
            raise
        self._counts["bytes_in"] += at
        return gradient

    def _count(self, given: Given, read: int | None) -> None:
        if not given.examples:
            return
        counts, staleness = self._counts, 0 if read is None else max(0, self._version - read)
        counts["pushes_count"] += 1
        counts["examples_count"] += given.examples
        counts["staleness_sum"] += staleness
        counts["staleness_max"] = max(counts["staleness_max"], staleness)
        if math.isfinite(given.loss):
            counts["loss_examples_count"] += given.examples
            self._loss_sum += given.loss * given.examples

    async def _descend(self, mine: Given | None = None) -> None:
        """Descend what is due, one after the other, beside the event loop; where there are no rounds, until `mine` is
        in: others descend theirs."""
        rounds = self._rounds
        while True:
            async with self._descending:
                if mine is not None and rounds.workers is None and not rounds.holds(mine):
                    return
                taken = rounds.take()
                if taken is None:
                    return
                given = [each for each in taken if each.gradient is not None]
                if given:
                    gradients = [each.gradient for each in given if each.gradient is not None]
                    counts, losses = [each.examples for each in given], [each.loss for each in given]
                    await asyncio.to_thread(self._descent.step, gradients, counts, losses)
                    self._free += gradients
                # A round of steps without gradients is one too: who waits for it goes on.
                self._version += 1
                async with self._changed:
                    self._changed.notify_all()


def _whole(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if not text.isdecimal() or len(text) > 15:
        raise ConfigError(f"{name} must be a whole number, not {text!r:.40}")
    return int(text)


def _seconds(request: Request) -> float:
    value = _number(request, "timeout_s", _MOST_WAIT_S)
    if not 0 <= value <= _MOST_WAIT_S:
        raise ConfigError(f"timeout_s must be 0 to {_MOST_WAIT_S:g}, not {value}")
    return value


def _number(request: Request, name: str, default: float) -> float:
    text = request.query_params.get(name)
    try:
        return default if text is None else float(text)
    except ValueError:
        raise ConfigError(f"{name} must be a number, not {text!r:.40}") from None


def main() -> None:
    """Serve until the standard input ends."""
    given: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    layout = ParamLayout.of({name: tuple(shape) for name, shape in given["shapes"].items()})
    params = np.frombuffer(sys.stdin.buffer.read(4 * layout.size), np.float32)
    rounds = Rounds(given["workers"], given["min_updates"], given["max_updates"])
    family = socket.AF_INET6 if ":" in given["host"] else socket.AF_INET
    with (
        Descent(optim.from_config(given["optimizer"]), layout, params) as descent,
        socket.create_server((given["host"], 0), family=family, backlog=512) as listening,
    ):
        descent.warm(given["workers"] or 1)
        application = ParameterServer(descent, rounds, given["token"]).application()
        # A worker computes between two calls for as long as it takes, and its connection stays.
        config = uvicorn.Config(
            application, log_level="warning", access_log=False, timeout_keep_alive=3600, lifespan="off"
        )
        threading.Thread(target=_end_with_input, daemon=True).start()
        print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
