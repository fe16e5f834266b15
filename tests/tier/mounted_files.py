"""A directory mounted as an under-store."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage_tier.files import Files


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    path = tmp_path / "lake"
    path.mkdir()
    return path


@pytest.fixture
def mounted(files: Files, lake: Path) -> Files:
    files.mount("/lake", f"file://{lake}", write_type="cache_through")
    return files


def objects(lake: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(lake)): path.read_bytes()
        for path in lake.rglob("*")
        if path.is_file() and ".tier-tmp" not in path.parts
    }
