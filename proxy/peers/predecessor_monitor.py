"""Watches the owners whose first standby this member is: which of their processes run, and which have stopped.

It watches the pulses (:mod:`understudy.statesync.heartbeat.pulse`) of those members only, so in a large pool nobody
asks everybody. A missed pulse is one witness of a death and never the only one: the other is a caller who was sent
here, or missed heartbeats. A pulse does not prove that a member is well, but probes of it are more patient. The control
servers are told of both.
"""

import logging
import time
from collections.abc import Callable

from understudy.proxy.member.pool_view import PoolView
from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL
from understudy.statesync.heartbeat.pulse import Identity, Pulses, is_running, link_stands
from understudy.statesync.process.ticks import tick

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.05
SELECT_INTERVAL = 1.0
"""Seconds after which the members to watch are chosen again."""


class PredecessorMonitor:
    """``seen`` tells which of the watched processes run (True) or have stopped (False).

    ``on_change`` is called when one of them stops or goes on.
    """

    def __init__(self, pool: PoolView, pulses: Pulses, on_change: Callable[[], None]) -> None:
        self._pool = pool
        self._pulses = pulses
        self._on_change = on_change
        self._watched: dict[Identity, str] = {}
        self.seen: dict[Identity, bool] = {}

    def runs(self, member: str, boot: str | None = None) -> bool | None:
        """Whether this boot of a member, by default the one on record, runs; None if nothing can be said."""
        record = self._pool.known.get(member)
        who = (member, boot or (record.boot if record else ""))
        rules = self._pool.liveness
        return is_running(
            self._pulses.pulse(who),
            self._pulses.others(who),
            time.monotonic(),
            usual=rules.missed_beats * BEAT_INTERVAL,
            cap=rules.load_cap_ms / 1000,
        )

    def link_stands(self, member: str, since: float) -> bool:
        """Whether the silence of ``member`` since a time (monotonic) is not that of the link to its site."""
        known = self._pool.known
        record = known.get(member)
        if record is None:
            return False
        beside = [who for who in self._watched if who[0] != member and known[who[0]].site == record.site]
        others = [other for who in beside if (other := self._pulses.pulse(who)) is not None]
        return link_stands(self._pulses.pulse((member, record.boot)), others, since)

    async def run(self) -> None:
        """Watch until cancelled."""
        choose_at = 0.0
        with self._pulses:
            while True:
                now = time.monotonic()
                if now >= choose_at:
                    self._watched = self._predecessors()
                    self._pulses.watch(self._watched)
                    choose_at = now + SELECT_INTERVAL
                self._look()
                await tick(POLL_INTERVAL)

    def _look(self) -> None:
        before = {who for who, runs in self.seen.items() if not runs}
        self.seen = {who: runs for who in self._watched if (runs := self.runs(*who)) is not None}
        stopped = {who for who, runs in self.seen.items() if not runs}
        for member, boot in stopped - before:
            pulse = self._pulses.pulse((member, boot))
            worst = pulse.worst * 1000 if pulse is not None else 0.0
            logger.warning("%s no longer answers its pulse; its slowest recent answer took %.0f ms", member, worst)
        if stopped != before:
            self._on_change()

    def _predecessors(self) -> dict[Identity, str]:
        """The members whose slots would go to this one next, now or by the table, and their health ports."""
        me = self._pool.identity.me
        view = self._pool.view()
        mine = [(slot, order) for slot, order in enumerate(view.table.orders) if me in order[:2]]
        owners = {at.record.active for slot, _ in mine if (at := view.owners.get(slot)) is not None}
        found = {}
        for member in owners.union(order[0] for _, order in mine) - {me}:
            self._pool.remember(member)
            record = self._pool.known.get(member)
            if record is not None and record.health:
                found[member, record.boot] = record.health
        return found
