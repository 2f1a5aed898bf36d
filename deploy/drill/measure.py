"""Watches a drill from its clients' side.

:class:`LoadWatch` is the clients itself, of the example cart or notebook; their own records are judged by
``history_checker``. :class:`EnvoyWatch` counts what the pool's real clients got, by the front Envoy's own statistics:
requests and failures, no times. Times are seconds of ``time.monotonic()``.
"""

import ipaddress
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from understudy.deploy.common.errors import DeployError
from understudy.deploy.drill.conditions import Kind, Seen
from understudy.deploy.inspect.controls import AdminError, ask_control
from understudy.deploy.load.history_checker import Killing, Op, Verdict, judge, percentile
from understudy.deploy.load.http_load import Load
from understudy.deploy.load.tcp_load import NotebookLoad
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.spec import PoolSpec

LARGEST_PACING = 2 / 3
"""Seconds between two requests of one shopper: the shorter, the finer the gap that can be seen."""
_COUNTERS = ("downstream_rq_completed", "downstream_rq_5xx", "downstream_rq_tx_reset")


@dataclass(frozen=True, slots=True)
class Blow:
    """What was struck and when: ``mended`` is when the part was (or may have been) there again."""

    kind: Kind
    name: str
    struck: float
    mended: float = math.inf


class Watch(Protocol):
    """Clients of a pool, before, during and after a drill."""

    async def start(self) -> None:
        """Begin to watch. Raises ``DeployError`` when the pool does not serve."""

    async def finish(self, blow: Blow) -> Seen:
        """Stop watching and tell what was seen since the blow."""

    async def close(self) -> None:
        """Let go of everything; also after an interruption."""


class LoadWatch:
    """``rate`` requests a second by clients of our own, a third of them writes."""

    def __init__(self, load: Load | NotebookLoad) -> None:
        self._load = load

    async def start(self) -> None:
        """Open the sessions and start the requests."""
        try:
            await self._load.open_sessions()
        except DeployError as error:
            raise DeployError(
                f"{error}; --load drives {self._load.drives}: for another application leave it out"
            ) from None
        self._load.start()

    async def finish(self, blow: Blow) -> Seen:
        """Stop the requests, read every session once more, and judge the whole history."""
        await self._load.stop()
        final = await self._load.final_contents()
        killing = Killing(blow.name, blow.struck, blow.mended) if blow.kind.of_a_member else None
        verdict = judge(self._load.history, final, killing, pacing=self._load.pacing)
        return seen_by_clients(verdict, self._load.history, blow)

    async def close(self) -> None:
        """Close the connections."""
        await self._load.close()


def seen_by_clients(verdict: Verdict, history: Sequence[Op], blow: Blow) -> Seen:
    """The verdict on the load as a drill's result. Pure."""
    waits: dict[str, float] = defaultdict(float)
    for op in history:
        if op.ended >= blow.struck:
            waits[op.session] = max(waits[op.session], (op.ended - op.started) * 1000)
    gap, each = verdict.client_gap_ms, waits.values()
    return Seen(
        requests=verdict.requests,
        failed=verdict.failed_requests,
        gap=None if math.isnan(gap.max) else (gap.p50, gap.p99, gap.max),
        wait=(percentile(each, 0.5), percentile(each, 0.99), max(each)) if each else None,
        touched=verdict.sessions_touched if blow.kind.of_a_member else None,
        lost_writes=verdict.lost_writes,
        # In a rolling restart every session moves, and how often it had to is not told apart.
        needless_moves=None if blow.kind is Kind.ROLLING else verdict.moved_needlessly,
        failures=verdict.failures[:5],
    )


def clients_of(pool: PoolSpec, url: str, rate: int) -> Load | NotebookLoad:
    """Clients for a drill of ``pool``, ``rate`` requests a second in all; ``url`` is where its front Envoy listens.

    Raises:
        DeployError: a TCP pool's clients could not have addresses of their own there.
    """
    sessions = max(1, round(rate * LARGEST_PACING))
    if pool.tcp is None:
        return Load(url, sessions=sessions, rate=float(rate))
    front, told = url.rpartition("://")[2], pool.tcp.accept_proxy_protocol
    try:
        host, _ = split_address(front)
        local = told or ipaddress.ip_address(host) in ipaddress.ip_network("127.0.0.0/8")
    except ValueError:
        raise DeployError(f"--url {url!r} is not HOST:PORT with an IP address") from None
    if not local:
        raise DeployError(
            f"--load brings clients with addresses of 127.0.0.0/8, which {front} would not see: run it beside the "
            "front Envoy, or in a pool whose clients come through a proxy (tcp.accept_proxy_protocol)"
        )
    return NotebookLoad(front, sessions, float(rate), told=told)


class EnvoyWatch:
    """The real clients of a front Envoy, by the counters of its listener; ``admin`` is ``host:port``."""

    def __init__(self, admin: str, pool: str) -> None:
        self._admin = admin
        self._pool = pool
        self._before: dict[str, int] = {}

    async def start(self) -> None:
        """Note the counters."""
        self._before = await self._counters()

    async def finish(self, blow: Blow) -> Seen:  # noqa: ARG002 - the counters know no names
        """How far the counters have risen."""
        now = await self._counters()
        completed, failed, reset = (now[name] - self._before[name] for name in _COUNTERS)
        return Seen(requests=completed, failed=failed + reset)

    async def close(self) -> None:
        """Nothing is held."""

    async def _counters(self) -> dict[str, int]:
        path = rf"/stats?format=json&filter=^http\.{self._pool}\.downstream_rq_"
        try:
            answer = await ask_control(self._admin, path)
        except AdminError as error:
            raise DeployError(
                f"the front Envoy's admin interface gives no counters ({error}): name it with --admin, or use --load N"
            ) from None
        found = {stat["name"].rpartition(".")[2]: stat["value"] for stat in answer.get("stats", ()) if "value" in stat}
        missing = [name for name in _COUNTERS if name not in found]
        if missing:
            raise DeployError(
                f"the Envoy at {self._admin} has no counter {missing[0]} for pool {self._pool}: is it this pool's?"
            )
        return found
