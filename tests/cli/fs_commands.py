"""`coprocessor fs` in this process, on a real server."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

import coproc
import storage_tier.client
from coproc.cli import main
from storage_tier.client import TierClient

BIG = bytes(range(256)) * 2000


@pytest.fixture(scope="module")
def cluster():
    with coproc.LocalCluster(memory_bytes=64 << 20) as made:
        yield made


@pytest.fixture(params=["near"])
def client(request, cluster, monkeypatch, tmp_path):
    """The tier, empty, as the commands reach it; what they write on this host goes below `tmp_path`."""
    monkeypatch.setenv("COPROC_ADDRESS", cluster.address)
    monkeypatch.chdir(tmp_path)
    if request.param == "far":
        far = functools.partial(TierClient, near=False)
        monkeypatch.setattr(storage_tier.client, "TierClient", far)
    with TierClient(cluster.address) as made:
        for mount in made.mounts():
            made.unmount(mount.path, discard=True)
        made.delete_prefix("/")
        yield made


@pytest.fixture
def fs(client, capfdbinary):
    """`fs("ls", "/")`: (exit status, standard output, standard error), of the command in this process."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["fs", *map(str, arguments)])
        said = capfdbinary.readouterr()
        return ended.value.code, said.out, said.err.decode(errors="replace")

    return run


@pytest.fixture
def works(fs):
    """`works("ls", "/")`: its standard output as text; nothing was said on standard error."""

    def run(*arguments):
        code, out, errors = fs(*arguments)
        assert (code, errors) == (0, "")
        return out.decode()

    return run


@pytest.fixture
def fails(fs):
    """`fails(words, "ls", "/")`: it ended with 1 and a sentence a failure."""

    def run(words, *arguments, code=1, sentences=1):
        ended, out, errors = fs(*arguments)
        assert ended == code, errors
        assert "Traceback" not in errors
        lines = errors.splitlines()
        if code == 1:
            assert len(lines) == sentences, errors
            assert all(line.startswith("error: ") for line in lines)
        assert re.search(words, " ".join(errors.replace("│", " ").split())), errors
        return out.decode()

    return run


def local(**files):
    """Files in the working folder."""
    for name, content in files.items():
        Path(name).write_bytes(content)
