"""Which owners, whose next in line this member is, run and which have stopped, as their pulses show.

Watches the pulses (:mod:`understudy.statesync.heartbeat.pulse`) of those members only, so that in a large pool nobody
asks everybody. That one has stopped is a witness, and never the only one: a caller who was sent here is the other, or
the silence of beats. That one runs is no proof that it is well, but who asks it is more patient. The control servers
are told both.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from understudy.proxy.ownership.context import MemberContext
from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL
from understudy.statesync.heartbeat.pulse import Identity, Pulses, is_running

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.05
SELECT_INTERVAL = 1.0
"""Seconds after which it is looked anew whom to watch."""


class PredecessorMonitor:
    """The owners among which somebody may fall silent, and ``seen``: which of them run (True) or have stopped (False).

    ``on_change`` is called when somebody stops or goes on.
    """

    def __init__(self, context: MemberContext, pulses: Pulses, on_change: Callable[[], None]) -> None:
        self._context = context
        self._pulses = pulses
        self._on_change = on_change
        self._watched: dict[Identity, str] = {}
        self.seen: dict[Identity, bool] = {}

    def runs(self, member: str, boot: str | None = None) -> bool | None:
        """Whether this boot of a member, by default the one on record, runs; None if nothing can be said."""
        record = self._context.known.get(member)
        who = (member, boot or (record.boot if record else ""))
        rules = self._context.liveness
        return is_running(
            self._pulses.pulse(who),
            self._pulses.others(who),
            time.monotonic(),
            usual=rules.missed_beats * BEAT_INTERVAL,
            cap=rules.load_cap_ms / 1000,
        )

    async def run(self) -> None:
        """Look until cancelled."""
        choose_at = 0.0
        with self._pulses:
            while True:
                now = time.monotonic()
                if now >= choose_at:
                    self._watched = self._predecessors()
                    self._pulses.watch(self._watched)
                    choose_at = now + SELECT_INTERVAL
                self._look()
                await asyncio.sleep(POLL_INTERVAL)

    def _look(self) -> None:
        before = {who for who, runs in self.seen.items() if not runs}
        self.seen = {who: runs for who in self._watched if (runs := self.runs(*who)) is not None}
        stopped = {who for who, runs in self.seen.items() if not runs}
        for member, boot in stopped - before:
            pulse = self._pulses.pulse((member, boot))
            worst = pulse.worst * 1000 if pulse is not None else 0.0
            logger.warning(
                "%s does not answer its pulse any more; that took %.0f ms at the most of late", member, worst
            )
        if stopped != before:
            self._on_change()

    def _predecessors(self) -> dict[Identity, str]:
        """Whose slots would come to this member next, now or once the table is carried out, and their health ports."""
        context = self._context
        view = context.view()
        mine = [(slot, order) for slot, order in enumerate(view.table.orders) if context.me in order[:2]]
        owners = {at.record.active for slot, _ in mine if (at := view.owners.get(slot)) is not None}
        found = {}
        for member in owners.union(order[0] for _, order in mine) - {context.me}:
            context.peer(member)  # which keeps the record of a member whose lease has ended
            record = context.known.get(member)
            if record is not None and record.health:
                found[member, record.boot] = record.health
        return found
