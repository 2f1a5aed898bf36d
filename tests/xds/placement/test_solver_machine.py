"""Any history of joins, deaths, drains, returns, weights and sites keeps the five properties of the slot table."""

import random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.harness.examples import examples
from tests.xds.placement import table_rules as rules
from understudy.statesync.pool.records import MemberState, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import MemberSpec
from understudy.xds.placement.solver import Candidate, Decision, decide

NAMES = [f"m-{number}" for number in range(9)]
WEIGHTS = st.one_of(st.just(10), st.integers(1, 40), st.integers(1, 1000))
PLACES = st.tuples(
    st.sampled_from(["", "", "", "west", "north"]),
    st.sampled_from(["a", "a", "a", "b", "c", ""]),
    st.sampled_from(["h1", "h1", "h2", "h3", ""]),
)
DOWN = st.sampled_from([MemberState.LOST, MemberState.DOWN, MemberState.DRAINING, MemberState.INIT])


class Pool(RuleBasedStateMachine):
    """A pool's life; ``owners`` are the owner records, which follow the table sooner or later."""

    @initialize(
        mode=st.sampled_from(["load_sharing", "load_sharing", "load_sharing", "active_standby"]),
        slots=st.sampled_from([1, 2, 7, 24, 64]),
        copies=st.integers(2, 6),
        equal=st.booleans(),
    )
    def start(self, mode, slots, copies, equal):
        self.spec = PoolSpec(pool="cart", mode=mode, slots=slots, copies=copies)
        self.equal = equal
        self.candidates: dict[str, Candidate] = {}
        self.table = Table()
        self.owners: dict[int, str] = {}
        self.asked = Decision((), ())
        self.before = (Table(), {})

    @rule(
        member=st.sampled_from(NAMES),
        place=PLACES,
        weight=WEIGHTS,
        priority=st.integers(1, 3),
    )
    def join(self, member, place, weight, priority):
        site, zone, host = place
        weight = 10 if self.equal else weight
        self.candidates[member] = Candidate(member, site, weight, priority, MemberState.UP, zone, host)
        self.ask()

    @rule(member=st.sampled_from(NAMES), state=DOWN)
    def fall(self, member, state):
        self.turn([member], state)

    @rule(state=DOWN, site=st.sampled_from(["west", "north"]))
    def lose_site(self, state, site):
        self.turn([name for name, member in self.candidates.items() if member.site == site], state)

    @rule()
    def everybody_returns(self):
        self.turn(list(self.candidates), MemberState.READY)

    @rule(member=st.sampled_from(NAMES))
    def leave(self, member):
        self.candidates.pop(member, None)
        self.ask()

    @rule(member=st.sampled_from(NAMES), weight=WEIGHTS)
    def operator_sets_weight(self, member, weight):
        if not self.equal:
            said = {**self.spec.members, member: MemberSpec(weight=weight)}
            self.spec = self.spec.model_copy(update={"members": said})
            self.ask()

    @rule(draw=st.randoms(use_true_random=False))
    def some_slots_are_handed_over(self, draw):
        for slot, order in enumerate(self.table.orders):
            if order and draw.random() < 0.5:
                self.owners[slot] = order[0]
        self.ask()

    @rule(draw=st.randoms(use_true_random=False))
    def a_standby_claims_by_itself(self, draw):
        slot = draw.randrange(self.spec.slots)
        order = self.table.orders[slot] if self.table.orders else ()
        if len(order) > 1:
            self.owners[slot] = order[1]
            self.ask()

    def turn(self, members, state):
        for name in members:
            if name in self.candidates:
                was = self.candidates[name]
                self.candidates[name] = msgspec.structs.replace(was, state=state)
        self.ask()

    def ask(self):
        self.before = (self.table, dict(self.owners))
        self.asked = decide(self.spec, list(self.candidates.values()), self.table, current=self.owners)
        self.table = Table(self.table.generation + 1, self.asked.orders)

    @property
    def serving(self):
        return rules.serving(self.candidates.values())

    @property
    def sharing(self):
        return self.serving and self.spec.mode == "load_sharing" and self.table.orders

    @invariant()
    def copies_are_apart(self):
        if self.serving:
            rules.assert_apart(self.spec, self.candidates.values(), self.table.orders)

    @invariant()
    def members_have_their_share(self):
        if self.sharing:
            rules.assert_actives_balanced(self.spec, self.candidates.values(), self.table.orders)
            rules.assert_standbys_balanced(self.spec, self.candidates.values(), self.table.orders)

    @invariant()
    def any_death_falls_evenly_on_the_others(self):
        if self.sharing:
            rules.assert_even_shock(self.spec, self.candidates.values(), self.table.orders)

    @invariant()
    def no_more_actives_change_than_must(self):
        if self.sharing:
            present = rules.present_actives(self.candidates.values(), *self.before, self.spec.slots)
            least = rules.fewest_changes(self.spec, self.candidates.values(), present)
            assert rules.changes(present, self.table.orders) == least

    @invariant()
    def one_member_stands_in_front(self):
        if self.serving and self.spec.mode == "active_standby":
            assert len(set(self.table.orders)) == 1

    @invariant()
    def the_last_endpoint_stays(self):
        if not self.serving:
            for slot, order in enumerate(self.table.orders):
                was = self.before[0].orders[slot] if self.before[0].orders else ()
                assert order == tuple(member for member in was if member in self.candidates)

    @invariant()
    def every_replica_decides_alike(self):
        shuffled = list(self.candidates.values())
        random.Random(len(shuffled)).shuffle(shuffled)
        table, owners = self.before
        if self.table.orders:
            backwards = dict(reversed(owners.items()))
            assert decide(self.spec, shuffled, table, current=backwards) == self.asked

    @invariant()
    def asking_again_changes_nothing(self):
        if self.table.orders:
            again = decide(self.spec, list(self.candidates.values()), self.table, current=self.owners)
            assert again.moves == ()
            assert again.orders == self.table.orders

    @invariant()
    def moves_tell_every_difference(self):
        was = [list(order) for order in self.before[0].orders] or [[] for _ in self.asked.orders]
        told = {(move.slot, move.role) for move in self.asked.moves}
        for move in self.asked.moves:
            assert move.reason
            assert move.source != move.target
        for slot, (old, new) in enumerate(zip(was, self.asked.orders, strict=True)):
            assert ((slot, "active") in told) == (old[:1] != list(new[:1]))
            assert ((slot, "standby") in told) == (old[1:2] != list(new[1:2]))
            assert ((slot, "backup") in told) == (set(old[2:]) != set(new[2:]))


Pool.TestCase.settings = settings(max_examples=examples(120), stateful_step_count=25, deadline=None)
TestPool = Pool.TestCase
