"""Switches of an active/standby pool between its sites by grade: gap, freeze, loss and flapping, in virtual time."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.pool.ownership import is_handover, sites_in
from understudy.statesync.pool.records import Member, MemberState, Owner, Table
from understudy.statesync.pool.site_records import SiteSwitch
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import SiteSpec, SiteSwitching
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.member_health import SECOND
from understudy.xds.planning.plan import TablePlan, next_plan
from understudy.xds.planning.recovery import Recovery
from understudy.xds.planning.site_switch import SiteFreeze

UP, LOST, INIT = MemberState.UP, MemberState.LOST, MemberState.INIT
FREEZE = 150
START = 1_000_000.0
"""Wall time at which the pools here begin."""
Down = Mapping[str, frozenset[str]]
DATABASE = frozenset({"database"})


def spec(**more: object) -> PoolSpec:
    needs = ("database",)
    sites = {"east": SiteSpec(weight=100, needs=needs), "west": SiteSpec(weight=0, needs=needs)}
    made = PoolSpec(pool="cart", slots=8, sites=sites, site_switch=SiteSwitching(gap=60, freeze=float(FREEZE)))
    return made.model_copy(update=more)


class Pool:
    """A pool of four members on each site. Its owner records follow each table at once; ``after`` passes time."""

    def __init__(self, of: PoolSpec, sites: Sequence[str] = ("east", "west")) -> None:
        members = {
            f"{site}-{number}": Member(f"{site}-{number}", "one", "127.0.0.1:7", "127.0.0.1:1", UP, site)
            for site in sites
            for number in range(4)
        }
        beating = frozenset((name, "one") for name in members)
        states, boots = dict.fromkeys(members, UP), dict.fromkeys(members, "one")
        self.cluster = ClusterState(of, members, states, boots, {}, None, {}, beating)
        self.now = 0.0
        self.recovery, self.freeze = Recovery(), SiteFreeze()
        self.plan: TablePlan | None = None
        self.switches: list[tuple[float, str]] = []
        self.returns: list[tuple[float, str]] = []
        """The switches: when a site without slots got some although another one served, and could go on."""
        self.well = set(sites)
        self.step()

    def new_leader(self, clock: float = 0.0) -> None:
        """Another control server leads from now on, whose wall clock differs by ``clock`` seconds."""
        self.recovery, self.freeze, self.clock = Recovery(), SiteFreeze(), clock

    clock = 0.0

    def step(
        self,
        able: Mapping[str, int] | None = None,
        *,
        after: float = 0.0,
        down: Sequence[str] = (),
        offline: str = "",
        starting: Sequence[str] = (),
        ended: Mapping[str, float] | None = None,
    ) -> set[str]:
        """The sites that serve after the next table. ``able`` members of a site are up, by default all four.

        Those of sites in ``starting`` that are not up start again, before anybody has found them lost. ``ended`` are
        the rests that operators have ended.
        """
        self.now += after
        states = {
            name: UP
            if int(name[-1]) < (able or {}).get(member.site, 4)
            else (INIT if member.site in starting else LOST)
            for name, member in self.cluster.members.items()
        }
        beating = frozenset((name, "one") for name, state in states.items() if state is UP)
        self.cluster = replace(
            self.cluster,
            states=states,
            beating=beating,
            offline=frozenset({offline} - {""}),
            lacking=dict.fromkeys(down, DATABASE),
            ended_rests=ended or {},
        )
        before, well = self.serving, {self.cluster.site(name) for name, state in states.items() if state is UP}
        left, self.well = before & well & self.well, well
        self._decide(beating)
        self.returns += [(self.now, site) for site in self.serving - before if left]
        return self.serving

    def _decide(self, complete: frozenset[tuple[str, str]]) -> None:
        at, now = START + self.now, round((self.now + 1) * SECOND)
        before = self.cluster.table.switch if self.cluster.table else None
        self.recovery = self.recovery.observe(self.cluster, complete, now)
        self.freeze = self.freeze.observe(self.cluster, at + self.clock, now)
        frozen = self.freeze.holds(now)
        back = self.freeze.lately_back(now)
        settled = self.recovery.members()
        plan = next_plan(self.cluster, at + self.clock, settled=settled, frozen=frozen, lately_back=back)
        if plan is None:
            return
        self.plan = plan
        table = Table.decode(plan.table.encode())
        owners = {slot: Owner(order[0], "one", table.generation) for slot, order in enumerate(table.orders)}
        self.cluster = replace(self.cluster, table=table, owners=owners)
        if before and table.switch and table.switch.at != before.at:
            self.switches.append((self.now, table.switch.why))

    @property
    def serving(self) -> set[str]:
        return {self.cluster.site(owner.active) for owner in self.cluster.owners.values()}

    @property
    def cause(self) -> str:
        return self.cluster.table.cause if self.cluster.table else ""


@pytest.mark.parametrize(
    ("able", "down", "serving"),
    [
        ({"east": 2}, (), "east"),  # 50 against 100
        ({"east": 1}, (), "west"),  # 25 against 100
        ({"east": 1, "west": 3}, (), "east"),  # 25 against 75
        ({}, ("east",), "west"),  # 0 against 100
        ({"west": 2}, ("east",), "east"),  # 0 against 50
        ({}, ("east", "west"), "east"),  # 0 against 0
    ],
)
def test_a_switch_needs_the_gap(able: Mapping[str, int], down: Sequence[str], serving: str) -> None:
    pool = Pool(spec())
    assert pool.step(able, after=FREEZE, down=down) == {serving}


def test_there_is_no_switch_within_the_freeze_of_the_beginning_or_of_another_one() -> None:
    pool = Pool(spec())
    assert pool.step({"east": 1}, after=FREEZE - 1) == {"east"}, "members of a new pool arrive one after the other"
    assert pool.step({"east": 1}, after=1) == {"west"}
    assert pool.step({"west": 1}, after=FREEZE - 1) == {"west"}
    assert pool.step({"west": 1}, after=1) == {"east"}


def test_a_serving_site_that_is_lost_waits_for_neither_gap_nor_freeze() -> None:
    pool = Pool(spec())
    assert pool.step({"east": 0}, after=1, down=["west"]) == {"west"}
    assert pool.step({"west": 0}, after=1, down=["east"]) == {"east"}
    assert pool.step({"west": 2}, after=1, down=["east"]) == {"east"}, "what follows is frozen again"


def test_the_site_that_stood_in_goes_on_when_the_other_one_is_well_again() -> None:
    pool = Pool(spec())
    pool.step(after=FREEZE, down=["east"])
    assert pool.step(after=10 * FREEZE) == {"west"}
    assert pool.step(after=1, offline="west") == {"east"}, "an operator brings the slots back"
    assert pool.step(after=1, down=["east"]) == {"east"}, "and grades do not undo that within the freeze"


def test_the_way_back_needs_the_gap_too() -> None:
    pool = Pool(spec())
    pool.step(after=FREEZE, down=["east"])
    assert pool.step({"west": 2}, after=FREEZE) == {"west"}  # 100 against 50
    assert pool.step({"west": 1}, after=1) == {"east"}  # 100 against 25


def test_a_preferred_site_is_back_when_it_is_stable_no_worse_and_the_freeze_is_over() -> None:
    pool = Pool(spec(recovery="prefer_site"))
    pool.step(after=FREEZE, down=["east"])
    assert pool.step(after=FREEZE) == {"west"}
    assert pool.step(after=29) == {"west"}, "it was without its database until 29 s ago"
    assert pool.step(after=1) == {"east"}

    pool.step(after=FREEZE, down=["east"])
    pool.step(after=1)
    assert pool.step(after=100) == {"west"}, "it is stable, but the last switch is 101 s old"
    assert pool.step(after=100) == {"east"}


def test_several_sites_that_stand_by_count_as_the_worst_of_them_since_they_share_the_slots() -> None:
    pool = Pool(spec(), ("east", "west", "north"))
    assert pool.step({"east": 1, "north": 2}, after=FREEZE) == {"east"}
    assert pool.step({"east": 1}, after=1) == {"west", "north"}


def test_sites_that_share_the_slots_are_not_switched() -> None:
    both = {"east": SiteSpec(weight=50), "west": SiteSpec(weight=50)}
    pool = Pool(spec(sites=both))
    assert pool.step({"east": 1}, after=FREEZE) == {"east", "west"}
    assert pool.cluster.table is not None
    assert pool.cluster.table.switch is None


@pytest.mark.parametrize("clock", [0.0, -86_400.0, 86_400.0])
def test_a_new_leader_knows_the_last_switch_and_a_wrong_clock_makes_no_freeze_longer(clock: float) -> None:
    pool = Pool(spec())
    pool.step({"east": 1}, after=FREEZE)
    pool.new_leader(clock)
    serving = pool.step({"west": 1}, after=100)
    assert serving == {"east" if clock > 0 else "west"}, "a clock that is early ends the freeze"
    assert pool.step({"west": 1}, after=FREEZE) == {"east"}


def test_the_moves_say_which_grades_caused_them() -> None:
    pool = Pool(spec())
    pool.step({"east": 1}, after=FREEZE)
    assert pool.cause == "site west serves: east has grade 25, west has grade 100"
    assert (sites_in(pool.cause), is_handover(pool.cause)) == ("west", True)
    assert pool.plan is not None
    assert pool.plan.switches


def test_a_table_without_a_switch_begins_a_freeze_and_one_that_is_no_switch_is_refused() -> None:
    pool = Pool(spec())
    table = pool.cluster.table
    assert table is not None
    pool.cluster = replace(pool.cluster, table=replace(table, switch=None))
    pool.new_leader()
    assert pool.step({"east": 1}, after=10 * FREEZE) == {"east"}
    assert pool.cluster.table is not None
    assert pool.cluster.table.switch == SiteSwitch(("east",), START + 10 * FREEZE)
    for wrong in (b"1", b'{"to":"east","at":1}', b'{"to":["east"],"at":"now"}', b'{"at":1}'):
        with pytest.raises(ValueError, match=r"switch|to|at"):
            Table.decode(b'{"generation":1,"orders":[],"slots":[],"switch":' + wrong + b"}")


MOMENTS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 4), st.booleans()), min_size=30, max_size=60)
"""What a site is like, and for how long in seconds: members that can serve, and whether its database is down."""
WEIGHTS = st.sampled_from([(100, 0), (50, 50)])
RECOVERIES = st.sampled_from(["keep_current", "prefer_site"])


def flapping(weights: tuple[int, int], recovery: str, **more: object) -> Pool:
    sites = {
        site: SiteSpec(weight=weight, needs=("database",))
        for site, weight in zip(("east", "west"), weights, strict=True)
    }
    return Pool(spec(sites=sites, recovery=recovery, **more))


@pytest.mark.parametrize("recovery", ["keep_current", "prefer_site"])
@pytest.mark.parametrize("up", [20, 45])
def test_a_site_that_is_lost_again_and_again_returns_twice_in_ten_minutes_at_the_most(recovery: str, up: int) -> None:
    pool = flapping((50, 50), recovery, site_switch=SiteSwitching())
    pool.step(after=1)
    end = pool.now + 600
    while pool.now < end:
        assert pool.step({"east": 0}, after=1) == {"west"}, "the other site takes over at once"
        pool.step({"east": 0}, after=19)
        for _ in range(up):
            pool.step(after=1)
    assert sum(at < end for at, _ in pool.returns) <= 2


def lost_twice(recovery: str = "keep_current", starting: Sequence[str] = ()) -> tuple[Pool, float]:
    """A pool whose site east is back after it was lost a second time, and when it had its slots back before that."""
    pool = flapping((50, 50), recovery)
    assert pool.step({"east": 0}, after=1, starting=starting) == {"west"}
    pool.step(after=1)
    assert pool.step(after=30) == {"east", "west"}, "the first return is as always"
    assert pool.step({"east": 0}, after=10, starting=starting) == {"west"}
    assert pool.step(after=1) == {"west"}
    ((at, _),) = pool.returns
    return pool, at


@pytest.mark.parametrize("recovery", ["keep_current", "prefer_site"])
@pytest.mark.parametrize("starting", [(), ("east",)])
def test_a_site_that_was_lost_twice_rests_until_the_freeze_ends(recovery: str, starting: Sequence[str]) -> None:
    pool, at = lost_twice(recovery, starting)
    rest = at + FREEZE - pool.now
    assert pool.freeze.seconds_until_end(round((pool.now + 1) * SECOND)) == pytest.approx(rest)
    pool.new_leader()
    pool.step({"east": 0}, after=1, starting=starting)
    pool.step(after=1)
    assert pool.step(after=rest - 3) == {"west"}, "for longer than stable_for"
    assert pool.step(after=1) == {"east", "west"}
    table = pool.cluster.table
    assert table is not None
    assert pool.step(after=10 * FREEZE) == {"east", "west"}
    assert pool.cluster.table is table, "time alone writes no table"
    assert pool.step({"east": 0}, after=1) == {"west"}
    pool.step(after=1)
    assert pool.step(after=30) == {"east", "west"}, "that was long ago"


@pytest.mark.parametrize("recovery", ["keep_current", "prefer_site"])
def test_an_operator_ends_the_rest_of_a_site_at_once_and_that_rest_only(recovery: str) -> None:
    pool, at = lost_twice(recovery)
    assert pool.step(after=1, ended={"east": START + at - 1}) == {"west"}, "that was another one"
    ended = {"east": START + at}
    assert pool.step(after=1, ended=ended) == {"east", "west"}
    assert pool.step({"east": 0}, after=1, ended=ended) == {"west"}
    pool.step(after=1, ended=ended)
    assert pool.step(after=31, ended=ended) == {"west"}


def test_a_site_that_rests_serves_when_no_other_one_can_and_goes_on_then() -> None:
    pool, _ = lost_twice()
    assert pool.step({"west": 0}, after=1) == {"east"}
    assert pool.step(after=1) == {"east", "west"}, "it was the first loss of that one"
    assert pool.step({"east": 0}, after=1) == {"west"}
    assert pool.step(after=1) == {"west"}
    assert pool.step({"west": 0}, after=1) == {"east"}
    assert pool.step(after=1) == {"east"}, "now that one rests too"


@pytest.mark.parametrize("clock", [-86_400.0, 86_400.0])
def test_a_wrong_clock_makes_no_rest_longer_than_a_freeze(clock: float) -> None:
    pool, _ = lost_twice()
    pool.new_leader(clock)
    assert pool.step(after=1) == ({"west"} if clock < 0 else {"east", "west"})
    assert pool.step(after=FREEZE) == {"east", "west"}


def test_sites_that_start_at_the_same_time_or_are_taken_out_have_not_been_lost() -> None:
    pool = flapping((50, 50), "keep_current")
    pool.step({"east": 0, "west": 0}, after=1, starting=["east", "west"])
    pool.step(after=1)
    pool.step(after=1, offline="east")
    pool.step(after=1)
    assert pool.cluster.table is not None
    assert pool.cluster.table.returned == {}


@given(MOMENTS, RECOVERIES, WEIGHTS, st.booleans())
def test_a_site_that_flaps_for_ten_minutes_causes_two_switches_at_the_most(
    moments: list[tuple[int, int, bool]], recovery: str, weights: tuple[int, int], starting: bool
) -> None:
    pool = flapping(weights, recovery, site_switch=SiteSwitching())
    begin = SiteSwitching().freeze
    pool.step(after=begin)
    for seconds, able, down in moments:
        if pool.now + seconds > begin + 600:
            break
        pool.step({"east": able}, after=seconds, down=["east"] if down else [], starting=["east"] if starting else [])
    assert len(pool.returns) <= 2


@given(MOMENTS, MOMENTS, RECOVERIES, WEIGHTS, st.sets(st.integers(0, 29)))
def test_switches_to_a_site_are_a_freeze_apart_however_both_sites_flap_and_whoever_leads(
    east: list[tuple[int, int, bool]],
    west: list[tuple[int, int, bool]],
    recovery: str,
    weights: tuple[int, int],
    elections: set[int],
) -> None:
    pool = flapping(weights, recovery)
    for number, ((seconds, first, no_east), (_, second, no_west)) in enumerate(zip(east, west, strict=False)):
        if number in elections:
            pool.new_leader()
        down = [site for site, lacks in (("east", no_east), ("west", no_west)) if lacks]
        starting = [site for site, odd in (("east", seconds % 2), ("west", seconds % 3)) if odd]
        pool.step({"east": first, "west": second}, after=seconds * 5, down=down, starting=starting)
    for site in ("east", "west"):
        at = [when for when, to in pool.returns if to == site]
        assert all(later - earlier >= FREEZE for earlier, later in pairwise(at))
