"""Who stands first, and what is handed over. Pure; ``test_many_pools.py`` has it with real control servers."""

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from understudy.xds.control.leader_balance import (
    LONGEST_DELAY,
    STANDING_STEP,
    PoolLead,
    Sightings,
    leads_of,
    standing_delay,
    to_hand_over,
)

SETTLED = 10.0
NOW = 100.0


def lead(pool: str, leader: str, *replicas: str, since: float = 0.0, at_rest: bool = True) -> PoolLead:
    return PoolLead(pool, leader, dict.fromkeys(replicas, since), at_rest)


@dataclass
class World:
    """Replicas that follow the rules, and the leaders of some pools."""

    leaders: dict[str, str]
    replicas: list[str]

    def seen(self) -> list[PoolLead]:
        return [lead(pool, leader, *self.replicas) for pool, leader in self.leaders.items()]

    def elect(self, pool: str, gone: str, leads: Counter[str]) -> None:
        """The replica that waits the shortest leads."""
        delays = {name: standing_delay(name, pool, gone, self.replicas, leads) for name in self.replicas}
        self.leaders[pool] = min(delays, key=delays.__getitem__)

    def round(self, acting: list[str]) -> int:
        """These replicas look at the same moment, and hand over what they want to; how many pools that were."""
        seen = self.seen()
        handed = [(pool, me) for me in acting for pool in to_hand_over(me, seen, NOW, SETTLED)]
        leads = leads_of(seen)
        for pool, me in handed:
            self.elect(pool, me, leads)
            leads = leads_of(self.seen())
        return len(handed)

    def at_rest(self) -> bool:
        """Whether no replica wants to hand a pool over, so that no round changes anything."""
        seen = self.seen()
        return not any(to_hand_over(name, seen, NOW, SETTLED) for name in self.replicas)

    def spread(self) -> int:
        counts = leads_of(self.seen())
        return max(counts[name] for name in self.replicas) - min(counts[name] for name in self.replicas)


@given(st.integers(1, 5), st.integers(0, 60), st.randoms(use_true_random=False))
def test_leaders_even_out_and_stay_however_they_begin(replicas: int, pools: int, luck: random.Random) -> None:
    names = [f"control-{number}" for number in range(replicas)]
    world = World({f"pool-{number}": luck.choice(names) for number in range(pools)}, names)
    for _ in range(200):
        acting = [name for name in names if luck.random() < 0.6]
        world.round(acting)
        if world.at_rest():
            break
    assert world.spread() <= 1
    assert world.at_rest()


@given(st.integers(2, 5), st.integers(0, 60), st.randoms(use_true_random=False))
def test_the_pools_of_a_dead_replica_are_spread_and_no_others_move(
    replicas: int, pools: int, luck: random.Random
) -> None:
    names = [f"control-{number}" for number in range(replicas)]
    world = World({f"pool-{number}": luck.choice(names) for number in range(pools)}, names)
    before, dead = dict(world.leaders), names[0]
    world.replicas = names[1:]
    orphans = [pool for pool, leader in before.items() if leader == dead]
    for pool in orphans:
        world.elect(pool, dead, leads_of(one for one in world.seen() if one.leader != dead))
    assert dead not in world.leaders.values()
    assert {pool: leader for pool, leader in world.leaders.items() if pool not in orphans} == {
        pool: leader for pool, leader in before.items() if pool not in orphans
    }


def test_who_leads_the_fewest_stands_at_once_and_nobody_waits_for_the_one_that_is_gone() -> None:
    leads = Counter({"a": 3, "b": 1, "c": 2})
    delays = [standing_delay(me, "p", "b", ("a", "b", "c"), leads) for me in ("c", "a", "b")]
    assert delays == [0.0, STANDING_STEP, 2 * STANDING_STEP]
    assert standing_delay("a", "p", "b", ("b",), leads) == 0.0
    many = [f"r{number}" for number in range(20)]
    assert max(standing_delay(me, "p", "", many, leads) for me in many) == LONGEST_DELAY


def test_nothing_is_handed_to_a_replica_that_has_just_come_or_while_slots_move() -> None:
    pools = [lead(name, "a", "a", "b", since=NOW - 5) for name in "wxyz"]
    assert to_hand_over("a", pools, NOW, SETTLED) == []
    assert len(to_hand_over("a", pools, NOW + 5, SETTLED)) == 2
    assert to_hand_over("a", [lead(name, "a", "a", "b", at_rest=False) for name in "wxyz"], NOW, SETTLED) == []


def test_a_pool_goes_only_to_a_replica_that_serves_it() -> None:
    pools = [lead("x", "a", "a"), lead("y", "a", "a"), lead("z", "a", "a", "b")]
    assert to_hand_over("a", pools, NOW, SETTLED) == ["z"]


def test_a_replica_whose_record_was_written_again_was_away() -> None:
    sightings = Sightings()
    assert sightings.update("p", {"a": 1, "b": 2}, 10.0) == {"a": 10.0, "b": 10.0}
    assert sightings.update("p", {"a": 1, "b": 7}, 20.0) == {"a": 10.0, "b": 20.0}
    assert sightings.update("p", {"b": 7}, 30.0) == {"b": 20.0}
    assert sightings.update("p", {"a": 1, "b": 7}, 40.0) == {"a": 40.0, "b": 20.0}
