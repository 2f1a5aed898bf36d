"""Pools as records, for tests of the console."""

from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import (
    ControlServer,
    FailoverRecord,
    Intent,
    Member,
    MemberState,
    Owner,
    SyncRecord,
    Table,
)
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import At, PoolState
from understudy.statesync.replication.sync_set import Process

NOW = 1_800_000_000.0
TRACE = "ab" * 16


def a_pool(slots: int = 8, names: tuple[str, ...] = ("cart-1", "cart-2", "cart-10")) -> PoolState:
    """A pool at rest: slots in turn over the members, each with its copies; the members are on sites east and west."""
    state = PoolState(PoolKeys("cart"))
    count = len(names)
    orders = tuple(tuple(names[(slot + at) % count] for at in range(2)) for slot in range(slots))
    state.spec = At(PoolSpec(pool="cart", slots=slots, copies=2), 1)
    state.table = At(Table(1, orders), 2)
    for number, name in enumerate(names):
        site = ("east", "west")[number % 2]
        state.members[name] = At(Member(name, f"{name}b", "h:1", "h:2", MemberState.UP, site=site), 3)
    for slot, order in enumerate(orders):
        state.owners[slot] = At(Owner(order[0], f"{order[0]}b", 1, since=NOW - 60), 4)
        state.sync_sets[slot] = At(SyncRecord(1, tuple(Process(name, f"{name}b") for name in order)), 4)
    state.controls["control-1"] = At(ControlServer("control-1", "h:3", "h:4"), 1)
    state.leader = At("control-1", 1)
    return state


def drained(state: PoolState, member: str, until: float = 0.0) -> None:
    state.intents[member] = At(Intent(member, until, NOW), 5)


def offline(state: PoolState, site: str, until: float = 0.0) -> None:
    state.sites[site] = At(Intent(site=site, until=until, since=NOW), 5)


def failed_over(state: PoolState, source: str, to: str, slots: tuple[int, ...], *, revision: int = 6) -> None:
    record = FailoverRecord(TRACE, to, source, f"{source} was killed", False, slots, (2,) * len(slots), NOW - 5)
    state.failovers[f"{TRACE}/{to}/{source}"] = At(record, revision)
