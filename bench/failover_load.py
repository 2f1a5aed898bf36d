"""The clients of bench/failover.py, and what each event was to them.

Request ``k`` is due at ``k / rate`` whatever the answers do; each of the sessions has one at a time. Of ten, six read,
three write with an ``Idempotency-Key``, one writes without: what may be repeated by a proxy, and what may not. A client
whose request failed tries again every 100 ms until it is served; only the first of these counts as failed, the others
show when its session is served again. A client whose session is gone (404), or has lost an acknowledged write, says so
and starts with a new one.
"""

import asyncio
import gc
import itertools
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any

import aiohttp

from understudy.deploy.load.history_checker import percentile

PATIENCE = 10.0
AGAIN_AFTER = 0.1
WINDOW = 3.5
"""Seconds that a drain of Understudy takes, about."""


@dataclass(slots=True)
class Client:
    """One client and what it knows: its session key, the proxy's cookie, how many writes were acknowledged to it."""

    number: int
    key: str
    cookie: str = ""
    acknowledged: int = 0
    doubtful: int = 0
    server: str = ""


@dataclass(frozen=True, slots=True)
class Op:
    """One request. ``repeatable``: safe, or with an idempotency key. ``again``: a try after a failed one.

    ``repeated``: the proxy says that it has sent the request more than once (Envoy does, HAProxy says nothing).
    """

    client: int
    due: float
    ended: float
    ok: bool
    repeatable: bool
    server: str = ""
    again: bool = False
    lost: bool = False
    error: str = ""
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; ``status`` is 0 when nothing did."""

    status: int
    server: str
    body: dict[str, Any]
    error: str
    repeated: bool = False


@dataclass
class Load:
    """Clients of ``url``. ``own_key``: they bring their session keys; else the application gives them."""

    url: str
    sessions: int
    rate: float
    own_key: bool
    history: list[Op] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _http: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make every client's session, ten at a time."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=PATIENCE),
        )
        self._http._retry_connection = False  # a lost kept connection must count as a failure
        gate = asyncio.Semaphore(10)

        async def enter(number: int) -> Client:
            client = Client(number, "")
            async with gate:
                for _ in range(50):
                    if await self._create(client):
                        return client
                    await asyncio.sleep(AGAIN_AFTER)
            raise RuntimeError(f"no session to be had at {self.url}")

        self.clients = list(await asyncio.gather(*(enter(number) for number in range(self.sessions))))

    def start(self) -> None:
        """Let every client live.

        The cycle collector rests until :meth:`close`: it would hold all clients up for 50 to 180 ms every ten seconds
        or so, and longer for systems that make this process import more. :meth:`tidy` is when to collect.
        """
        gc.collect()
        gc.freeze()
        gc.disable()
        begin = time.monotonic()
        self._tasks = [asyncio.create_task(self._live(client, begin)) for client in self.clients]

    async def close(self) -> None:
        self._stop.set()
        await asyncio.wait(self._tasks, timeout=PATIENCE + 1) if self._tasks else None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.close()
        gc.enable()
        gc.unfreeze()

    def tidy(self, since: float) -> None:
        """Forget the requests that ended before ``since``. Holds all clients up: call it between events."""
        self.history = [op for op in self.history if op.ended > since]
        gc.collect()

    def busiest(self, names: Iterable[str]) -> str:
        """The member that serves most sessions."""
        served = Counter(client.server for client in self.clients)
        return max(names, key=lambda name: (served[name], name))

    async def _live(self, client: Client, begin: float) -> None:
        for turn in itertools.count():
            due = begin + (turn * self.sessions + client.number) / self.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self._stop.is_set():
                return
            self.late.append(time.monotonic() - due)
            kind = (turn + client.number) % 10
            once = uuid.uuid4().hex if 6 <= kind < 9 else None
            op = await self._try(client, due, read=kind < 6, once=once)
            while not op.ok and not self._stop.is_set():
                if op.lost:
                    await self._create(client)
                await asyncio.sleep(AGAIN_AFTER)
                op = await self._try(client, time.monotonic(), read=True, once=None, again=True)

    async def _try(self, client: Client, due: float, *, read: bool, once: str | None, again: bool = False) -> Op:
        known = client.acknowledged
        if read:
            answer = await self._send(client, "GET", "/cart")
        else:
            more = {"Idempotency-Key": once} if once else {}
            item = {"sku": "n", "quantity": 1}
            answer = await self._send(client, "POST", "/cart/items", json=item, headers=more)
        status, server, body, error = answer.status, answer.server, answer.body, answer.error
        ended = time.monotonic()
        lost = status == 404
        if 200 <= status < 300:
            found = body.get("items", {}).get("n", 0)
            lost = found < known + (0 if read else 1)
            client.acknowledged, client.server = found, server
        op = Op(
            client.number,
            due,
            ended,
            ok=200 <= status < 300,
            repeatable=read or once is not None,
            server=server,
            again=again,
            lost=lost,
            repeated=answer.repeated,
            error="" if 200 <= status < 300 else f"{'read' if read else 'write'}: {status or ''} {error}"[:100],
        )
        self.history.append(op)
        return op

    async def _create(self, client: Client) -> bool:
        client.key = uuid.uuid4().hex if self.own_key else ""
        client.cookie, client.acknowledged = "", 0
        answer = await self._send(client, "POST", "/cart", headers={"Idempotency-Key": uuid.uuid4().hex})
        if answer.status != 201:
            return False
        client.key, client.server = answer.body["session"], answer.server
        return True

    async def _send(
        self, client: Client, method: str, path: str, headers: dict[str, str] | None = None, **more: Any
    ) -> Answer:
        sent = dict(headers or {})
        if client.key:
            sent["X-Session-Id"] = client.key
        if client.cookie:
            sent["Cookie"] = client.cookie
        assert self._http is not None
        try:
            async with self._http.request(method, self.url + path, headers=sent, **more) as response:
                for name, morsel in SimpleCookie(response.headers.get("Set-Cookie", "")).items():
                    if name == "route":
                        client.cookie = f"route={morsel.coded_value}"
                good = 200 <= response.status < 300
                body = await response.json() if good else {}
                error = "" if good else (await response.text())[:80].strip()
                repeated = response.headers.get("x-envoy-attempt-count", "1") != "1"
                return Answer(response.status, response.headers.get("X-Served-By", ""), body, error, repeated)
        except (aiohttp.ClientError, TimeoutError, ValueError) as fault:
            return Answer(0, "", {}, type(fault).__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """A part was struck at ``struck`` and there again at ``back``; the next event is not before ``end``.

    ``planned``: it was drained, and out of service at ``back``, when it began to come back.
    """

    victim: str
    struck: float
    back: float
    end: float
    planned: bool = False


@dataclass(frozen=True, slots=True)
class _Wait:
    """A session's wait for an answer. ``repeatable`` tells of the request that began it."""

    due: float
    answered: float
    repeatable: bool

    def lasted(self) -> float:
        return self.answered - self.due


@dataclass(frozen=True, slots=True)
class Effect:
    """What an event was to the clients. Gaps in ms, one per session that the victim had served last.

    ``gaps_other`` are those of sessions whose first request could not be repeated: whoever froze with it, holds it.
    """

    requests: int
    failed_repeatable: int
    failed_other: int
    gaps: tuple[float, ...]
    gaps_other: tuple[float, ...]
    lost: int
    moved: int
    errors: tuple[str, ...]
    moves: tuple[str, ...] = ()


def effect_of(history: list[Op], event: Event) -> Effect:
    """Judge one event by the requests that ended in its time.

    A session waits from when a request is due until there is a good answer, however many tries that takes. Its gap is
    how long it waited for its first request that was on its way at the blow, or sent after it. Of a planned event it is
    the longest wait until the member was out of service: nobody knows beforehand when a session's turn is.

    A session moved needlessly if it left a member that was alive, other than to the one that came back.
    Where a session is, answers to repeated requests do not tell: the next one does.
    """
    during = sorted((op for op in history if event.struck < op.ended <= event.end), key=lambda op: op.ended)
    before: dict[int, str] = {}
    for op in history:
        if op.ok and not op.repeated and op.ended <= event.struck:
            before[op.client] = op.server
    touched = {client for client, server in before.items() if server == event.victim}
    waits: dict[int, list[_Wait]] = {client: [] for client in touched}
    waiting: dict[int, Op] = {}
    at = dict(before)
    moved: dict[int, str] = {}
    for op in during:
        since = waiting.setdefault(op.client, op)
        if not op.ok:
            if op.lost:
                at.pop(op.client, None)  # it starts a new session, wherever that lives
            continue
        del waiting[op.client]
        if op.client in touched:
            waits[op.client].append(_Wait(since.due, op.ended, since.repeatable))
        if op.repeated:
            continue
        was, at[op.client] = at.get(op.client, op.server), op.server
        if op.server not in (was, event.victim) and was != event.victim:
            moved[op.client] = f"{was} to {op.server} after {(op.ended - event.struck) * 1000:.0f} ms"
        if op.server == event.victim != was and op.ended < event.back:
            moved[op.client] = f"{was} to {op.server} after {(op.ended - event.struck) * 1000:.0f} ms"
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for client in touched & waiting.keys():
        waits[client].append(_Wait(waiting[client].due, event.end, waiting[client].repeatable))
    for found in waits.values():
        counted = [wait for wait in found if wait.due < event.back] if event.planned else found[:1]
        if counted:
            longest = max(counted, key=_Wait.lasted)
            gaps[longest.repeatable].append(round(longest.lasted() * 1000, 2))
    scheduled = [op for op in during if not op.again]
    failed = [op for op in scheduled if not op.ok]
    return Effect(
        requests=len(scheduled),
        failed_repeatable=sum(op.repeatable for op in failed),
        failed_other=sum(not op.repeatable for op in failed),
        gaps=tuple(gaps[True]),
        gaps_other=tuple(gaps[False]),
        lost=len({op.client for op in during if op.lost}),
        moved=len(moved),
        errors=tuple(sorted({op.error[:24] for op in failed}))[:4],
        moves=tuple(moved.values())[:4],
    )


def latency(history: list[Op], since: float) -> dict[str, float]:
    """Of requests without an event: ms from when they were due to the answer.

    ``slowest_p99`` is what a planned event is to be held against: of each session's slowest request in :data:`WINDOW`
    seconds.
    """
    taken = [(op.ended - op.due) * 1000 for op in history if op.due >= since and op.ok]
    slowest: dict[tuple[int, int], float] = {}
    for op in history:
        if op.due >= since and op.ok:
            turn = op.client, int((op.due - since) // WINDOW)
            slowest[turn] = max(slowest.get(turn, 0.0), (op.ended - op.due) * 1000)
    return {
        "p50": round(percentile(taken, 0.5), 2),
        "p99": round(percentile(taken, 0.99), 2),
        "slowest_p99": round(percentile(list(slowest.values()), 0.99), 2),
        "requests": len(taken),
    }
