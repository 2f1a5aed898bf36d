"""What a new spec would do to a running pool beside the fields that change: what moves, and what is refused. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from understudy.statesync.pool.site_records import PoolInGroup
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import PoolState
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.planning.plan import next_plan
from understudy.xds.planning.site_switch import lately_back

Kind = Literal["moves", "refuses", "keys", "loses"]
Orders = Sequence[Sequence[str]]
_WEAKER = {"sync": 0, "replicas": 1, "async": 2}


@dataclass(frozen=True, slots=True)
class Effect:
    """One consequence of a new spec. ``detail`` is for people, ``slots`` how many slots it touches (0: none)."""

    kind: Kind
    detail: str
    slots: int = 0


def effects_of(
    state: PoolState,
    wanted: PoolSpec,
    sessions: int,
    now: float,
    group: Mapping[str, PoolInGroup] | None = None,
) -> list[Effect]:
    """What applying ``wanted`` would do, by the members that are registered now; empty for a pool that has no spec.

    Args:
        state: the pool's records.
        wanted: the new spec.
        sessions: how many sessions etcd has, deleted ones included.
        now: wall time in seconds.
        group: what the other pools of the new spec's group say.
    """
    if state.spec is None or state.spec.record == wanted:
        return []
    running = state.spec.record
    return [*_moves(state, wanted, now, group or {}), *_keys(running, wanted), *_refusals(running, wanted, sessions)]


def _moves(state: PoolState, wanted: PoolSpec, now: float, group: Mapping[str, PoolInGroup]) -> Iterator[Effect]:
    """The slots that change their active because of the new spec, and those that get more copies elsewhere."""
    if state.table is None or state.spec is None:
        return
    cluster = _cluster(state, state.spec.record, now)
    same = state.spec.record.full_group == wanted.full_group
    before = _orders(replace(cluster, group=group if same else {}), now)
    after = _orders(replace(cluster, spec=wanted, group=group), now)
    pairs = list(zip(before, after, strict=False))
    moved = Counter((old[0], new[0]) for old, new in pairs if old and new and old[0] != new[0])
    if moved:
        ways = ", ".join(f"{source} to {target} {count}" for (source, target), count in sorted(moved.items()))
        total = moved.total()
        yield Effect("moves", f"{total} of {len(after)} slots would be handed over: {ways}", total)
    added = Counter(member for old, new in pairs for member in set(new) - set(old))
    if added:
        members = ", ".join(f"{member} {count}" for member, count in sorted(added.items()))
        yield Effect("moves", f"members would get copies of more slots, over the network: {members}", added.total())


def _cluster(state: PoolState, spec: PoolSpec, now: float) -> ClusterState:
    """The pool as its leader sees it, if all members beat that the table does not name lost."""
    members = {name: at.record for name, at in state.members.items()}
    table = state.table.record if state.table else None
    lost = table.lost if table else {}
    alive = {name for name, member in members.items() if name not in lost or lost[name].boot != member.boot}
    return ClusterState(
        spec=spec,
        members=members,
        states={name: member.state for name, member in members.items()},
        registered={name: member.boot for name, member in members.items()},
        owners={slot: at.record for slot, at in state.owners.items() if slot < spec.slots},
        table=table,
        deaths={},
        beating=frozenset((name, members[name].boot) for name in alive),
        offline=state.offline(now),
        lacking=state.lacking(),
        ended_rests=state.ended_rests(),
    )


def _orders(cluster: ClusterState, now: float) -> Orders:
    """The orders of the table that the leader would write, or of the one in force if it would write none."""
    plan = next_plan(cluster, now, lately_back=lately_back(cluster, now))
    if plan is not None:
        return plan.table.orders
    return cluster.table.orders if cluster.table is not None else ()


def _keys(running: PoolSpec, wanted: PoolSpec) -> Iterator[Effect]:
    if running.session_key == wanted.session_key:
        return
    yield Effect(
        "keys",
        "requests would be sent by another session key. A client whose key changes goes to the slot of its new key; "
        "stored sessions stay under theirs",
    )


def _refusals(running: PoolSpec, wanted: PoolSpec, sessions: int) -> Iterator[Effect]:
    if wanted.limits.sessions < min(running.limits.sessions, sessions):
        yield Effect(
            "refuses",
            f"there are about {sessions} sessions, and limits.sessions would be {wanted.limits.sessions}: new sessions "
            "would be refused with 507 until enough have ended; none is deleted",
        )
    if wanted.limits.session_bytes < running.limits.session_bytes:
        yield Effect(
            "refuses",
            f"writes of more than {wanted.limits.session_bytes} bytes would be refused with 413; larger sessions that "
            "are stored stay readable",
        )
    if _WEAKER[wanted.durability] > _WEAKER[running.durability]:
        lost = {"replicas": "when all members with a slot's newest writes die at once", "async": "when a member dies"}
        yield Effect("loses", f"acknowledged writes could be lost {lost[wanted.durability]} (docs/durability.md)")
