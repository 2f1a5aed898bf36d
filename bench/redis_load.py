"""The client of bench/redis.py, in a process of its own: commands over plain sockets, answers read by hiredis.

Answers each line on standard input with a line. One loop over epoll: a client on asyncio is slower than the servers it
should measure.
"""

import json
import math
import select
import socket
import sys
import time
from typing import Any

import hiredis

VALUE = b"x" * 256
WAIT = hiredis.pack_command((b"WAIT", b"1", b"1000"))


def connect(url: str) -> socket.socket:
    """A connection to ``host:port`` or ``unix:/path``."""
    if url.startswith("unix:"):
        wire = socket.socket(socket.AF_UNIX)
        wire.connect(url.removeprefix("unix:"))
        return wire
    host, _, port = url.rpartition(":")
    wire = socket.create_connection((host, int(port)))
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wire


class Connection:
    """One connection with ``depth`` commands under way, all sent together when the last ones are answered."""

    def __init__(self, url: str, batches: list[bytes], answers: int, begin: bytes) -> None:
        self.wire = connect(url)
        self.reader = hiredis.Reader()
        self.batches, self.answers = batches, answers
        self.turn = self.heard = 0
        self.sent = 0.0
        if begin:
            self.wire.sendall(begin)
            while self.reader.gets() is False:
                self.reader.feed(self.wire.recv(4096))

    def send(self) -> None:
        self.turn = (self.turn + 1) % len(self.batches)
        self.heard = 0
        self.sent = time.perf_counter()
        self.wire.sendall(self.batches[self.turn])


def batches_of(command: str, keys: list[bytes], depth: int, wait: bool) -> tuple[list[bytes], int]:
    """What one connection sends, in turn, and the number of answers to each; a ``WAIT`` stands at the end of each."""
    packed = [
        hiredis.pack_command((b"SET", key, VALUE, b"EX", b"3600") if command == "SET" else (b"GET", key))
        for key in keys
    ]
    parts = [b"".join(packed[at : at + depth]) for at in range(0, len(packed) - depth + 1, depth)]
    return ([part + WAIT for part in parts], depth + 1) if wait else (parts, depth)


def good(answer: object) -> bool:
    return answer in (b"OK", VALUE, 1)


def drive(asked: dict[str, Any]) -> dict[str, Any]:
    """As many commands as the connections get done in so many seconds, or, with 0 seconds, each key once.

    A time is that of a whole batch. Commands that failed do not count in the rate.
    """
    depth, number = asked["depth"], asked["connections"]
    begin = hiredis.pack_command((b"CLIENT", b"SETNAME", asked["name"].encode())) if asked.get("name") else b""
    keys = [f"bench:{each}".encode() for each in range(asked["keys"])]
    poll, open_connections = select.epoll(), {}
    for each in range(number):
        batches, answers = batches_of(asked["command"], keys[each::number], depth, asked.get("wait", False))
        connection = Connection(asked["url"], batches, answers, begin)
        open_connections[connection.wire.fileno()] = connection
        poll.register(connection.wire, select.EPOLLIN)
    times: list[float] = []
    failed, started = 0, time.perf_counter()
    end = started + asked["seconds"]
    for connection in open_connections.values():
        connection.send()
    running = number
    while running:
        for descriptor, _ in poll.poll(5):
            connection = open_connections[descriptor]
            connection.reader.feed(connection.wire.recv(1 << 16))
            while (answer := connection.reader.gets()) is not False:
                connection.heard += 1
                failed += not good(answer)
            if connection.heard == connection.answers:
                now = time.perf_counter()
                times.append(now - connection.sent)
                if now < end if asked["seconds"] else connection.turn:
                    connection.send()
                else:
                    running -= 1
        if time.perf_counter() > end + 30:
            break
    took = time.perf_counter() - started
    for connection in open_connections.values():
        connection.wire.close()
    done = len(times) * depth
    return {"requests": done, "per_second": max(done - failed, 0) / took, "failed": failed, **spread(times)}


def spread(times: list[float]) -> dict[str, float]:
    """Percentiles in ms of times in seconds."""
    ordered = sorted(times)
    at = lambda share: ordered[min(len(ordered) - 1, math.ceil(len(ordered) * share) - 1)] * 1000  # noqa: E731
    return {"p50": round(at(0.5), 3), "p99": round(at(0.99), 3)}


def main() -> None:
    """Serve commands until standard input ends."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(drive(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
