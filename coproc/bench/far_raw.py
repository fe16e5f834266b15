"""A slow link: hands bytes on between two TCP connections, at so many a second. Imports nothing of the project.

``python far_raw.py PORT BYTES_PER_S`` takes connections and makes each one further to PORT of this host; it says on
which port. Each way has the whole rate for itself, shared by all connections.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

PIECE_BYTES = 1 << 16
# What a way that was kept waiting may catch up with: sleeping is no more exact than this.
CREDIT_S = 0.004


class Way:
    """One direction of the link."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        """Until one of the two ends."""
        data = bytearray(PIECE_BYTES)
        try:
            while count := source.recv_into(data):
                with self._lock:
                    now = time.monotonic()
                    self._free_at = max(self._free_at, now - CREDIT_S) + count / self._bytes_per_s
                    wait_s = self._free_at - now
                if wait_s > 0:
                    time.sleep(wait_s)
                target.sendall(memoryview(data)[:count])
            target.shutdown(socket.SHUT_WR)
        except OSError:  # one end was closed: nobody is left to tell
            source.close()
            target.close()


def relay(port: int, bytes_per_s: float) -> None:
    """Serve until killed."""
    there, back = Way(bytes_per_s), Way(bytes_per_s)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            near, _ = listening.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for connection in (near, far):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for way, source, target in ((there, near, far), (back, far, near)):
                threading.Thread(target=way.carry, args=(source, target), daemon=True).start()


if __name__ == "__main__":
    relay(int(sys.argv[1]), float(sys.argv[2]))
