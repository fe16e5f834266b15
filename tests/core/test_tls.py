"""TLS from end to end: `coproc serve` with a certificate, clients that trust it, and those that do not fit."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import coproc
import storage_tier.client
from coproc.cli import main
from storage_tier.client import TierClient
from storage_tier.wire import TlsClient

# Made for these tests and used nowhere else, valid from 2020 to 2120: an authority whose key was thrown away, a
# certificate of it for 127.0.0.1 and localhost with its key, and an authority that has signed nothing.
AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBVjCB/aADAgECAhRpiEgcv7knbdaV8QTL/TwTtHgrcDAKBggqhkjOPQQDAjAg
MR4wHAYDVQQDDBVjb3Byb2MgdGVzdCBhdXRob3JpdHkwIBcNMjAwMTAxMDAwMDAw
WhgPMjEyMDAxMDEwMDAwMDBaMCAxHjAcBgNVBAMMFWNvcHJvYyB0ZXN0IGF1dGhv
cml0eTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABD/dbayMkDFxGXIkHTPDIU1L
TbQxp8+MsfvVNANf0bEGGlJXz+Xn5uUFMwPAaspH+jANTvn/5WGwUioL2pcRh3Wj
EzARMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgfA31ayZI3g8H
/vHD2Wu8hR/XYs/vivEIUrjQeR0uXR0CIQCXMQ3dEGBTHiZVAb/R1AoTTw9XlinH
ksjGKhZoU2FLCQ==
-----END CERTIFICATE-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBbTCCAROgAwIBAgIUZvvdPIwaNl8U+EYwtECyeCJqRAgwCgYIKoZIzj0EAwIw
IDEeMBwGA1UEAwwVY29wcm9jIHRlc3QgYXV0aG9yaXR5MCAXDTIwMDEwMTAwMDAw
MFoYDzIxMjAwMTAxMDAwMDAwWjAdMRswGQYDVQQDDBJjb3Byb2MgdGVzdCBzZXJ2
ZXIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQ8yNvNRzdy0Sj0CmsKcWYU9i4i
Bz7v/+2D6gIk288TNBaMSEdVWKHvQpsxF8g0XtcNlWWugbgEG20DN4GZV2uWoyww
KjAMBgNVHRMBAf8EAjAAMBoGA1UdEQQTMBGHBH8AAAGCCWxvY2FsaG9zdDAKBggq
hkjOPQQDAgNIADBFAiBTpA9jiTKzmfpeHCpSkXCcegudFR3oKs/b+7nvJQQ1RAIh
AINEXvC20hV9VuZ943ZZbeX2boTAGDkU+EZMl0p1wWI3
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgZgOgBvRuDp1SMDqz
ozOE6MuEfZKroI0KU1PAqD7HXp6hRANCAAQ8yNvNRzdy0Sj0CmsKcWYU9i4iBz7v
/+2D6gIk288TNBaMSEdVWKHvQpsxF8g0XtcNlWWugbgEG20DN4GZV2uW
-----END PRIVATE KEY-----
"""
STRANGER = """\
-----BEGIN CERTIFICATE-----
MIIBTjCB9aADAgECAhQ+SJR/mSmzTFV9A/ZSaTEjMpmp1TAKBggqhkjOPQQDAjAc
MRowGAYDVQQDDBFhbm90aGVyIGF1dGhvcml0eTAgFw0yMDAxMDEwMDAwMDBaGA8y
MTIwMDEwMTAwMDAwMFowHDEaMBgGA1UEAwwRYW5vdGhlciBhdXRob3JpdHkwWTAT
BgcqhkjOPQIBBggqhkjOPQMBBwNCAASre5CSbTPzlwkQGmDoraxe+NoCcPGJpOn5
bdMOfTXbTXc78rE0YeuraGFNlkY1pq8AGVsRJAc0y6IKhL/YQA7JoxMwETAPBgNV
HRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQCejt84/f9gHpAqygBY7xBm
LypCL3ckMrkQAMsWKLbtYAIgV+zhLPvtZGDCjNWDqXuxEvRIyamcZUvbzy4D4ATr
geM=
-----END CERTIFICATE-----
"""
TOKEN = "right-token"
TIMEOUT_S = 5.0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("tls")
    for name, text in (("authority", AUTHORITY), ("certificate", CERTIFICATE), ("key", KEY), ("stranger", STRANGER)):
        (path / f"{name}.pem").write_text(text)
    return path


def serve(directory, files):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "coproc", "serve", "--dir", str(directory), "--memory", "64m"),
            *("--tls-certificate", str(files / "certificate.pem"), "--tls-key", str(files / "key.pem")),
            *("--tls-authority", str(files / "authority.pem")),
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "COPROC_TOKEN": TOKEN},
    )  # fmt: skip
    return process, process.stdout.readline().removeprefix("ready coproc://").strip()


@pytest.fixture(scope="module")
def address(files):
    """Two servers: they talk to each other by TLS too."""
    directory = Path(tempfile.mkdtemp(prefix=f"coproc-test-tls-{os.getpid()}-", dir="/dev/shm"))
    started = [serve(directory / f"server-{n}", files) for n in range(2)]
    yield "coproc://" + ",".join(server for _, server in started)
    for process, _ in started:
        process.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=30)[1] for process, _ in started]
    shutil.rmtree(directory)
    assert [process.returncode for process, _ in started] == [0, 0], said


@pytest.fixture(scope="module")
def trusting(files):
    return TlsClient(files / "authority.pem")


@pytest.mark.parametrize("near", [True, False])
def test_a_model_lives_behind_tls(address, trusting, name, near):
    with coproc.connect(address, token=TOKEN, tls=trusting, near=None if near else False) as client:
        assert client.near is near
        first = np.arange(1000, dtype=np.float32)
        model = client.create_model(name, params={"w": first}, optimizer=coproc.optim.SGD(1.0), shards=2)
        assert len({place.server for place in model.spec.shards}) == 2
        with model.join(worker=0) as worker:
            assert near or worker._attempt._lines._tls is trusting
            for step in range(3):
                assert worker.push({"w": np.ones(1000)})[:2] == (step, False)
                pulled = worker.pull(min_version=step + 1, timeout_s=30)
                assert pulled.version == step + 1
                np.testing.assert_array_equal(pulled.params["w"], first - (step + 1))
        snapshot = model.snapshot()
        assert snapshot.version == 3
        np.testing.assert_array_equal(snapshot.params["w"], first - 3)
        assert client.models() == [name]
        model.delete()


def refused(kind, address, **how):
    """What `connect` says; it must say it within its time."""
    began = time.monotonic()
    with pytest.raises(kind) as error:
        coproc.connect(address, timeout_s=TIMEOUT_S, **how)
    assert time.monotonic() - began < 2 * TIMEOUT_S  # two servers are looked for, one after the other
    return str(error.value)


@pytest.mark.parametrize("near", [None, False])
def test_a_client_without_tls_gets_nothing(address, near):
    said = refused(coproc.Unreachable, address, token=TOKEN, near=near)
    assert f"nobody can be reached at {address}" in said
    assert "one side speaks TLS" in said


@pytest.mark.parametrize("content", [None, "no certificate\n"], ids=["missing", "not PEM"])
def test_an_authority_that_cannot_be_read_is_named(address, tmp_path, content):
    path = tmp_path / "authority.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(coproc.ConfigError, match=r"authority\.pem"):
        coproc.connect(address, tls=TlsClient(ca=path))


@pytest.mark.parametrize("near", [None, False])
@pytest.mark.parametrize("trusts", ["a stranger", "who is known to the world", "the authority, for another host"])
def test_a_client_that_does_not_trust_the_servers_says_why(address, files, trusts, near):
    tls = {
        "a stranger": TlsClient(files / "stranger.pem"),
        "who is known to the world": TlsClient(),
        "the authority, for another host": TlsClient(files / "authority.pem", server_name="elsewhere"),
    }[trusts]
    said = refused(coproc.Unreachable, address, token=TOKEN, tls=tls, near=near)
    assert f"nobody can be reached at {address}" in said
    assert ("Hostname" if tls.server_name else "CERTIFICATE_VERIFY_FAILED") in said


def test_trust_does_not_replace_the_token(address, trusting):
    assert "the token is not the one" in refused(coproc.Unauthenticated, address, token="wrong", tls=trusting)
    assert "none was given" in refused(coproc.Unauthenticated, address, tls=trusting)


def test_a_client_that_wants_tls_takes_nothing_less(cluster, trusting):
    said = refused(coproc.Unreachable, cluster.address, tls=trusting)
    assert f"nobody can be reached at {cluster.address}" in said


@pytest.fixture
def command(address, monkeypatch, capfd):
    """`command("fs", "ls")`: (exit status, standard output, standard error), of the command in this process."""
    monkeypatch.setenv("COPROC_ADDRESS", address)
    monkeypatch.setenv("COPROC_TOKEN", TOKEN)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return ended.value.code, *capfd.readouterr()

    return run


@pytest.mark.parametrize("near", [True, False])
def test_the_commands_reach_servers_behind_tls(command, files, tmp_path, monkeypatch, near):
    trust = ("--tls-authority", files / "authority.pem")
    if not near:
        monkeypatch.setattr(storage_tier.client, "TierClient", functools.partial(TierClient, near=False))
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(b"behind TLS" * 1000)
    path = f"/behind-{near}"
    assert command("fs", "put", source, path, *trust) == (0, "", "")
    assert command("fs", "get", path, back, *trust) == (0, "", "")
    assert back.read_bytes() == source.read_bytes()
    code, shown, _ = command("fs", "explain", path, *trust)
    assert (code, ("not on this host" in shown)) == (0, not near)
    assert command("fs", "pin", path, *trust) == command("fs", "unpin", path, *trust) == (0, "", "")
    assert command("fs", "mounts", *trust) == (0, "", "")
    monkeypatch.setenv("COPROC_TLS_AUTHORITY", str(files / "authority.pem"))
    assert command("fs", "rm", path) == (0, "", "")
    assert command("fs", "stat", path)[0] == 1


def test_status_of_servers_behind_tls(command, address, files, monkeypatch):
    code, shown, said = command("status", "--tls-authority", files / "authority.pem")
    assert (code, said) == (0, "")
    for server in address.removeprefix("coproc://").split(","):
        assert f"server {server}\n  up " in shown
    monkeypatch.setenv("COPROC_TLS_AUTHORITY", str(files / "authority.pem"))
    assert command("status")[0] == 0


def test_an_authority_that_the_commands_cannot_read_is_named(command, tmp_path):
    for arguments in (("status",), ("fs", "ls")):
        code, _, said = command(*arguments, "--tls-authority", tmp_path / "none.pem")
        assert (code, said.count("\n")) == (1, 1)
        assert "none.pem can't be read: No such file" in said


@pytest.mark.parametrize("named", ["by the option", "by the environment"])
def test_trains_on_servers_behind_tls(command, address, files, tmp_path, monkeypatch, named):
    trust = ("--tls-authority", files / "authority.pem")
    if named == "by the environment":
        monkeypatch.setenv("COPROC_TLS_AUTHORITY", str(trust[1]))
        trust = ()
    given = ("train", "--address", address, "--epochs", 1, "--pool", "processes", "--output", tmp_path / "out")
    code, _, said = command(*given, *trust)
    assert code == 0, said
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 1000
    monkeypatch.delenv("COPROC_TLS_AUTHORITY", raising=False)
    code, _, said = command(*given)
    assert (code, "one side speaks TLS" in said) == (1, True)
