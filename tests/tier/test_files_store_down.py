"""New files below a mount whose under-store does not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage_tier.errors import UnderUnreachable
from storage_tier.files import Files
from storage_tier.under.store import UnderStore
from storage_tier.under.write_type import WriteType

from . import files_servers
from .files_servers import LONG_S, put, read

cluster = files_servers.cluster
files = files_servers.files


@pytest.fixture
def answers_again(files: Files, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """/lake, whose store is down until this is called."""
    files.mount("/lake", f"file://{tmp_path}", write_type=WriteType.ASYNC_THROUGH)

    def down(store: UnderStore, *arguments: object, **named: object) -> None:
        raise UnderUnreachable(f"{store.url} was not answered")

    with pytest.MonkeyPatch.context() as patch:
        for verb in ("info", "publish"):
            patch.setattr(UnderStore, verb, down)
        yield patch.undo


@pytest.mark.parametrize("how", [{"exclusive": True}, {"expected_version": 0}])
@pytest.mark.parametrize("write_type", [WriteType.ASYNC_THROUGH, WriteType.MUST_CACHE])
def test_who_has_to_be_the_first_is_told_why_not_and_what_else(
    files: Files, answers_again: Callable[[], None], tmp_path: Path, how: dict[str, object], write_type: WriteType
) -> None:
    with pytest.raises(UnderUnreachable) as caught:
        put(files, "/lake/new", write_type=write_type, **how)
    assert str(caught.value) == (
        f"/lake/new was not written: it is to be only where nothing is, and whether file://{tmp_path} has a file there "
        "cannot be asked now. overwrite=True writes it without asking; or try again later. "
        f"file://{tmp_path} was not answered"
    )
    answers_again()
    put(files, "/lake/new", write_type=write_type, **how)


def test_what_may_take_the_place_of_anything_is_written_and_persisted_later(
    files: Files, answers_again: Callable[[], None], tmp_path: Path
) -> None:
    assert put(files, "/lake/new", b"new").persisted == "waiting"
    assert put(files, "/lake/here", b"here", write_type=WriteType.MUST_CACHE).persisted == "not_needed"
    assert read(files, "/lake/new") == b"new"
    with pytest.raises(UnderUnreachable):
        put(files, "/lake/through", write_type=WriteType.CACHE_THROUGH)
    assert not files._parts.catalog.namespace.exists("/lake/through")
    answers_again()
    files.persist("/lake/new", LONG_S)
    assert (tmp_path / "new").read_bytes() == b"new"
