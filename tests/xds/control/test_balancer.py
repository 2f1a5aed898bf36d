"""Automatic rebalancing: only in mode auto, only what is wanted twice, and within the budget of moves an hour."""

from dataclasses import replace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from understudy.statesync.heartbeat.load_report import LoadReport, SlotLoad
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.rebalance import MovePlan, MoveProgress, PlanState
from understudy.statesync.pool.records import Member, MemberState, Owner, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Balance
from understudy.statesync.pool.state import At
from understudy.xds.control.balancer import HOUR, Balancer, recent
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.load_book import LoadBook

OWNERS = "aaaaaaaabbbbcccc"
NOW = 1_000_000.0


def a_pool(balance: Balance) -> ClusterState:
    """Slots of a are busy, all others are not."""
    return ClusterState(
        spec=PoolSpec(pool="cart", slots=len(OWNERS), balance=balance),
        members={name: Member(name, "one", "127.0.0.1:7000", "127.0.0.1:1", MemberState.UP) for name in "abc"},
        states=dict.fromkeys("abc", MemberState.UP),
        registered=dict.fromkeys("abc", "one"),
        owners={slot: Owner(name, "one", 1) for slot, name in enumerate(OWNERS)},
        table=Table(5, tuple((name, *(other for other in "abc" if other != name)) for name in OWNERS)),
        deaths={},
        beating=frozenset(),
    )


class Scene:
    """A balancer over a pool, and what it writes."""

    def __init__(self, balance: Balance, calls: float = 10.0, *, leads: bool = True) -> None:
        book = LoadBook()
        for name in "abc":
            slots = [SlotLoad(slot, calls, 1, 1) for slot, owner in enumerate(OWNERS) if owner == name]
            book.on_report((name, "one"), LoadReport(slots=slots), 0)
        self.client = MagicMock(txn=AsyncMock(return_value=MagicMock(succeeded=True)))
        self.state = MagicMock(move_progress=None, table=MagicMock(revision=7))
        builder = MagicMock(state=self.state)
        builder.current.side_effect = lambda: a_pool(balance)
        self.balancer = Balancer(
            self.client, PoolKeys("cart"), MagicMock(is_leader=leads), builder, lambda: book.current(1), "control-1"
        )

    def written(self) -> tuple[MovePlan, MoveProgress] | None:
        """The plan and its progress; None if nothing was written."""
        if not self.client.txn.await_count:
            return None
        puts: list[Any] = self.client.txn.await_args.args[1]
        return MovePlan.decode(puts[0].value), MoveProgress.decode(puts[1].value)


AUTO = Balance(by="requests", mode="auto", moves_per_hour=3)


async def test_a_plan_that_is_wanted_twice_is_approved_within_the_budget() -> None:
    scene = Scene(AUTO.model_copy(update={"moves_per_hour": 1}))
    await scene.balancer.look(NOW)
    assert scene.written() is None
    await scene.balancer.look(NOW + 30)
    written = scene.written()
    assert written is not None
    plan, progress = written
    assert (len(plan.moves), plan.automatic, plan.who, plan.by, plan.generation) == (
        1,
        True,
        "control-1",
        "requests",
        5,
    )
    assert progress == MoveProgress(plan.plan, PlanState.RUNNING, spent=((NOW + 30, 1),))


@pytest.mark.parametrize(("spent", "left"), [(((NOW - 10, 3),), 0), (((NOW - HOUR, 3),), 2)])
async def test_what_was_spent_within_the_hour_counts(spent: tuple[tuple[float, int], ...], left: int) -> None:
    scene = Scene(AUTO)
    scene.state.move_progress = At(MoveProgress("old", PlanState.DONE, 3, spent=spent), 9)
    await scene.balancer.look(NOW - 30)
    await scene.balancer.look(NOW + 1)
    written = scene.written()
    assert (len(written[0].moves) if written else 0) == left


async def test_mode_plan_only_tells() -> None:
    scene = Scene(AUTO.model_copy(update={"mode": "plan"}))
    for _ in range(3):
        await scene.balancer.look(NOW)
    assert scene.balancer.proposal is not None
    assert len(scene.balancer.proposal.moves) == 2
    assert scene.written() is None


async def test_nothing_is_proposed_in_mode_off_or_by_another_than_the_leader_or_while_a_plan_runs() -> None:
    running = Scene(AUTO)
    running.state.move_progress = At(MoveProgress("p", PlanState.RUNNING), 9)
    for scene in (Scene(AUTO.model_copy(update={"mode": "off"})), Scene(AUTO, leads=False), running):
        for _ in range(3):
            await scene.balancer.look(NOW)
        assert (scene.balancer.proposal, scene.written()) == (None, None)


async def test_an_idle_pool_is_left_alone() -> None:
    scene = Scene(AUTO, calls=0.01)
    for _ in range(3):
        await scene.balancer.look(NOW)
    assert scene.written() is None


def test_a_budget_forgets_what_is_older_than_an_hour() -> None:
    spent = ((NOW - HOUR - 1, 5), (NOW - 5, 2))
    assert recent(spent, NOW) == ((NOW - 5, 2),)
    assert replace(MoveProgress("p", "done"), spent=spent).spent == spent
