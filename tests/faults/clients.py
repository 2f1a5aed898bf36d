"""Clients that use the session API as applications anywhere would, and record what they did and saw.

Every attempt goes through a random member. A write with an ``Idempotency-Key`` that got no good answer is often
repeated through another member with the same key, as Envoy or an application would. :class:`Gate` keeps the number of
writes small that may be on their way to one session, since each doubles the work of the checker.
"""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import aiohttp

from tests.faults.history import Attempt, History, Kind, Op, Outcome
from tests.faults.pool import FaultPool
from tests.harness.waiting import until

LINGER = 16.0
"""Seconds for which an exchange without an answer may still be carried out: twice the 5 s of a sidecar's patience (its
own and the owner's), and the longest pause of a process."""

OPEN_BESIDE = 2
ATTEMPTS = 4
ANSWER_PATIENCE = 7.0
LAST_ATTEMPTS, LAST_PATIENCE = 20, 40.0
"""So often, and for so many seconds, the last calls are repeated, which must succeed."""
NO_EFFECT = frozenset({"not-committed", "no-owner", "not-ready", "not-at-home", "overloaded"})
"""The 503 problems that promise that nothing was done."""
MERGE = "application/merge-patch+json"
CLASSES = ("replicas", "replicas", "sync", "async")
"""What writes ask for by chance in a pool that replicates between members."""


class Gate:
    """Which writes of one session may still be on their way; a write begins only beside few of them."""

    def __init__(self) -> None:
        self._begun = 0
        self._open: dict[int, float] = {}

    def enter(self, now: float) -> int | None:
        """A ticket for a write, or None if it has to wait."""
        self._open = {ticket: over_at for ticket, over_at in self._open.items() if over_at > now}
        if len(self._open) > OPEN_BESIDE:
            return None
        self._begun += 1
        self._open[self._begun] = float("inf")
        return self._begun

    def leave(self, ticket: int, over_at: float) -> None:
        """The write is surely over at ``over_at``."""
        self._open[ticket] = over_at


@dataclass
class SessionState:
    """What the clients share about one session: the gate, values they saw with their ETags, and fields they added."""

    key: str
    fields: bool
    gate: Gate = field(default_factory=Gate)
    known: list[tuple[str, str]] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def note(self, value: str, etag: str) -> None:
        """Remember a value for later compare-and-sets."""
        self.known = [*self.known[-3:], (value, etag)]


@dataclass(frozen=True, slots=True)
class _Wish:
    kind: Kind
    sent: str = ""
    expected: str = ""
    etag: str = ""
    linearizable: bool = True
    keyed: bool = True
    durability: str = ""

    @property
    def method(self) -> str:
        return {Kind.READ: "GET", Kind.DELETE: "DELETE", Kind.ADD: "PATCH", Kind.REMOVE: "PATCH"}.get(self.kind, "PUT")

    @property
    def body(self) -> str | None:
        if self.method == "PATCH":
            return json.dumps({self.sent: 1 if self.kind is Kind.ADD else None})
        return self.sent if self.method == "PUT" else None

    def headers(self, idempotency_key: str) -> dict[str, str]:
        headers = {"Content-Type": MERGE} if self.method == "PATCH" else {"Content-Type": "text/plain"}
        if self.kind is Kind.READ:
            headers = {"Understudy-Consistency": "linearizable"} if self.linearizable else {}
        elif self.keyed:
            headers["Idempotency-Key"] = idempotency_key
        if self.durability:
            headers["Understudy-Durability"] = self.durability
        if self.etag:
            headers["If-Match"] = self.etag
        return headers


class Clients:
    """A crowd of clients on a set of sessions; everything they do goes into ``history``.

    Each write asks for one of ``durabilities`` by chance; '' is the pool's own.
    """

    def __init__(
        self,
        pool: FaultPool,
        history: History,
        seed: str,
        *,
        registers: int,
        fields: int,
        durabilities: Sequence[str] = ("",),
    ) -> None:
        self._pool = pool
        self._history = history
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._durabilities = durabilities
        mark = f"{self._random.randrange(16**6):06x}"
        self.sessions = [SessionState(f"r{n}-{mark}", fields=False) for n in range(registers)]
        self.sessions += [SessionState(f"f{n}-{mark}", fields=True) for n in range(fields)]
        self.stopping = False

    async def prepare(self) -> None:
        """Make the sessions of fields; they are there from the beginning on, whoever dies."""
        headers = {"Content-Type": "application/json", "Understudy-Durability": "sync"}
        for session in self.sessions:
            if session.fields:
                url = f"http://{self._pool.members[self._pool.names[0]].api}/v1/sessions/{session.key}"
                await until(partial(self._made, url, headers), 60, f"session {session.key} is made")

    async def _made(self, url: str, headers: Mapping[str, str]) -> bool:
        """Whether an empty session was written; nobody else writes yet, so on a busy machine it is tried again."""
        async with self._pool.http.put(url, data="{}", headers=headers) as answer:
            assert answer.status in (200, 201, 503), await answer.text()
            return answer.status != 503

    async def run(self, clients: int, pause: float) -> None:
        """Work with so many clients, each resting ``pause`` seconds on average, until ``stopping``."""
        await asyncio.gather(*(self._one(number, pause) for number in range(clients)))

    async def read_all(self, member: str) -> list[str]:
        """Read every session through ``member``, linearizably; returns those that gave no answer."""
        ops = await asyncio.gather(
            *(self._carry_out(session, _Wish(Kind.READ), 99, via=member) for session in self.sessions)
        )
        return [op.line() for op in ops if op.outcome is not Outcome.OK]

    async def write_all(self) -> list[str]:
        """Write to every session with all the patience there is; returns those that took nothing."""
        wishes = [
            _Wish(Kind.ADD if session.fields else Kind.PUT, f"last-{next(self._numbers)}") for session in self.sessions
        ]
        ops = await asyncio.gather(
            *(
                self._carry_out(session, wish, 99, stubborn=True)
                for session, wish in zip(self.sessions, wishes, strict=True)
            )
        )
        return [op.line() for op in ops if op.outcome is not Outcome.OK]

    async def unsaved(self) -> list[str]:
        """The keys of sessions of which etcd has another content than the pool."""
        url = f"http://{self._pool.members[self._pool.names[0]].api}/v1/sessions"
        keys = []
        for session in self.sessions:
            async with self._pool.http.get(f"{url}/{session.key}") as answer:
                served = await answer.read() if answer.status == 200 else None
            if served != await self._pool.stored_body(session.key):
                keys.append(session.key)
        return keys

    async def _one(self, number: int, pause: float) -> None:
        while not self.stopping:
            session = self._random.choice(self.sessions)
            wish = self._wish_fields(session) if session.fields else self._wish_register(session)
            ticket = session.gate.enter(time.monotonic()) if wish.kind is not Kind.READ else None
            if ticket is None and wish.kind is not Kind.READ:
                wish = _Wish(Kind.READ, linearizable=self._random.random() < 0.5)
            if wish.kind is not Kind.READ:
                wish = replace(wish, durability=self._random.choice(self._durabilities))
            op = await self._carry_out(session, wish, number)
            if ticket is not None:
                unanswered = [
                    attempt.end for attempt in op.attempts if attempt.status == 0 and attempt.note != "refused"
                ]
                open_since = max(unanswered, default=op.attempts[-1].end if op.outcome is Outcome.UNKNOWN else 0.0)
                session.gate.leave(ticket, open_since + LINGER)
            await asyncio.sleep(self._random.uniform(0, 2 * pause))

    def _wish_register(self, session: SessionState) -> _Wish:
        draw = self._random.random()
        value, keyed = f"v{next(self._numbers)}", self._random.random() < 0.85
        if draw < 0.25:
            return _Wish(Kind.READ, linearizable=True)
        if draw < 0.5:
            return _Wish(Kind.READ, linearizable=False)
        if draw < 0.72 and session.known:
            expected, etag = self._random.choice([*session.known[-1:] * 3, *session.known])
            return _Wish(Kind.CAS, value, expected, etag, keyed=keyed)
        if draw < 0.77:
            return _Wish(Kind.DELETE, keyed=keyed)
        return _Wish(Kind.PUT, value, keyed=keyed)

    def _wish_fields(self, session: SessionState) -> _Wish:
        draw = self._random.random()
        if draw < 0.4:
            return _Wish(Kind.READ, linearizable=self._random.random() < 0.5)
        keyed = self._random.random() < 0.85
        if draw < 0.6 and session.added:
            return _Wish(Kind.REMOVE, session.added.pop(self._random.randrange(len(session.added))), keyed=keyed)
        name = f"f{next(self._numbers)}"
        return _Wish(Kind.ADD, name, keyed=keyed)

    async def _carry_out(
        self, session: SessionState, wish: _Wish, client: int, *, via: str = "", stubborn: bool = False
    ) -> Op:
        begin = time.monotonic()
        attempts: list[Attempt] = []
        body = ""
        idempotency_key = f"{session.key}-{wish.kind}-{next(self._numbers)}-{wish.sent}"
        while True:
            member = via or self._random.choice(self._pool.names)
            patience = ANSWER_PATIENCE if stubborn or self._random.random() < 0.8 else self._random.uniform(0.1, 1.0)
            attempt, body = await self._attempt(session, wish, idempotency_key, member, patience)
            attempts.append(attempt)
            if attempt.status not in (0, 503):
                break
            again = wish.kind is Kind.READ or wish.keyed
            last = stubborn or bool(via)
            tired = len(attempts) >= (LAST_ATTEMPTS if last else ATTEMPTS)
            tired &= not last or time.monotonic() > begin + LAST_PATIENCE
            if not again or tired or (not last and self._random.random() < 0.15):
                break
            await asyncio.sleep(self._random.uniform(0.01, 0.3))
        op = _judged(session, wish, client, begin, tuple(attempts), body)
        self._history.ops.append(op)
        self._learn(session, op, attempts[-1])
        return op

    def _learn(self, session: SessionState, op: Op, last: Attempt) -> None:
        if op.kind is Kind.ADD and op.outcome is not Outcome.FAILED:
            session.added.append(op.sent)
        if op.outcome is not Outcome.OK or session.fields or not last.etag:
            return
        value = op.seen if op.kind is Kind.READ else op.sent
        if isinstance(value, str) and value:
            session.note(value, last.etag)

    async def _attempt(
        self, session: SessionState, wish: _Wish, idempotency_key: str, member: str, patience: float
    ) -> tuple[Attempt, str]:
        url = f"http://{self._pool.members[member].api}/v1/sessions/{session.key}"
        begin = time.monotonic()

        async def exchange() -> tuple[Attempt, str]:
            headers = wish.headers(idempotency_key)
            async with self._pool.http.request(wish.method, url, data=wish.body, headers=headers) as answer:
                body = await answer.text()
                end = time.monotonic()
                note = json.loads(body)["type"].rpartition("/")[2] if answer.status >= 400 else ""
                place = answer.headers
                return Attempt(
                    member,
                    begin,
                    end,
                    answer.status,
                    note,
                    int(place.get("Understudy-Slot", "-1")),
                    int(place.get("Understudy-Epoch", "0")),
                    place.get("Understudy-Served-By", ""),
                    place.get("ETag", ""),
                    place.get("Understudy-Repeated") == "true",
                    place.get("Understudy-Durability", ""),
                ), body

        return await _ended(exchange, member, begin, patience)


async def _ended(
    exchange: Callable[[], Awaitable[tuple[Attempt, str]]], member: str, begin: float, patience: float
) -> tuple[Attempt, str]:
    try:
        async with asyncio.timeout(patience):
            return await exchange()
    except aiohttp.ClientConnectorError:
        note = "refused"
    except TimeoutError:
        note = f"no answer in {patience:.1f} s"
    except aiohttp.ClientError as error:
        note = type(error).__name__
    return Attempt(member, begin, time.monotonic(), 0, note), ""


def _surely_over(op: Op) -> float:
    """When nothing of the operation can be on its way any more."""
    doubtful = [a.end for a in op.attempts if (a.status == 0 and a.note != "refused") or a.note == "outcome-unknown"]
    return max(doubtful) + LINGER if doubtful else 0.0


def _surely_without_effect(attempt: Attempt) -> bool:
    return attempt.note == "refused" or (attempt.status == 503 and attempt.note in NO_EFFECT)


def _judged(
    session: SessionState, wish: _Wish, client: int, begin: float, attempts: tuple[Attempt, ...], body: str
) -> Op:
    """The operation that these attempts make.

    A 412 settles the ones before it: ETags never come back, so a compare-and-set that is refused now had no effect and
    can have none later. A 404 settles them if the write has an ``Idempotency-Key``, since a refusal is final then.
    Without one it settles only what was surely without effect before.
    """
    last = attempts[-1]
    clean = all(_surely_without_effect(attempt) for attempt in attempts[:-1])
    seen: str | tuple[str, ...] | None = None
    end = last.end
    if last.status in (200, 201, 204) or (wish.kind is Kind.READ and last.status == 404):
        outcome = Outcome.OK
        if wish.kind is Kind.READ and last.status == 200:
            seen = tuple(sorted(json.loads(body))) if session.fields else body
    elif wish.kind is Kind.READ or (clean and _surely_without_effect(last)):
        outcome = Outcome.FAILED
    elif (last.status == 412 and wish.kind is Kind.CAS) or (last.status == 404 and (clean or wish.keyed)):
        outcome = Outcome.REFUSED
    else:
        outcome = Outcome.UNKNOWN
    return Op(
        session.key,
        wish.kind,
        begin,
        end,
        outcome,
        client,
        wish.sent,
        wish.expected,
        seen,
        last.status == 201,
        wish.linearizable,
        attempts,
        wish.durability,
    )
