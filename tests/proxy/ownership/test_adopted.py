"""A takeover whose answer never came is counted when its slots turn out to be ours; nothing else is."""

from types import SimpleNamespace

import pytest

from understudy.proxy.events.counters import Counters
from understudy.proxy.ownership.claims import Claimer
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Failover, Owner
from understudy.statesync.pool.state import At, PoolState
from understudy.telemetry.tracing.ids import takeover_seed

TRACE = takeover_seed("cart", "a", "a1")


class Audits:
    """The slots that are to be audited."""

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}

    def claimed(self, _trace: object, epochs: dict[int, int], _revision: int) -> None:
        self.slots |= epochs


@pytest.fixture
def member():
    """What a claimer shares with the rest of member b, which took slots 3 and 5 over from a."""
    state = PoolState(PoolKeys("cart"))

    def note(key: str, **fields: object) -> None:
        record = Failover(**{"trace": TRACE.hex, "to": "b", "cause": "", "started": 1.0, **fields})
        state.failovers[key] = At(record, 7)

    note("taken", source="a", planned=False, slots=(3, 5), epochs=(2, 4))
    note("handed over", source="a", planned=True, slots=(8,), epochs=(2,))
    note("restarted", source="b", planned=False, slots=(9,), epochs=(2,))
    note("another's", to="c", source="a", planned=False, slots=(10,), epochs=(2,))
    return SimpleNamespace(me="b", state=state, counters=Counters(), audit=Audits())


def adopt(member: SimpleNamespace, slot: int, epoch: int) -> None:
    Claimer(member).reclaimed(slot, At(Owner("b", "b1", epoch, traceparent=TRACE.traceparent), 7))


def test_each_slot_of_a_takeover_counts_and_the_takeover_once(member):
    adopt(member, 3, 2)
    adopt(member, 5, 4)
    assert (member.counters.takeovers, member.counters.taken_over) == (1, 2)
    assert member.audit.slots == {3: 2, 5: 4}


@pytest.mark.parametrize(("slot", "epoch"), [(3, 3), (8, 2), (9, 2), (10, 2), (11, 1)])
def test_what_was_no_takeover_by_this_member_does_not_count(member, slot, epoch):
    adopt(member, slot, epoch)
    assert (member.counters.takeovers, member.counters.taken_over) == (0, 0)
