"""Talking on a line: a ticket, a question, a time to wait, a certificate."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from storage_tier.line import TICKET_BYTES
from storage_tier.v1 import tier_pb2

TICKET = bytes(range(TICKET_BYTES))
MIB = 1 << 20


def soon(timeout_s: float = 10.0) -> float:
    return time.monotonic() + timeout_s


ASK = ("Status", tier_pb2.StatusRequest(), tier_pb2.StatusResponse)


def made_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of a server called "tier", and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the command openssl, which makes the certificate of this test, is not installed")
    certificate, key = folder / "server.crt", folder / "server.key"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=tier"),
            *("-addext", "subjectAltName=DNS:tier"),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return certificate, key
