"""Denominators of the tier: the plainest ways to write and to send bytes. Imports nothing of the project.

``python tier_raw.py SIZE`` sends SIZE bytes, from memory, to whoever connects and sends a byte; it says on which port.
"""

from __future__ import annotations

import os
import socket
import sys

PIECE_BYTES = 1 << 20


def write_fresh(path: str, data: memoryview) -> None:
    """A new file with these bytes, by write(2)."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    at = 0
    while at < len(data):
        at += os.write(fd, data[at:])
    os.close(fd)


def receive(port: int, into: memoryview) -> None:
    """Fill memory from one TCP connection over loopback, 1 MiB at a time at most."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"x")
        at = 0
        while at < len(into):
            count = connection.recv_into(into[at : at + PIECE_BYTES])
            if not count:
                raise ConnectionError(f"the sender stopped after {at} of {len(into)} bytes")
            at += count


def send_for_ever(size_bytes: int) -> None:
    """Serve one reader after the other until the standard input's other end is closed by a kill."""
    data = memoryview(bytes(size_bytes))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            with connection:
                if connection.recv(1):
                    connection.sendall(data)


if __name__ == "__main__":
    send_for_ever(int(sys.argv[1]))
