"""The client of bench/sessions.py, in a process of its own: HTTP to sidecars or RESP to Redis over plain sockets.

Answers each line on standard input with a line. It speaks just enough of both protocols to cost little itself: every
request is made of ready bytes, and of an answer only its end and its status are read.
"""

import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from understudy.statesync.replication.history import version_of

BODY = bytes(random.Random(1).randbytes(128).hex(), "ascii")


class Wire(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, complete: Callable[[bytes], bool]) -> None:
        self.complete = complete
        self.heard = b""
        self.answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data
        if self.answer is not None and not self.answer.done() and self.complete(self.heard):
            self.answer.set_result(self.heard)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(exc or ConnectionError("closed"))

    async def ask(self, request: bytes) -> bytes:
        self.heard = b""
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.answer


def http_complete(heard: bytes) -> bool:
    head, found, body = heard.partition(b"\r\n\r\n")
    if not found:
        return False
    low = head.lower()
    at = low.find(b"content-length:")
    return at < 0 or len(body) >= int(low[at + 15 :].split(b"\r\n", 1)[0])


def resp_complete(heard: bytes) -> bool:
    if heard.startswith(b"$") and not heard.startswith(b"$-1"):
        return heard.endswith(b"\r\n") and len(heard) > len(BODY)
    return heard.count(b"\r\n") >= (2 if heard.startswith(b"+") else 1)


class Http:
    """The requests of the session API. With ``identified`` each write tells its request, as behind a front Envoy."""

    complete = staticmethod(http_complete)

    def __init__(self, identified: bool = False) -> None:
        self.identified = identified
        self._name = f"{random.randrange(16**12):012x}"
        self._sent = count()

    def write(self, key: str) -> bytes:
        head = f"PUT /v1/sessions/{key} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: {len(BODY)}"
        if self.identified:
            head += f"\r\nUnderstudy-Request: {time.time():.3f};{self._name}-{next(self._sent)}"
        return head.encode() + b"\r\n\r\n" + BODY

    def read(self, key: str, consistency: str = "") -> bytes:
        wish = f"Understudy-Consistency: {consistency}\r\n" if consistency else ""
        return f"GET /v1/sessions/{key} HTTP/1.1\r\nHost: x\r\n{wish}\r\n".encode()

    def good(self, answer: bytes) -> bool:
        return answer.startswith(b"HTTP/1.1 2")


class Redis:
    """SET with WAIT 1, and GET."""

    complete = staticmethod(resp_complete)

    def write(self, key: str) -> bytes:
        return _command(b"SET", key.encode(), BODY, b"EX", b"3600") + _command(b"WAIT", b"1", b"1000")

    def read(self, key: str) -> bytes:
        return _command(b"GET", key.encode())

    def good(self, answer: bytes) -> bool:
        return answer.startswith(b"$") or answer == b"+OK\r\n:1\r\n"


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def spread(times: list[float]) -> dict[str, float]:
    """Percentiles in ms of times in seconds."""
    ordered = sorted(times)
    at = lambda share: ordered[min(len(ordered) - 1, math.ceil(len(ordered) * share) - 1)] * 1000  # noqa: E731
    return {"p50": round(at(0.5), 2), "p99": round(at(0.99), 2), "max": round(ordered[-1] * 1000, 2), "n": len(ordered)}


class Load:
    """One load: ``port`` and the protocol, with the keys it writes to."""

    def __init__(self, port: int, redis: bool, keys: list[str], identified: bool = False) -> None:
        self.port, self.keys = port, keys
        self.speech: Http | Redis = Redis() if redis else Http(identified)
        self.failed = 0

    async def wires(self, number: int) -> list[Wire]:
        loop = asyncio.get_running_loop()
        make = lambda: Wire(self.speech.complete)  # noqa: E731
        return [(await loop.create_connection(make, "127.0.0.1", self.port))[1] for _ in range(number)]

    async def drive(self, connections: int, seconds: float) -> dict[str, Any]:
        """As many writes as ``connections`` clients get done, each waiting for its answer."""
        wires = await self.wires(connections)
        begin = time.perf_counter()
        end = begin + seconds
        times: list[float] = []

        async def client(number: int, wire: Wire) -> None:
            keys = self.keys[number::connections]
            for turn in count():
                sent = time.perf_counter()
                if sent > end:
                    return
                answer = await wire.ask(self.speech.write(keys[turn % len(keys)]))
                times.append(time.perf_counter() - sent)
                self.failed += not self.speech.good(answer)

        await asyncio.gather(*(client(number, wire) for number, wire in enumerate(wires)))
        took = time.perf_counter() - begin
        self._close(wires)
        return {"per_second": round(len(times) / took), "failed": self.failed, "ms": spread(times)}

    async def pace(self, rate: float, seconds: float, connections: int = 64) -> dict[str, Any]:
        """Reads and writes in turn at a fixed rate; a time counts from when the request was due."""
        free = await self.wires(connections)
        everyone = list(free)
        reads: list[float] = []
        writes: list[float] = []
        tasks: set[asyncio.Task[None]] = set()
        begin = time.perf_counter() + 0.05
        for number in range(int(rate * seconds)):
            due = begin + number / rate
            while (now := time.perf_counter()) < due or not free:
                await asyncio.sleep(max(due - now, 0.0002))
            key = self.keys[(number // 2) % len(self.keys)]
            # Taken here: late tasks begin together, and there may be more of them than free wires.
            wire = free.pop()
            times = reads if number % 2 else writes
            task = asyncio.create_task(self._one(wire, free, key, due, times, number % 2 == 1))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(set(tasks))
        self._close(everyone)
        return {"reads": spread(reads), "writes": spread(writes), "failed": self.failed}

    async def _one(self, wire: Wire, free: list[Wire], key: str, due: float, times: list[float], read: bool) -> None:
        answer = await wire.ask(self.speech.read(key) if read else self.speech.write(key))
        times.append(time.perf_counter() - due)
        self.failed += not self.speech.good(answer)
        free.append(wire)

    async def lag(self, standby: int, seconds: float) -> dict[str, Any]:
        """From the answer to a write at the owner until a read of the standby's copy shows it; an upper bound."""
        (owner,) = await self.wires(1)
        (copy,) = await Load(standby, False, self.keys).wires(1)
        http = Http()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            key = random.choice(self.keys)
            written = _etag(await owner.ask(http.write(key)))
            acknowledged = time.perf_counter()
            while _etag(await copy.ask(http.read(key, "stale"))) < written:
                pass
            times.append(time.perf_counter() - acknowledged)
            await asyncio.sleep(0.01)
        self._close([owner, copy])
        return spread(times)

    async def first(self, key: str) -> dict[str, Any]:
        """One read, and how long its good answer took."""
        (wire,) = await self.wires(1)
        sent = time.perf_counter()
        answer = await wire.ask(Http().read(key))
        took = time.perf_counter() - sent
        self._close([wire])
        return {"ms": round(took * 1000, 2), "good": self.speech.good(answer)}

    @staticmethod
    def _close(wires: list[Wire]) -> None:
        for wire in wires:
            wire.transport.close()


def _etag(answer: bytes) -> int:
    at = answer.find(b'ETag: "')
    if at < 0:
        return 0
    epoch, _, index = answer[at + 7 : answer.index(b'"', at + 7)].partition(b".")
    return version_of(int(epoch), int(index))


async def main() -> None:
    """Serve commands until standard input ends."""
    loop = asyncio.get_running_loop()
    print(json.dumps({"ready": True}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        load = Load(asked["port"], asked.get("redis", False), asked.get("keys", []), asked.get("identified", False))
        match asked["do"]:
            case "drive":
                answer = await load.drive(asked["connections"], asked["seconds"])
            case "pace":
                answer = await load.pace(asked["rate"], asked["seconds"])
            case "lag":
                answer = await load.lag(asked["standby"], asked["seconds"])
            case _:
                answer = await load.first(asked["key"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
