"""The session protocol under faults, in the small: a round with each kind of takeover, and the stories worth a name.

The long version is ``make chaos MINUTES=30``. A failure names its seed; faults are drawn from it again, but processes
run as they please, so a repetition is likely to differ. The history of a failed round is kept beside the test's logs.
"""

import contextlib
import os
import random
from collections.abc import AsyncIterator

import pytest

from tests.faults.clients import CLASSES
from tests.faults.nemesis import FAULTS, REPLICA_FAULTS, Fault, Harm, killed_etcd, paused_member
from tests.faults.pool import DEBIAN_ETCD, fault_pool
from tests.faults.rounds import Result, play
from tests.harness.lateness import lateness
from tests.harness.waiting import until

SECONDS = 20.0
ETCD_KILLS = frozenset({"kill -9 of etcd", "kill -9 of etcd's leader", "loss of etcd's quorum"})
NO_SAFE_ETCD = f"{DEBIAN_ETCD} is not installed, and the embedded etcd 3.5.1 may lose data when killed under load"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    """A fresh seed, in CI the test's own name; pytest shows it when the test fails."""
    drawn = request.node.name if "CI" in os.environ else f"{random.SystemRandom().randrange(10**6)}"
    print(f"seed {drawn}")  # noqa: T201 - how to have the same faults again
    return drawn


def faults_for_this_etcd(faults: tuple[Fault, ...] = FAULTS) -> tuple[Fault, ...]:
    """All of these; without a safe etcd those that do not kill it."""
    return tuple(fault for fault in faults if DEBIAN_ETCD.exists() or fault.name not in ETCD_KILLS)


def verdict(result: Result, tmp_path) -> str:
    """The violations as text; the history is kept if there are any."""
    if result.violations:
        result.history.dump(tmp_path / "history.jsonl")
    return "\n".join(str(violation) for violation in result.violations)


@pytest.mark.parametrize("takeover", ["fast", pytest.param("lease", marks=pytest.mark.nightly)])
async def test_every_promise_holds_under_random_faults(takeover, seed, tmp_path):
    async with fault_pool(takeover=takeover, home=tmp_path) as pool:
        result = await play(pool, seed, seconds=SECONDS, faults=faults_for_this_etcd())
    assert verdict(result, tmp_path) == ""
    assert result.outcomes["put ok"] > 20
    assert result.faults


@pytest.mark.nightly
@pytest.mark.parametrize("takeover", ["fast", "lease"])
async def test_every_class_of_durability_keeps_its_promise_under_random_faults(takeover, seed, tmp_path):
    faults = faults_for_this_etcd(REPLICA_FAULTS)
    async with fault_pool(takeover=takeover, home=tmp_path, more="durability: replicas") as pool:
        result = await play(pool, seed, seconds=SECONDS, faults=faults, durabilities=CLASSES)
    assert verdict(result, tmp_path) == ""
    answered = {op.durability for op in result.history.ops}
    assert {"async", "replicas", "sync"} <= answered
    assert result.faults


@pytest.mark.nightly
async def test_an_owner_that_sleeps_through_its_takeover_breaks_nothing(seed, tmp_path):
    naps = (Fault("pause of a sidecar", 0.5, 3.0, 1, _overslept),)
    async with fault_pool(takeover="lease", home=tmp_path) as pool:
        result = await play(pool, seed, seconds=12.0, faults=naps)
    assert verdict(result, tmp_path) == ""
    assert any(" lost: " in change.cause for change in result.history.owners)


@pytest.mark.nightly
@pytest.mark.skipif(not DEBIAN_ETCD.exists(), reason=NO_SAFE_ETCD)
async def test_killing_etcd_again_and_again_loses_nothing_and_moves_nothing(seed, tmp_path):
    kills = (Fault("kill -9 of etcd", 0.1, 1.0, 1, killed_etcd),)
    async with fault_pool(takeover="fast", home=tmp_path) as pool:
        before = len(pool.owner_changes)
        result = await play(pool, seed, seconds=10.0, faults=kills)
    assert verdict(result, tmp_path) == ""
    assert pool.takeovers(before) == []


async def test_a_quiet_pool_moves_no_slot_and_refuses_nobody(seed, tmp_path):
    nothing = (Fault("nothing", 1.0, 2.0, 1, _no_harm),)
    async with fault_pool(takeover="fast", home=tmp_path) as pool:
        settled = len(pool.owner_changes)
        with lateness() as late:
            result = await play(pool, seed, seconds=4.0, faults=nothing)
    attempts = [attempt for op in result.history.ops for attempt in op.attempts]
    assert verdict(result, tmp_path) == ""
    assert pool.moves(settled) == []
    if not late.busy:  # else a member may have stood still, and whoever waited for it was refused
        assert not pool.silence(settled)
        assert [a for a in attempts if a.status == 503 or (not a.status and not a.note.startswith("no answer"))] == []


@contextlib.asynccontextmanager
async def _overslept(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """A pause of a sidecar. The first one lasts until others have its slots: a busy pool is patient."""
    async with paused_member(harm) as (name,):
        yield (name,)
        if not any(" lost: " in change.cause for change in harm.pool.owner_changes):
            await until(lambda: harm.pool.owns_nothing(name), 40, f"{name} is replaced")


@contextlib.asynccontextmanager
async def _no_harm(_: Harm) -> AsyncIterator[tuple[str, ...]]:
    yield ()
