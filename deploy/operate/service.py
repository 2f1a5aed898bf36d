"""Takes members and sites out of service and brings them back: what is written, or why it is refused. Pure.

The commands ``drain``, ``undrain``, ``site offline`` and ``site online`` and the console use the same functions, so the
same act leaves the same audit record. ``statesync/audit/log.py`` (``OperatorLog``) writes it.
"""

import msgspec

from understudy.deploy.common.console_style import utc_time
from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.inspect.converged import moving_slots
from understudy.deploy.inspect.draining import takers
from understudy.deploy.inspect.views import ranges
from understudy.statesync.audit.entry import Act
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.pool.records import Intent
from understudy.statesync.pool.site_copies import lagging_slots
from understudy.statesync.pool.site_records import DependencyDown
from understudy.statesync.pool.state import PoolState

OFFLINE_SECONDS = 2 * 3600.0
"""How long a site stays out of service unless the operator says otherwise."""


class Change(msgspec.Struct, frozen=True):
    """An act and the key that it writes with ``intent`` or ``down``; if both are None it deletes the key.

    ``nothing_to_do`` is the refusal if the key is not there any more when it is to be deleted.
    """

    act: Act
    key: str
    intent: Intent | None = None
    down: DependencyDown | None = None
    nothing_to_do: str = ""


async def carry_out(log: OperatorLog, change: Change) -> None:
    """Write a change with its audit record. Raises :class:`NegativeAnswer` if there is nothing to undo."""
    record = change.intent or change.down
    if record is not None:
        await log.put(change.act, change.key, record.encode())
    elif not await log.delete(change.act, change.key):
        raise NegativeAnswer(change.nothing_to_do)


def drain(state: PoolState, member: str, now: float, seconds: float | None = None) -> Change:
    """Take a member out of service, for some seconds or without a limit.

    Raises:
        NegativeAnswer: there is no such member, or no other member can take its slots.
    """
    require_member(state, member)
    pool = state.keys.pool
    if not takers(state, now) - {member}:
        raise NegativeAnswer(
            f"{member} is the last member that can serve pool {pool}: start another member first, or "
            "bring one back with 'understudy undrain'"
        )
    intent = Intent(member, now + seconds if seconds else 0.0, now)
    act = Act(f"drain {member}", detail=_until(intent), undo=f"understudy undrain {member} --pool {pool}")
    return Change(act, state.keys.intent(member), intent)


def undrain(state: PoolState, member: str) -> Change:
    """Bring a member back into service. Raises :class:`NegativeAnswer` if there is no such member or drain."""
    if member not in state.intents:
        require_member(state, member)
    act = Act(f"undrain {member}", undo=f"understudy drain {member} --pool {state.keys.pool}")
    return Change(act, state.keys.intent(member), nothing_to_do=f"{member} is not drained")


def site_offline(state: PoolState, intent: Intent, *, force: bool = False, no_room: str = "") -> Change:
    """Take a site out of service; ``force`` overrules the refusals, but for the last site.

    ``no_room`` is why the other sites could not carry the load (:func:`without_headroom`), '' if they could.

    Raises:
        NegativeAnswer: the site has no member, another site is offline, slots are moving or have no current copy
            elsewhere, there is no room, or no other site can take its slots.
    """
    site, pool = intent.site, state.keys.pool
    if not members_of(state, site) and not force:
        raise unknown_site(state, site, ", or give --force --reason WHY if its members start later")
    away = state.offline(intent.since) | {site}
    if not any(at.record.site not in away and at.record.state.may_hold_slots for at in state.members.values()):
        raise NegativeAnswer(
            f"{site} is the last site that can serve pool {pool}: bring another site into service first"
        )
    if not force:
        _require_safe(state, site, away - {site}, no_room, again=site in state.offline(intent.since))
    act = Act(f"site offline {site}", detail=_until(intent), undo=f"understudy site online {site} --pool {pool}")
    return Change(act, state.keys.site_intent(site), intent)


def require_safe_in_group(other: PoolState, intent: Intent, no_room: str) -> None:
    """Raise :class:`NegativeAnswer` if another pool of the group, which follows, could not leave the site.

    A pool that has no member there, or none elsewhere, does not follow.
    """
    able = {at.record.site for at in other.members.values() if at.record.state.may_hold_slots}
    if intent.site not in able or able <= other.offline(intent.since) | {intent.site}:
        return
    try:
        site_offline(other, intent, no_room=no_room)
    except NegativeAnswer as refusal:
        raise NegativeAnswer(f"pool {other.keys.pool} of the same group would go too: {refusal}") from None


def _require_safe(state: PoolState, site: str, away: frozenset[str], no_room: str, *, again: bool) -> None:
    """Raise :class:`NegativeAnswer` where only ``--force`` may go on. ``again``: the site gets another end only."""
    overrule = "--force --reason WHY goes on nevertheless"
    for other in sorted(away):
        raise NegativeAnswer(
            f"site {other} is offline already: bring it back first with 'understudy site online {other}'; {overrule}"
        )
    if not again and (moving := moving_slots(state)):
        raise NegativeAnswer(
            f"a failover or another switch is under way, {len(moving)} slots are moving ({ranges(moving)}): wait until "
            f"'understudy status' shows them at rest; {overrule}"
        )
    if no_room:
        raise NegativeAnswer(
            f"the other sites cannot carry the load of site {site}: {no_room}; start members there, see 'understudy "
            f"capacity'; {overrule}"
        )
    members = members_of(state, site)
    late = [slot for slot in lagging_slots(state) if state.owners[slot].record.active in members]
    if late:
        raise NegativeAnswer(
            f"{len(late)} slots have current copies on site {site} only, and should have one elsewhere "
            f"({ranges(late)}): wait until 'understudy site status' shows them on two sites; {overrule}"
        )


def site_online(state: PoolState, site: str, now: float) -> Change:
    """Bring a site back into service, or end its rest after it was lost again soon after its return.

    Raises :class:`NegativeAnswer` if the site is not known.
    """
    if not members_of(state, site) and site not in state.sites:
        raise unknown_site(state, site)
    act = Act(f"site online {site}", undo=f"understudy site offline {site} --pool {state.keys.pool}")
    if state.table is not None and now < state.rests_until(site):
        intent = Intent(until=state.table.record.returned[site], since=now, site=site)
        return Change(Act(act.what, detail="its rest is over"), state.keys.site_intent(site), intent)
    nothing = f"site {site} is not offline, and does not rest after it was lost twice"
    return Change(act, state.keys.site_intent(site), nothing_to_do=nothing)


def dependency(state: PoolState, site: str, name: str, down: DependencyDown | None) -> Change | None:
    """Say that something a site needs is down, or (None) up again; None if the pool knows it already.

    Raises:
        NegativeAnswer: the spec does not name the dependency in ``needs`` of this site, and none is down by that name.
    """
    pool, known = state.keys.pool, (site, name) in state.dependencies
    wanted = state.spec.record.sites.get(site) if state.spec else None
    needs = wanted.needs if wanted else ()
    if name not in needs and (down or not known):
        raise NegativeAnswer(
            f"site {site} of pool {pool} needs no {name!r} by the spec, but {', '.join(needs) or 'nothing'}: "
            f"add it to needs of sites.{site} and apply the spec, or give another name"
        )
    if known == (down is not None):
        return None
    word, undo = ("down", "up") if down else ("up", "down")
    command = f"understudy site dependency {site} {name}"
    act = Act(f"site dependency {site} {name} {word}", undo=f"{command} {undo} --pool {pool}")
    nothing = f"{name} of site {site} is up"
    return Change(act, state.keys.dependency(site, name), down=down, nothing_to_do=nothing)


def members_of(state: PoolState, site: str) -> list[str]:
    """The registered members of a site."""
    return [name for name, at in sorted(state.members.items()) if at.record.site == site]


def require_member(state: PoolState, member: str) -> None:
    """Raise :class:`NegativeAnswer` unless the member is registered."""
    if member not in state.members:
        known = ", ".join(sorted(state.members)) or "none"
        raise NegativeAnswer(f"pool {state.keys.pool} has no member {member!r}; its members are {known}")


def unknown_site(state: PoolState, site: str, remedy: str = "") -> NegativeAnswer:
    """The refusal for a site without members."""
    known = ", ".join(sorted({at.record.site for at in state.members.values()} - {""})) or "none (--site of sidecars)"
    return NegativeAnswer(
        f"pool {state.keys.pool} has no member on a site {site!r}; its sites are {known}: give one of them{remedy}"
    )


def _until(intent: Intent) -> str:
    return f"until {utc_time(intent.until)}" if intent.until else ""
