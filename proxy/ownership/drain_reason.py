"""Why a member hands its slots over and takes none.

It goes down, an operator wants it or its site out of service, or the leader's table says that it will fail soon.

The members of a site leave together. If one reported at once that it leaves, its slots would move before the control
servers know of the others, perhaps to one of those. So a member waits until a table says that its site is offline.
If no such table comes for a while (``overdue``), there is no control server, and each member leaves by itself.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from understudy.proxy.member.pool_view import PoolView
from understudy.statesync.pool.ownership import DRAIN, site_cause
from understudy.statesync.pool.records import Intent, Table
from understudy.statesync.pool.state import PoolState


@dataclass(frozen=True, slots=True)
class DrainReason:
    """``why`` in words for people, and the ``cause`` that is written into its handovers."""

    why: str
    cause: str = DRAIN


def drain_reason(
    state: PoolState, me: str, boot: str, site: str, *, going_down: bool, overdue: bool, now: float
) -> DrainReason | None:
    """Why the process ``boot`` of ``me``, a member of ``site`` ('' for none), is to own nothing; None if it may.

    Args:
        state: the pool.
        me: the member.
        boot: its boot id: a forecast counts for one process.
        site: its site.
        going_down: its process is about to end.
        overdue: the operators' intents have stood for longer than a table usually takes to follow them.
        now: wall time in seconds.
    """
    if going_down:
        return DrainReason("going down: handing its slots over")
    own = state.intents.get(me)
    if own is not None and own.record.holds(now):
        return DrainReason(f"drained by an operator{_until(own.record)}")
    of_site = state.sites.get(site) if site else None
    table = state.table.record if state.table else Table()
    if of_site is not None and of_site.record.holds(now) and (overdue or site in table.offline):
        return DrainReason(f"site {site} is offline{_until(of_site.record)}", site_cause([site], offline=True))
    leaving = table.leaving.get(me)
    if leaving is not None and leaving.boot == boot and able_to_take(state, now) - {me}:
        return DrainReason(leaving.why, leaving.why)
    return None


def able_to_take(state: PoolState, now: float) -> frozenset[str]:
    """The members that slots may be left to at ``now`` (wall time), also those that have not heard of an intent yet."""
    offline = state.offline(now)
    fit = {name: at.record for name, at in state.members.items() if at.record.state.may_hold_slots}
    return frozenset(name for name, member in fit.items() if member.site not in offline)


def _until(intent: Intent) -> str:
    return f" until {datetime.fromtimestamp(intent.until, tz=UTC):%Y-%m-%d %H:%M:%SZ}" if intent.until else ""


OVERDUE_AFTER = 0.3
"""Seconds in which a table usually comes that says where the slots of a draining member go."""


class DrainState:
    """Whether this member is to hand its slots over, and since when its process is about to end."""

    def __init__(self, pool: PoolView) -> None:
        self._pool = pool
        self.intents_changed = 0.0
        """When an operator's intent last changed, as far as is known here (monotonic)."""
        self.going_down = False
        """Whether this process was told to end."""

    @property
    def reason(self) -> DrainReason | None:
        """Why this member hands its slots over and takes none; None if it does not."""
        return drain_reason(
            self._pool.state,
            self._pool.identity.me,
            self._pool.identity.boot,
            self._pool.identity.site,
            going_down=self.going_down,
            overdue=time.monotonic() - self.intents_changed >= OVERDUE_AFTER,
            now=time.time(),
        )
