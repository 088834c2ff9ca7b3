"""Measures the way between two hosts. Usage, on both of `launch/two_hosts`: link.py FILE, which host1 writes as JSON.

`round_trip`: seconds, the least of some; `rate`: bits per second from host1 to host0, over one TCP connection.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

from tests.integration.launching import wait_until

PORT, ROUNDS, BYTES = 5000, 5, 10_000_000


def answer() -> None:
    with socket.create_server(("host0", PORT)) as server:
        connection, _ = server.accept()
    for _ in range(ROUNDS):
        connection.sendall(connection.recv(1))
    left = BYTES
    while left:
        left -= len(connection.recv(min(left, 1 << 20)))
    connection.sendall(b"!")


def measure() -> dict[str, float]:
    connection = socket.socket()
    assert wait_until(lambda: connection.connect_ex(("host0", PORT)) == 0, 20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    rounds = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        connection.sendall(b"?")
        connection.recv(1)
        rounds.append(time.monotonic() - began)
    began = time.monotonic()
    connection.sendall(bytes(BYTES))
    connection.recv(1)
    return {"round_trip": min(rounds), "rate": 8 * BYTES / (time.monotonic() - began)}


if __name__ == "__main__":
    if os.environ["NODE_RANK"] == "0":
        answer()
    else:
        Path(sys.argv[1]).write_text(json.dumps(measure()))
