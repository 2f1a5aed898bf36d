"""Judges the objectives that are counts, not times: lost writes, second writers, unnecessary moves. Pure.

The objectives of correctness (a lost sync write, a second writer) have no budget: one event misses them. A count is
judged only over the changes of active in which it was measured. Nothing is claimed for the others, and the advice says
what would measure them.
"""

from collections.abc import Sequence
from dataclasses import replace

from understudy.telemetry.slo.model import Failover, Figure, State, Targets

_WHYS = 3
"""The reasons that are shown one by one."""
_STOP = "no budget covers this: stop changing the pool, run understudy verify, and keep the traces"


def lost_sync(held: Sequence[Failover], targets: Targets) -> Figure:
    """Acknowledged sync writes that the clients of drills did not find again."""
    counted = [one.lost_writes for one in held if one.lost_writes is not None]
    key, title = "rpo_sync_writes", "lost sync writes"
    if not counted:
        advice = "nobody compared what was written with what was left; understudy drill kill does"
        return Figure(key, title, State.NO_DATA, None, targets.rpo_sync_writes, "", advice=advice)
    lost = sum(counted)
    state = State.MET if lost <= targets.rpo_sync_writes else State.MISSED
    advice = _STOP if state is State.MISSED else ""
    basis = f"{len(counted)} of {len(held)} changes were compared by clients of drills"
    return Figure(key, title, state, lost, targets.rpo_sync_writes, "", total=len(counted), advice=advice, basis=basis)


def lost_async(held: Sequence[Failover], targets: Targets) -> Figure:
    """Async writes that were answered and then lost, as counted by clients or by a former owner that still ran."""
    crashes = [one for one in held if not one.planned and one.slots]
    told = [one.lost_async for one in crashes if one.lost_async is not None]
    key, title, wanted = "rpo_async_writes", "lost async writes", targets.rpo_async_writes
    found = sum(told) if told else None
    silent = len(crashes) - len(told)
    basis = f"{len(told)} of {len(crashes)} takeovers" if told else ""
    advice = ""
    if wanted is None:
        state = State.NOT_JUDGED
    elif found is not None and found > wanted:
        state, advice = State.MISSED, "async writes may be lost with their member: make those sync that must not be"
    elif silent or not crashes:
        state = State.NOT_SHOWN if told else State.NO_DATA
        advice = (
            f"of {silent} dead members nobody knows what they had answered and not yet written; a drill's clients would"
        )
    else:
        state = State.MET
    return Figure(key, title, state, found, wanted, "", total=len(told), advice=advice, basis=basis)


def lost_replicas(within: Sequence[Failover], targets: Targets) -> Figure:
    """Writes of class ``replicas`` that were lost.

    A takeover by a process of the sync set loses none. If all of the set died, the new active says so, and nobody
    knows how many writes were lost: each such slot counts as one at least. ``within`` also has the stops and starts of
    the pool, since the end of all members at once is such a case.
    """
    crashes = [one for one in within if not one.planned and one.slots and (one.losses or not one.stop_or_start)]
    told = [one for one in crashes if one.losses is not None]
    counted = sum(one.lost_replicas or 0 for one in within)
    slots = sum(one.losses or 0 for one in told)
    found = sum(max(one.losses or 0, one.lost_replicas or 0) for one in within)
    key, title, wanted = "rpo_replica_writes", "lost replicas writes", targets.rpo_replica_writes
    missing = len(crashes) - len(told)
    basis = f"{len(told)} of {len(crashes)} takeovers told" if told else ""
    if slots:
        bound = max(one.loss_seconds for one in told)
        basis = (
            f"{slots} slots were restored after all of their sync set had died: each counts as one, how many writes "
            f"were lost is not known; none was older than {bound:g} s"
        )
    if counted:
        basis = f"{basis}; " * bool(basis) + f"clients of drills missed {counted}"
    if found > wanted:
        advice = "all copies of a slot died at once: have more copies, and spread them over nodes and sites"
        if not slots:
            advice = _STOP
        return Figure(key, title, State.MISSED, found, wanted, "", total=len(told), advice=advice, basis=basis)
    if missing:
        advice = f"of {missing} takeovers no new owner has told whether its slots were restored without their copies"
        state = State.NOT_SHOWN if told else State.NO_DATA
        value = found if told or counted else None
        return Figure(key, title, state, value, wanted, "", total=len(told), advice=advice, basis=basis)
    return Figure(key, title, State.MET, found, wanted, "", total=len(told), basis=basis)


def two_writers(crashes: Sequence[Failover], targets: Targets) -> Figure:
    """Sessions that a former owner wrote after its slot had a new owner, found by the audits of the new owners."""
    told = [one.second_writes for one in crashes if one.second_writes is not None]
    slots, fenced = sum(one.audited for one in crashes), sum(one.fenced for one in crashes)
    key, title = "two_writers", "second writers"
    basis = f"{slots} of {sum(one.slots for one in crashes)} slots were audited" if told else ""
    if fenced:
        basis = f"{basis}; " * bool(basis) + f"{fenced} late writes were refused and repeated elsewhere, as is right"
    if not told:
        advice = "no new owner has told of its audit, which comes within minutes of a takeover"
        return Figure(key, title, State.NO_DATA, None, targets.two_writers, "", advice=advice, basis=basis)
    found, missing = sum(told), len(crashes) - len(told)
    advice = ""
    if found > targets.two_writers:
        state, advice = State.MISSED, _STOP
    elif missing:
        state, advice = State.NOT_SHOWN, f"of {missing} takeovers no new owner has told of its audit"
    else:
        state = State.MET
    return Figure(key, title, state, found, targets.two_writers, "", total=len(told), advice=advice, basis=basis)


def _count(key: str, title: str, found: int, allowed: int, total: int, advice: str) -> Figure:
    state = State.MET if found <= allowed else State.MISSED
    return Figure(
        *(key, title, state, found, allowed, ""),
        total=total,
        budget_left=1 - found / allowed if allowed else None,
        advice=advice if state is State.MISSED else "",
    )


def needless(held: Sequence[Failover], targets: Targets) -> Figure:
    """Sessions that left a member that was alive, as the clients of drills saw it."""
    counted = [one.needless_moves for one in held if one.needless_moves is not None]
    if not counted:
        advice = "nobody watched which sessions moved; understudy drill kill does"
        return Figure(
            "needless_moves", "needless moves", State.NO_DATA, None, targets.needless_moves, "", advice=advice
        )
    advice = "sessions left a member that was alive; understudy failovers tells the causes"
    return _count("needless_moves", "needless moves", sum(counted), targets.needless_moves, len(counted), advice)


def false(crashes: Sequence[Failover], targets: Targets) -> Figure:
    """Takeovers from a member that was heard again as the same process, and could have served all the time.

    A takeover from a member that stood still, or was cut off from etcd, was right. A drill that freezes a member wants
    it.
    """
    known = [one for one in crashes if one.returned is not None and one.drill != "freeze"]
    if crashes and not known:
        advice = "no control server told whether the lost members came back"
        return Figure(
            "false_failovers", "false failovers", State.NO_DATA, None, targets.false_failovers, "", advice=advice
        )
    alive = [one for one in known if one.returned]
    right = [one for one in alive if one.could_not_serve]
    advice = (
        "a member that ran was taken for dead: give it CPU, and check its network; it was not stopped, as a frozen "
        "process or container is"
    )
    found = len(alive) - len(right)
    figure = _count("false_failovers", "false failovers", found, targets.false_failovers, len(known), advice)
    if not right:
        return figure
    whys = sorted({f"{one.source or 'a member'}: {one.could_not_serve}" for one in right})
    more = f", and {len(whys) - _WHYS} more" if len(whys) > _WHYS else ""
    basis = f"{len(right)} of {len(alive)} members that lived on could not serve, so their takeovers were right"
    return replace(figure, basis=f"{basis} ({'; '.join(whys[:_WHYS])}{more})")
