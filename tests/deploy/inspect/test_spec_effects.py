"""What ``apply --dry-run`` says would follow from a new spec."""

import pytest

from understudy.deploy.inspect.spec_effects import Effect, effects_of
from understudy.statesync.etcd.client import Event, Kv
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Lost, Member, MemberState, Owner, Table
from understudy.statesync.pool.spec_reader import parse_spec
from understudy.statesync.pool.state import PoolState

NOW = 1000.0
KEYS = PoolKeys("cart")
NAMES = ("cart-1", "cart-2", "cart-3")
ORDERS = tuple((NAMES[slot % 3], NAMES[(slot + 1) % 3]) for slot in range(12))


def spec(text=""):
    return parse_spec(f"pool: cart\nslots: 12\ncopies: 2\n{text}", where="pool.yaml")


def pool(running="", lost=(), offline=()):
    """A pool of three members with four slots each, two copies of each slot."""
    table = Table(7, ORDERS, {name: Lost(f"{name}-boot", "refused", "", NOW) for name in lost}, "", "", tuple(offline))
    values = {
        KEYS.spec: spec(running).encode(),
        KEYS.table: table.encode(),
        **{KEYS.owner(slot): Owner(order[0], f"{order[0]}-boot", 1).encode() for slot, order in enumerate(ORDERS)},
        **{KEYS.member(name): Member(name, f"{name}-boot", "h:1", "h:2", MemberState.UP).encode() for name in NAMES},
    }
    state = PoolState(KEYS)
    events = [Event("put", Kv(key, value, 1, 1, 1)) for key, value in values.items()]
    state.apply(InformerBatch(1, tuple(events), reset=True))
    return state


def effects(wanted, sessions=0, **about):
    return effects_of(pool(**about), spec(wanted), sessions, NOW)


@pytest.mark.parametrize("wanted", ["", "session_ttl: 60", "limits: {sessions: 50}", "durability_rules: []"])
def test_most_changes_move_and_refuse_nothing(wanted):
    assert effects(wanted, sessions=40) == []


def test_a_weight_moves_slots():
    (handed_over, copied) = effects("members: {cart-1: {weight: 40}}")
    assert handed_over == Effect(
        "moves", "3 of 12 slots would be handed over: cart-2 to cart-1 2, cart-3 to cart-1 1", 3
    )
    assert copied.kind == "moves"
    assert "copies of more slots" in copied.detail


def test_one_active_member_takes_everything():
    found = effects("mode: active_standby\nmembers: {cart-2: {priority: 1}, cart-1: {priority: 2}}")
    assert found[0].slots == 8
    assert found[0].detail.startswith("8 of 12 slots would be handed over: ")


def test_more_copies_are_copied_and_hand_nothing_over():
    (copied,) = effects_of(pool(), spec().model_copy(update={"copies": 3}), 0, NOW)
    assert copied.detail == "members would get copies of more slots, over the network: cart-1 4, cart-2 4, cart-3 4"


def test_what_the_leader_would_do_anyway_is_no_effect():
    assert effects("session_ttl: 60", lost=["cart-3"]) == []
    assert effects("members: {cart-3: {weight: 30}}", lost=["cart-3"]) == []


def test_the_effects_that_no_slot_shows():
    found = effects("session_key: [{cookie: id}]\nlimits: {sessions: 5, session_bytes: 10}\ndurability: async", 40)
    assert [(one.kind, one.detail.split(" would")[0]) for one in found] == [
        ("keys", "requests"),
        ("refuses", "there are about 40 sessions, and limits.sessions"),
        ("refuses", "writes of more than 10 bytes"),
        ("loses", "acknowledged writes could be lost when a member dies (docs/durability.md)"),
    ]
    assert effects("durability: sync", running="durability: async") == []


def test_a_pool_without_members_or_spec_has_no_effects():
    assert effects_of(PoolState(KEYS), spec(), 0, NOW) == []
    bare = PoolState(KEYS)
    bare.apply(InformerBatch(1, (Event("put", Kv(KEYS.spec, spec().encode(), 1, 1, 1)),), reset=True))
    assert effects_of(bare, spec("mode: active_standby"), 0, NOW) == []
