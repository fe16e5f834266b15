"""An S3 endpoint over real HTTP, in a thread of the test run: moto's server behind a door that tests can hold.

Its own looks and writes go by bare HTTP requests, past all that is under test.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import fsspec.asyn
import pytest
from moto.backends import get_backend
from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

KEY = "AKIDOFTHETESTS"
BARE = "AKIDOFTHEENDPOINT"
SECRET = "s3cr3t/of+the=tests"

Environ = dict[str, Any]
Answer = tuple[str, str]
"""Status and S3 code: ("503 Slow Down", "SlowDown")."""


class S3Endpoint:
    """One endpoint. `fault` sees each signed request and may answer in place of S3, or hold it up."""

    def __init__(self) -> None:
        # Not the dispatcher of all services, which looks through its folders at each request.
        self._app = create_backend_app("s3")
        self.fault: Callable[[Environ], Answer | None] | None = None
        self.requests: list[str] = []
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=MotoRequestHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="S3 endpoint")
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def options(self) -> dict[str, Any]:
        """What an under-store needs to come in."""
        return {"key": KEY, "secret": SECRET, "endpoint_url": self.url}

    def make_bucket(self, name: str = "") -> str:
        name = name or f"bucket-{uuid.uuid4().hex[:12]}"
        self._request("PUT", f"/{name}")
        return name

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self._request("PUT", f"/{bucket}/{quote(key)}", content)

    def get(self, bucket: str, key: str) -> bytes | None:
        """None when it is not there."""
        try:
            return self._request("GET", f"/{bucket}/{quote(key)}")
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 404:
                    raise
            return None

    def keys(self, bucket: str) -> list[str]:
        return self._names(f"/{bucket}?list-type=2")

    def uploads(self, bucket: str) -> list[str]:
        """Keys of uploads in parts that are neither complete nor aborted."""
        return self._names(f"/{bucket}?uploads")

    def begin_upload(self, bucket: str, key: str) -> None:
        self._request("POST", f"/{bucket}/{quote(key)}?uploads")

    def forget(self) -> None:
        """Drop all buckets; their bigger objects are open files of this process."""
        get_backend("s3").reset()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _names(self, path: str) -> list[str]:
        root = ElementTree.fromstring(self._request("GET", path))
        return sorted(found.text or "" for found in root.iter() if found.tag.rpartition("}")[2] == "Key")

    def _request(self, verb: str, path: str, content: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data=content, method=verb)
        # Anybody's signature will do for moto; without one it keeps objects to itself.
        request.add_header("Authorization", f"AWS4-HMAC-SHA256 Credential={BARE}/20260101/us-east-1/s3/aws4_request")
        request.add_header("Content-Type", "application/octet-stream")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def _serve(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        signature = environ.get("HTTP_AUTHORIZATION", "")
        if f"Credential={BARE}/" not in signature:
            self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}")
            answer = self.fault(environ) if self.fault is not None else None
            if f"Credential={KEY}/" not in signature:
                answer = ("403 Forbidden", "InvalidAccessKeyId")
            if answer is not None:
                return _refuse(environ, start_response, *answer)
        return self._app(environ, start_response)


def _refuse(environ: Environ, start_response: Callable[..., Any], status: str, code: str) -> list[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    body = f"<Error><Code>{code}</Code><Message>{code} (answered by a test)</Message></Error>".encode()
    if environ["REQUEST_METHOD"] == "HEAD":
        body = b""
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Endpoint]:
    """The endpoint of a module's tests, and fsspec's thread for asynchronous libraries, which never ends by itself."""
    logger = logging.getLogger("werkzeug")
    level = logger.level
    logger.setLevel(logging.ERROR)
    loop = fsspec.asyn.get_loop()
    # Its threads begin here, so that they are nobody else's.
    pool = ThreadPoolExecutor(1, "fsspec's helper")
    pool.submit(int).result()
    loop.call_soon_threadsafe(loop.set_default_executor, pool)
    endpoint = S3Endpoint()
    yield endpoint
    endpoint.stop()
    loop.call_soon_threadsafe(loop.stop)
    fsspec.asyn.iothread[0].join()
    _close(loop)
    pool.shutdown()
    fsspec.asyn.reset_lock()
    logger.setLevel(level)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop)
    assert not left, left
    loop.close()


@pytest.fixture
def s3(s3_server: S3Endpoint) -> Iterator[S3Endpoint]:
    """The endpoint; faults and buckets end with the test."""
    yield s3_server
    s3_server.fault = None
    s3_server.requests.clear()
    s3_server.forget()
