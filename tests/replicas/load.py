"""Writers that note what was acknowledged to them, and when. Each has a session of its own and adds numbers to it.

A number is a field of the session's JSON object, added by a merge patch. So a session shows every write that it has
lost, also after later ones. A write that got no good answer is a failure, and is repeated with the same
``Idempotency-Key`` until it is acknowledged.
"""

import asyncio
import contextlib
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import aiohttp

from tests.faults.durability import version_in
from tests.faults.pool import FaultPool
from tests.harness.waiting import until

ATTEMPTS = 500
ANSWER_TIMEOUT = 12.0
"""Seconds for one exchange: the sidecars' own patience ends before."""
MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Ack:
    """An acknowledged write: its number in its session, the class that it got, and the session's version after it."""

    session: str
    number: int
    asked: str
    durability: str
    slot: int
    version: tuple[int, int] | None
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt without a good answer; ``status`` 0: without any."""

    session: str
    number: int
    asked: str
    member: str
    status: int
    problem: str
    begin: float
    end: float


class Load:
    """Writers at work. ``durabilities`` is what their writes ask for, in turn; '' is the pool's own class."""

    def __init__(
        self, pool: FaultPool, *, via: Sequence[str], keys: Sequence[str], durabilities: Sequence[str], pause: float
    ) -> None:
        self._pool, self._pause = pool, pause
        self._durabilities = durabilities
        self._via = itertools.cycle(via)
        self.keys = keys
        self.acks: list[Ack] = []
        self.failures: list[Failure] = []
        self.stopping = False
        self._writers: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Make the sessions, and let the writers begin."""
        for key in self.keys:
            headers = {"Content-Type": "application/json", "Understudy-Durability": "sync"}
            url = self._url(next(self._via), key)
            async with self._pool.http.put(url, data="{}", headers=headers) as answer:
                assert answer.status in (200, 201), await answer.text()
        self._writers = [asyncio.create_task(self._write(number, key)) for number, key in enumerate(self.keys)]

    async def end(self) -> None:
        """Let every writer finish its write."""
        self.stopping = True
        await asyncio.wait_for(asyncio.gather(*self._writers), 60)

    async def halt(self) -> None:
        """End all writers where they are; writes without an answer stay open."""
        for writer in self._writers:
            writer.cancel()
        ends = await asyncio.gather(*self._writers, return_exceptions=True)
        self._writers = []
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def progress(self, writes: int = 60, durability: str = "") -> None:
        """Wait until so many more writes are acknowledged, of a class if one is given."""
        goal = self.count(durability) + writes
        await until(lambda: self.count(durability) >= goal, 60, f"{writes} {durability} writes are acknowledged")

    def count(self, durability: str = "", since: float = 0.0) -> int:
        """How many writes were begun and acknowledged since then, in this class."""
        return sum(durability in ("", ack.durability) and ack.begin >= since for ack in self.acks)

    async def contents(self, member: str, *, linearizable: bool = True) -> dict[str, frozenset[int]]:
        """The numbers in each session, as a member answers a read."""

        async def read(key: str) -> frozenset[int] | None:
            headers = {"Understudy-Consistency": "linearizable"} if linearizable else {}
            async with self._pool.http.get(self._url(member, key), headers=headers) as answer:
                if answer.status == 404:
                    return frozenset({-1})
                return numbers_in(await answer.read()) | {-1} if answer.status == 200 else None

        found = {key: await until(lambda key=key: read(key), 60, f"{member} answers for {key}") for key in self.keys}
        return {key: numbers - {-1} for key, numbers in found.items()}

    async def stored(self) -> dict[str, frozenset[int]]:
        """The numbers in each session, as etcd has them."""
        bodies = {key: await self._pool.stored_body(key) for key in self.keys}
        return {key: numbers_in(body or b"{}") for key, body in bodies.items()}

    async def _write(self, writer: int, key: str) -> None:
        for number in itertools.count():
            if self.stopping:
                return
            asked = self._durabilities[(writer + number) % len(self._durabilities)]
            for _ in range(ATTEMPTS):
                if await self._attempt(key, number, asked, next(self._via)):
                    break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError(f"{key}: nobody takes write {number}: {self.failures[-1]}")
            await asyncio.sleep(self._pause)

    async def _attempt(self, key: str, number: int, asked: str, member: str) -> bool:
        headers = {"Content-Type": MERGE, "Idempotency-Key": f"{key}-{number}"}
        headers |= {"Understudy-Durability": asked} if asked else {}
        begin, status, problem = time.monotonic(), 0, ""
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT)
        body, url = json.dumps({str(number): 1}), self._url(member, key)
        try:
            async with self._pool.http.patch(url, data=body, headers=headers, timeout=timeout) as answer:
                status, told = answer.status, answer.headers
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = type(error).__name__
        end = time.monotonic()
        if status == 200:
            version = version_in(told.get("ETag", ""))
            slot = int(told["Understudy-Slot"])
            got = told.get("Understudy-Durability", "")
            self.acks.append(Ack(key, number, asked, got, slot, version, begin, end))
            return True
        if status:
            problem = json.loads(text)["type"].rpartition("/")[2]
        self.failures.append(Failure(key, number, asked, member, status, problem, begin, end))
        assert status in (0, 503), f"{key}: {status} {text}"
        return False

    def _url(self, member: str, key: str) -> str:
        return f"http://{self._pool.members[member].api}/v1/sessions/{key}"


def numbers_in(body: bytes) -> frozenset[int]:
    """The numbers that a session has."""
    return frozenset(map(int, json.loads(body)))


@contextlib.asynccontextmanager
async def under_load(
    pool: FaultPool,
    *,
    via: Sequence[str] = (),
    sessions: int = 12,
    active: Sequence[str] = (),
    durabilities: Sequence[str] = ("replicas",),
    pause: float = 0.03,
) -> AsyncIterator[Load]:
    """Writers that call ``via`` in turn (all members unless given), until the end of the block.

    With ``active`` their sessions are in slots of these members.
    """
    owners = await pool.owners()
    mark = secrets.token_hex(3)
    names = (f"{mark}-{number}" for number in itertools.count())
    fitting = (key for key in names if not active or owners[pool.spec.slot_of_key(key)].active in active)
    keys = list(itertools.islice(fitting, sessions))
    load = Load(pool, via=via or pool.names, keys=keys, durabilities=durabilities, pause=pause)
    await load.begin()
    try:
        await load.progress()
        yield load
        await load.end()
    finally:
        await load.halt()
