"""The filesystem and the token in the environment, which a URL has no place for."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator

import fsspec
import pytest

from storage_tier.errors import Unauthenticated
from storage_tier.filesystem import TierFileSystem

from .conftest import TierProcess

fsspec.register_implementation("tier", TierFileSystem, clobber=True)


@pytest.fixture
def url(serve: Callable[..., TierProcess], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("COPROC_TOKEN", raising=False)
    yield f"tier://127.0.0.1:{serve(token='right').port}/a"
    TierFileSystem.clear_instance_cache()


def test_a_url_is_opened_with_the_token_of_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unauthenticated, match="none was given"), fsspec.open(url, "wb") as file:
        file.write(b"refused")
    monkeypatch.setenv("COPROC_TOKEN", "right")
    with fsspec.open(url, "wb") as file:
        file.write(b"taken")
    assert fsspec.open(url).fs.cat("/a") == b"taken"
    # Nobody gets the one that was made with another environment.
    monkeypatch.setenv("COPROC_TOKEN", "wrong")
    with pytest.raises(Unauthenticated, match="is not the one"):
        fsspec.open(url).fs.cat("/a")


def test_the_token_that_is_given_comes_first(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPROC_TOKEN", "wrong")
    with fsspec.open(url, "wb", token="right") as file:
        file.write(b"x")
    monkeypatch.setenv("COPROC_TOKEN", "right")
    with pytest.raises(Unauthenticated, match="is not the one"):
        fsspec.open(url, token="wrong").fs.cat("/a")


def test_what_is_pickled_takes_the_token_of_where_it_comes_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPROC_TOKEN", "a-secret-word")
    fs = fsspec.open(url).fs
    pickled = pickle.dumps(fs)
    assert b"a-secret-word" not in pickled
    assert "a-secret-word" not in fs.to_json()
    monkeypatch.setenv("COPROC_TOKEN", "right")
    there = pickle.loads(pickled)
    there.pipe("/a", b"x")
    assert there.cat("/a") == b"x"
