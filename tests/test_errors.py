"""Every failure has a class, every class its root and its gRPC code, in one table a package, both ways."""

from __future__ import annotations

import errno
import importlib
import inspect
import io
import pickle
import pkgutil
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

import coproc.errors
import coproc.wire
import storage_tier.errors
import storage_tier.wire

TREES = {coproc.errors: coproc.errors.CoprocError, storage_tier.errors: storage_tier.errors.TierError}
TABLES = {coproc.errors: coproc.wire.ERRORS, storage_tier.errors: storage_tier.wire.TIER_ERRORS}
PACKAGES = ["coproc", "storage_tier"]
# Signals inside one module or folder, which the same one catches; nobody else ever sees them.
INSIDE = {
    "coproc.observers.gradients.NotGradient",
    "coproc.worker.Stopped",
    "coproc.pools.processes.Died",
    "coproc.compare.runner.Failed",
    "storage_tier.catalog.database.SettingsChanged",
    "storage_tier.files.publishing.Again",
    "storage_tier.line.LineDown",
    "storage_tier.observers.answers.BadAnswer",
    "storage_tier.observers.arrow_header.NotArrow",
    "storage_tier.observers.frames.BadFrame",
    "storage_tier.observers.frames.Ended",
    "storage_tier.observers.frames.Late",
    "storage_tier.observers.process.Broken",
    "storage_tier.observers.safetensors_header.NotSafetensors",
}


def classes(module: object) -> list[type[BaseException]]:
    return [
        found
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, BaseException) and found.__module__ == module.__name__
    ]


@pytest.mark.parametrize("module", TREES, ids=lambda module: module.__name__)
def test_one_root(module: object) -> None:
    strays = [found.__name__ for found in classes(module) if not issubclass(found, TREES[module])]
    assert not strays
    assert len(classes(module)) > 5


@pytest.mark.parametrize("module", TREES, ids=lambda module: module.__name__)
def test_the_tree_is_drawn_at_the_top(module: object) -> None:
    drawn = module.__doc__ or ""
    missing = [found.__name__ for found in classes(module) if not re.search(rf"\b{found.__name__}\b", drawn)]
    assert not missing


@pytest.mark.parametrize("module", TREES, ids=lambda module: module.__name__)
def test_each_class_says_when(module: object) -> None:
    silent = [found.__name__ for found in classes(module) if not found.__dict__.get("__doc__")]
    assert not silent


@pytest.mark.parametrize("package", PACKAGES)
def test_no_error_is_defined_elsewhere(package: str) -> None:
    strays = []
    for info in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if "_pb2" in info.name or info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        if module not in TREES:
            strays += [f"{info.name}.{found.__name__}" for found in classes(module)]
    assert not set(strays) - INSIDE


@pytest.mark.parametrize("module", TREES, ids=lambda module: module.__name__)
def test_each_class_has_its_code(module: object) -> None:
    codes = TABLES[module].codes
    assert {found.__name__ for found in classes(module)} - {found.__name__ for found in codes} == set()
    assert not {found.__name__ for found in codes if codes[found] in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED)}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server whose calls /MODULE/CLASS end with that class of that module."""

    class Raising(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            _, package, name = details.method.split("/")
            module = importlib.import_module(package)

            def end(request: bytes, context: grpc.ServicerContext) -> bytes:
                TABLES[module].abort(context, getattr(module, name)(request.decode()))

            return grpc.unary_unary_rpc_method_handler(end)

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers=[Raising()], options=storage_tier.wire.SERVER_OPTIONS)
        number = server.add_insecure_port("127.0.0.1:0")
        server.start()
        pool.submit(int).result(10)  # its thread is the fixture's, not the first test's
        yield number
        server.stop(None).wait(10)


@pytest.mark.parametrize("module", TREES, ids=lambda module: module.__name__)
def test_each_class_arrives_as_itself_with_its_sentence(module: object, port: int) -> None:
    with storage_tier.wire.channel("127.0.0.1", port) as channel:
        for kind in classes(module):
            call = channel.unary_unary(f"/{module.__name__}/{kind.__name__}")
            with pytest.raises(TREES[module]) as caught, TABLES[module].translated():
                call(b"expected 3, found \xc3\xa4: do that", timeout=10)
            assert type(caught.value) is kind
            assert str(caught.value) == "expected 3, found \u00e4: do that"


def test_each_error_of_the_operating_system_has_its_number() -> None:
    kinds = [kind for kind in classes(storage_tier.errors) if issubclass(kind, OSError)]
    assert [kind.__name__ for kind in kinds if kind("a sentence").errno is None] == []


@pytest.mark.parametrize(
    ("name", "builtin", "number"),
    [
        ("PathNotFound", FileNotFoundError, errno.ENOENT),
        ("PathExists", FileExistsError, errno.EEXIST),
        ("PathIsDirectory", IsADirectoryError, errno.EISDIR),
        ("PathNotDirectory", NotADirectoryError, errno.ENOTDIR),
        ("DirectoryNotEmpty", OSError, errno.ENOTEMPTY),
        ("UnderFull", OSError, errno.ENOSPC),
        ("Unreachable", ConnectionError, errno.ECONNREFUSED),
        ("DeadlineExceeded", TimeoutError, errno.ETIMEDOUT),
        ("Unsupported", io.UnsupportedOperation, errno.EOPNOTSUPP),
        ("Vetoed", PermissionError, errno.EPERM),
    ],
)
def test_what_is_an_error_of_the_operating_system_says_which(
    name: str, builtin: type[OSError], number: int, port: int
) -> None:
    kind = getattr(storage_tier.errors, name)
    with storage_tier.wire.channel("127.0.0.1", port) as channel:
        call = channel.unary_unary(f"/storage_tier.errors/{name}")
        with pytest.raises(builtin, match="a sentence") as caught, storage_tier.wire.TIER_ERRORS.translated():
            call(b"a sentence", timeout=10)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.errno, str(again)) == (kind, number, "a sentence")
