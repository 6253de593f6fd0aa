"""What a round cannot be faster than on this machine: `python -m bench.floor`.

Rates of one core in GB/s: copying words in memory, AES-128-CTR as shares are expanded, SHA-256 as they are committed
to, and TLS 1.3 over loopback in 16 KiB records (client and server share the cores, as in `triskele bench`).
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from triskele.keystream import KeyStream
from triskele_server.provision import PortPlan, provision

SIZE = 64 << 20  # bytes
ROUNDS = 5


def best(work: Callable[[], object]) -> float:
    """GB/s of the quickest of some runs over SIZE bytes."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return SIZE / min(seconds) / 1e9


def tls_loopback(folder: Path) -> float:
    """GB/s of SIZE bytes through one connection with mutual TLS."""
    made = provision(folder / "federation", participants=1, ports=PortPlan.free())
    own = made.coordinator.parent
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    server.verify_mode = ssl.CERT_REQUIRED
    client.check_hostname = False
    for context in (server, client):
        context.load_cert_chain(own / "tls.crt", own / "tls.key")
        context.load_verify_locations(own / "ca.crt")
    listener = socket.create_server(("127.0.0.1", 0))

    def take() -> None:
        with server.wrap_socket(listener.accept()[0], server_side=True) as taken:
            room, left = bytearray(1 << 18), SIZE * ROUNDS
            while left:
                left -= taken.recv_into(room)
            taken.sendall(b"\0")

    taking = threading.Thread(target=take)
    taking.start()
    with client.wrap_socket(socket.create_connection(listener.getsockname())) as sending:
        content = bytes(SIZE)
        started = time.perf_counter()
        for _ in range(ROUNDS):
            sending.sendall(content)
        sending.recv(1)
        seconds = time.perf_counter() - started
    taking.join()
    listener.close()
    return SIZE * ROUNDS / seconds / 1e9


if __name__ == "__main__":
    words, other = np.zeros(SIZE // 8, np.int64), np.ones(SIZE // 8, np.int64)
    room = np.empty(SIZE, np.uint8)
    print(f"copy in memory   {best(lambda: np.copyto(words, other)):6.2f} GB/s")
    print(f"AES-128-CTR      {best(lambda: KeyStream(bytes(16)).read_into(room)):6.2f} GB/s")
    print(f"SHA-256          {best(lambda: hashlib.sha256(room.data).digest()):6.2f} GB/s")
    with tempfile.TemporaryDirectory() as folder:
        print(f"TLS on loopback  {tls_loopback(Path(folder)):6.2f} GB/s")
