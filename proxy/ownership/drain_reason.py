"""Why a member hands its slots over and takes none: it goes down, or an operator wants it or its site away. Pure.

The members of a site do not leave one by one. Who told the control servers at once would have its slots moved before
they know of the others, perhaps to one of these. So a member waits until a table says that its site is offline, or
until none has come for a while (``overdue``): then there is no control server, and each is on its own.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from understudy.statesync.pool.ownership import DRAIN, site_cause
from understudy.statesync.pool.records import Intent, Table
from understudy.statesync.pool.state import PoolState


@dataclass(frozen=True, slots=True)
class DrainReason:
    """``why`` in words for whoever looks at the member, and the ``cause`` that its handovers are given."""

    why: str
    cause: str = DRAIN


def leaving(state: PoolState, me: str, site: str, *, going_down: bool, overdue: bool, now: float) -> DrainReason | None:
    """Why ``me``, a member of ``site`` ('' for none), is to own nothing; None if it may.

    Args:
        state: the pool.
        me: the member.
        site: its site.
        going_down: its process is about to end.
        overdue: what operators want has stood for longer than a table takes to follow it.
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
    return None


def able_to_take(state: PoolState, now: float) -> frozenset[str]:
    """The members that slots may be left to at ``now`` (wall time), also those that have not heard of an intent yet."""
    offline = state.offline(now)
    fit = {name: at.record for name, at in state.members.items() if at.record.state.may_hold_slots}
    return frozenset(name for name, member in fit.items() if member.site not in offline)


def _until(intent: Intent) -> str:
    return f" until {datetime.fromtimestamp(intent.until, tz=UTC):%Y-%m-%d %H:%M:%SZ}" if intent.until else ""
