"""Practices of a switch of sites: when they may run, when they are stopped, and how they end."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from understudy.deploy.common.operator import this_operator
from understudy.deploy.drill.conditions import DrillKind
from understudy.deploy.drill.measure import EnvoyMeasure
from understudy.deploy.drill.practice import SitePractice, broken
from understudy.deploy.drill.settings import DrillSettings
from understudy.deploy.drill.windows import Window, blocking
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.practice import KEPT, Outcome, Practice, Practices
from understudy.statesync.pool.records import Member, MemberState, Owner
from understudy.statesync.pool.spec_parts import Objectives
from understudy.statesync.pool.state import At, PoolState

DAY = 86400.0


def at(text: str) -> datetime:
    """A moment of the week of Monday 2026-11-23."""
    day, _, hour = text.partition(" ")
    number = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun").index(day)
    return datetime.fromisoformat(f"2026-11-{23 + number}T{hour}:00").replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "start", "minutes", "blocked"),
    [
        ("Mon-Fri 08:00-18:00", "Wed 08:00", 10, True),
        ("Mon-Fri 08:00-18:00", "Wed 18:00", 10, False),
        ("Mon-Fri 08:00-18:00", "Wed 07:55", 10, True),
        ("Mon-Fri 08:00-18:00", "Wed 07:45", 10, False),
        ("Mon-Fri 08:00-18:00", "Sat 12:00", 10, False),
        ("Sat 22:00-06:00", "Sun 05:59", 1, True),
        ("Sat 22:00-06:00", "Sat 05:59", 1, False),
        ("Fri-Mon 00:00-00:00", "Sun 12:00", 1, True),
        ("Fri-Mon 00:00-00:00", "Tue 00:00", 1, False),
        ("08:00-18:00", "Sun 12:00", 1, True),
        ("12:00-12:05", "Sun 11:00", 120, True),
    ],
)
def test_a_practice_does_not_run_into_a_window(window: str, start: str, minutes: int, blocked: bool) -> None:
    assert bool(blocking((Window.parse(window),), at(start), minutes * 60)) is blocked


@pytest.mark.parametrize("text", ["", "Mo 08:00-18:00", "Mon 8-18", "Mon-Fri", "Mon 08:00-25:00", "Xyz 08:00-18:00"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"window|day|hour"):
        Window.parse(text)


def test_few_failures_break_no_objective_and_more_do_where_their_share_is_too_large() -> None:
    wanted = Objectives(failed_requests=0.001)
    seen = ((10, 3), (10, 4), (4000, 4), (3999, 4))
    assert [bool(broken(*one, wanted)) for one in seen] == [False, True, False, True]


def run(days_ago: float, outcome: Outcome) -> Practice:
    return Practice("east", 100 * DAY - days_ago * DAY, 600.0, outcome, "why", 10, 1, 2.5)


def test_only_practices_that_ran_to_their_end_count_as_practised() -> None:
    known = Practices().with_run(run(30, Outcome.SUCCEEDED), 28 * DAY)
    assert known.overdue(100 * DAY)
    assert known.with_run(run(1, Outcome.INTERRUPTED), 28 * DAY).overdue(100 * DAY)
    assert not known.with_run(run(1, Outcome.FAILED), 28 * DAY).overdue(100 * DAY)
    many = known
    for number in range(KEPT + 5):
        many = many.with_run(run(number, Outcome.SUCCEEDED), DAY)
    assert (len(many.runs), many.runs[-1]) == (KEPT, run(KEPT + 4, Outcome.SUCCEEDED))
    assert Practices.decode(many.encode()) == many


class Counted(EnvoyMeasure):
    """Clients whose requests and failures are given."""

    def __init__(self, requests: int, failed: int) -> None:
        super().__init__("127.0.0.1:1", "cart")
        self._seen = (requests, failed)

    async def so_far(self) -> tuple[int, int]:
        return self._seen


def pool(owners: Sequence[str], **states: MemberState) -> PoolState:
    state = PoolState(PoolKeys("cart"))
    for name, site in (("e1", "east"), ("w1", "west")):
        member = Member(name, f"boot of {name}", "", "", states.get(name, MemberState.UP), site=site)
        state.members[name] = At(member, 1)
    for slot, owner in enumerate(owners):
        state.owners[slot] = At(Owner(owner, f"boot of {owner}", 1), 1)
    return state


@pytest.mark.parametrize(
    ("later", "failed", "outcome", "why"),
    [
        (pool(["w1", "w1"]), 0, Outcome.SUCCEEDED, ""),
        (pool(["w1", "e1"]), 0, Outcome.FAILED, "site east did not hand all its slots over in time"),
        (pool(["w1", "w1"]), 9, Outcome.INTERRUPTED, "9 of 100 requests failed (objective 0.100%)"),
        (pool(["w1", "e1"], w1=MemberState.DOWN), 0, Outcome.INTERRUPTED, "w1 on another site can no longer serve"),
        (pool(["w1", "w1"], e1=MemberState.DOWN), 0, Outcome.SUCCEEDED, ""),
    ],
)
async def test_a_practice_ends_as_what_happened_meanwhile(
    later: PoolState, failed: int, outcome: Outcome, why: str
) -> None:
    async def read() -> PoolState:
        return later

    settings = DrillSettings(DrillKind.SITE_OFFLINE, site="east", seconds=0.1)
    async with EtcdClient(["127.0.0.1:1"]) as etcd:
        practice = SitePractice(settings, etcd, this_operator("drill", EtcdSettings()))
        practice.site = "east"
        await practice.hold(pool(["e1", "w1"]), read, Counted(100, failed))
    assert (practice.outcome, practice.why) == (outcome, why)
    missed = practice.judge(("rto p99: 9 ms",))
    assert practice.outcome is (Outcome.FAILED if outcome is Outcome.SUCCEEDED else outcome)
    assert missed[0] == "rto p99: 9 ms"


def test_the_command_that_repeats_a_practice_names_the_site() -> None:
    settings = replace(DrillSettings(DrillKind.SITE_OFFLINE), seconds=600.0)
    assert settings.command_again("cart", "east") == "understudy drill site-offline --site east --for 600s --pool cart"
