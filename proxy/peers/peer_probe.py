"""Finds out whether another member's process lives: by its pulse, and by asking its peer API.

A refused connection counts at once. Silence counts after :data:`TRIES` tries, and sooner if the pulse shows that the
process has stopped. If the member is on another site and nobody there answers, the link may be cut: then silence counts
only if the member does not answer through etcd either. A certificate that is wrong on one side proves nothing.
"""

import asyncio
import time
from functools import partial

from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.member.pool_view import Peer, PoolView
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.peers.peer_protocol import ProbeResult
from understudy.proxy.peers.predecessor_monitor import PredecessorMonitor
from understudy.statesync.heartbeat.adaptive_timeout import adaptive_timeout
from understudy.statesync.heartbeat.challenge import Answer, Challenge, probe_both_ways
from understudy.statesync.heartbeat.probe import Try, TryResult

TRIES = 3
VOID_FROM = 1.5
"""A try that took this many times its limit says something about this process, and nothing about the peer."""
PULSE_POLL_INTERVAL = 0.05
_FOUND_THROUGH_ETCD = {
    Answer.ALIVE: ProbeResult.LINK_CUT,
    Answer.REPLACED: ProbeResult.REPLACED,
    Answer.SILENT: ProbeResult.SILENT_EVERYWHERE,
    Answer.UNKNOWN: ProbeResult.VOID,
}


class PeerProbe:
    """Probes other members; callers who ask about one process at the same time share one probe."""

    def __init__(
        self,
        client: PeerClient,
        pool: PoolView,
        loop_lag: LoopLag,
        monitor: PredecessorMonitor,
        challenge: Challenge,
    ) -> None:
        self._client = client
        self._pool = pool
        self._loop_lag = loop_lag
        self._monitor = monitor
        self._challenge = challenge
        self._probes: dict[tuple[Peer, str | None], asyncio.Task[ProbeResult]] = {}

    async def close(self) -> None:
        """End the probes under way."""
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)

    def patience(self, member: str) -> float:
        """Seconds of silence that count against ``member``.

        They are more while it or this process is late: a busy process is not dead. How late a member is, its record
        tells. One whose pulse shows that it runs is given as long as an application.
        """
        at, rules = self._pool.state.members.get(member), self._pool.liveness
        runs = at is not None and self._monitor.seen.get((member, at.record.boot), False)
        return self._with_load(member, max(rules.unanswered_ms, rules.application_ms) if runs else rules.unanswered_ms)

    def _with_load(self, member: str, usual_ms: int) -> float:
        at, rules = self._pool.state.members.get(member), self._pool.liveness
        delay = max(self._loop_lag.worst, at.record.stall if at else 0.0)
        return adaptive_timeout(usual_ms / 1000, delay, rules.load_cap_ms / 1000)

    async def probe(self, peer: Peer, boot: str | None = None, *, patience: float | None = None) -> ProbeResult:
        """Whether ``peer`` lives (as the process ``boot``, if given).

        All tries together take ``patience`` seconds, by default those of :meth:`patience`.
        """
        asked = (peer, boot)
        task = self._probes.get(asked)
        if task is None:
            limit = (self.patience(peer.member) if patience is None else patience) / TRIES
            task = self._probes[asked] = asyncio.create_task(self._probe(peer, boot, limit))
            task.add_done_callback(lambda _: self._probes.pop(asked, None))
        return await asyncio.shield(task)

    async def _probe(self, peer: Peer, boot: str | None, limit: float) -> ProbeResult:
        record = self._pool.known.get(peer.member)
        mine = self._pool.identity.site
        if record is None or not mine or record.site in ("", mine):
            return await self._probe_directly(peer, boot, limit)
        began, patience = time.monotonic(), self._with_load(peer.member, self._pool.liveness.site_patience_ms)

        def may_be_the_link(found: ProbeResult) -> bool:
            return found.is_silence and not self._monitor.link_stands(peer.member, began)

        found, answer = await probe_both_ways(
            self._probe_directly(peer, boot, limit),
            partial(self._challenge, peer.member, boot or record.boot, patience),
            may_be_the_link,
        )
        return found if answer is None else _FOUND_THROUGH_ETCD[answer]

    async def _probe_directly(self, peer: Peer, boot: str | None, limit: float) -> ProbeResult:
        asking = asyncio.ensure_future(self._ask(peer, boot, limit))
        try:
            while not asking.done():
                if self._monitor.runs(peer.member, boot) is False:
                    return ProbeResult.STOPPED
                await asyncio.wait((asking,), timeout=PULSE_POLL_INTERVAL)
            return asking.result()
        finally:
            asking.cancel()

    async def _ask(self, peer: Peer, boot: str | None, limit: float) -> ProbeResult:
        silent = 0
        for _ in range(2 * TRIES):
            if silent == TRIES:
                break
            one = await self._client.ask(peer, limit)
            certain = _certain(one, boot)
            if certain is not None:
                return certain
            silent += one.seconds < limit * VOID_FROM
            await asyncio.sleep(0)
        return ProbeResult.SILENT if silent == TRIES else ProbeResult.VOID


def _certain(one: Try, boot: str | None) -> ProbeResult | None:
    """What a single try proves, if anything."""
    match one.found:
        case TryResult.ANSWERED:
            if boot not in (None, one.boot):
                return ProbeResult.REPLACED
            return ProbeResult.ALIVE if one.said.get("serving", True) else ProbeResult.CUT_OFF
        case TryResult.FORBIDDEN | TryResult.UNTRUSTED:
            return ProbeResult.UNTRUSTED
        case TryResult.OTHER_MEMBER:
            return ProbeResult.REPLACED
        case TryResult.REFUSED:
            return ProbeResult.GONE
        case TryResult.UNREACHABLE:
            return ProbeResult.UNREACHABLE
        case _:
            return None
