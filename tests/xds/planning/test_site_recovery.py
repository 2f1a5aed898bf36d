"""What a site gets when it is back: ``recovery`` in a pool with ``sites``, over the tables that follow each other."""

from dataclasses import replace

from understudy.statesync.pool.records import Member, MemberState, Owner, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import SiteSpec
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.member_health import SECOND
from understudy.xds.planning.plan import next_plan
from understudy.xds.planning.recovery import Recovery

SITES = {"e-1": "east", "e-2": "east", "w-1": "west", "w-2": "west"}
UP, LOST, INIT = MemberState.UP, MemberState.LOST, MemberState.INIT
ALL = frozenset((name, "one") for name in SITES)


def spec(recovery="keep_current", **weights):
    sites = {site: SiteSpec(weight=weight) for site, weight in weights.items()}
    return PoolSpec(pool="cart", slots=8, recovery=recovery, sites=sites)


class Pool:
    """A pool whose owner records follow each table at once."""

    def __init__(self, spec):
        members = {name: Member(name, "one", "127.0.0.1:7", "127.0.0.1:1", UP, site) for name, site in SITES.items()}
        boots = dict.fromkeys(SITES, "one")
        self.cluster = ClusterState(spec, members, dict.fromkeys(SITES, UP), boots, {}, None, {}, ALL)
        self.step()

    def step(self, *, settled=(), offline=(), spec=None, **states):
        """The sites that serve after the next table. ``states`` are those of all members of a site."""
        known = {name: states.get(site, self.cluster.states[name]) for name, site in SITES.items()}
        beating = frozenset((name, "one") for name, state in known.items() if state is not LOST)
        cluster = replace(self.cluster, states=known, beating=beating, offline=frozenset(offline))
        self.cluster = replace(cluster, spec=spec or cluster.spec)
        plan = next_plan(self.cluster, 0.0, settled=settled)
        if plan is not None:
            table = Table.decode(plan.table.encode())
            owners = {slot: Owner(order[0], "one", table.generation) for slot, order in enumerate(table.orders)}
            self.cluster = replace(self.cluster, table=table, owners=owners)
        assert next_plan(self.cluster, 0.0, settled=settled) is None
        return {SITES[owner.active] for owner in self.cluster.owners.values()}


def test_active_standby_stays_on_the_other_site_until_an_operator_moves_it():
    pool = Pool(spec(east=100, west=0))

    assert pool.step(east=LOST) == {"west"}
    assert pool.step(east=INIT) == {"west"}
    assert pool.step(east=UP, settled=SITES) == {"west"}
    assert pool.step(offline=["west"]) == {"east"}
    assert pool.step(offline=[]) == {"east"}


def test_another_weight_moves_it_too():
    pool = Pool(spec(east=100, west=0))
    pool.step(east=LOST)

    assert pool.step(east=UP) == {"west"}
    assert pool.step(spec=spec(east=90, west=0)) == {"east"}


def test_active_active_gets_its_share_back_at_once():
    pool = Pool(spec(east=50, west=50))

    assert pool.step(east=LOST) == {"west"}
    assert pool.step(east=UP) == {"east", "west"}


def test_a_preferred_site_is_back_when_all_its_members_are_stable_and_in_sync():
    pool = Pool(spec("prefer_site", east=50, west=50))

    assert pool.step(east=LOST) == {"west"}
    assert pool.step(east=UP) == {"west"}
    assert pool.step(settled=["e-1"]) == {"west"}
    assert pool.step(settled=["e-1", "e-2"]) == {"east", "west"}
    assert pool.step(settled=[]) == {"east", "west"}


def test_the_last_site_serves_whether_it_is_preferred_or_not():
    pool = Pool(spec("prefer_site", east=100, west=0))
    pool.step(east=LOST)

    assert pool.step(east=UP, west=LOST) == {"east"}


def test_a_site_that_an_operator_took_out_gets_its_slots_back_at_once():
    pool = Pool(spec(east=100, west=0))

    assert pool.step(offline=["east"]) == {"west"}
    assert pool.step(offline=[]) == {"east"}


def test_a_site_that_has_not_started_yet_is_not_lost():
    pool = Pool(spec(east=100, west=0))

    assert pool.step(east=INIT) == {"west"}
    assert pool.step(east=UP) == {"east"}


def test_the_leader_looks_again_when_the_members_of_a_resting_site_are_due():
    pool = Pool(spec("prefer_site", east=50, west=50))
    pool.step(east=LOST)
    pool.step(east=UP)
    memory = Recovery().observe(pool.cluster, (), SECOND)

    assert set(memory.waiting(pool.cluster)) == {"e-1", "e-2"}
    assert memory.seconds_until_due(pool.cluster, SECOND) == 30
    assert memory.observe(pool.cluster, ALL, 31 * SECOND).members() == frozenset(SITES)
