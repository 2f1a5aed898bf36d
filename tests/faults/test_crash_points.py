"""A sidecar ends at each of its named crash points while clients are at work, and the checker decides.

The pool has no control server: the test writes the slot table, so that each story leads to its point and nowhere else.
All slots belong to ``m1`` with ``m2`` as standby at the beginning of each.
"""

import logging
import signal
from dataclasses import dataclass

import pytest

from tests.faults.history import History
from tests.faults.judged import judged_clients
from tests.faults.pool import FaultPool, fault_pool
from tests.harness.waiting import until
from understudy.proxy.ownership.handover import SLOTS_TOGETHER
from understudy.statesync.testing.crash_points import VARIABLE, CrashPoint, UnknownCrashPoint, arm_from_environment

FIRST, SECOND, THIRD = "m1", "m2", "m3"
AS_USUAL = (FIRST, SECOND, THIRD)
THE_OTHER_WAY = (SECOND, FIRST, THIRD)
PATIENCE = 90.0
WRITE_DECIDED, WRITE_COMMITTED = CrashPoint.WRITE_DECIDED, CrashPoint.WRITE_COMMITTED
CLAIM_DECIDED, CLAIM_WON, SYNC_PAGE = CrashPoint.CLAIM_DECIDED, CrashPoint.CLAIM_WON, CrashPoint.SYNC_PAGE
HANDOVERS = [point for point in CrashPoint if point.startswith("handover.")]
OPERATIONS_WITHOUT = 20
"""Operations of clients after a member has ended, before it is started again."""


@dataclass
class Stage:
    """A pool, what its clients did, and the test's way to lead it to a point."""

    pool: FaultPool
    history: History

    async def played(self, point: CrashPoint) -> None:
        """Lead the pool to ``point`` once, and have a member end there; then all is as before."""
        order = AS_USUAL
        match point:
            case CrashPoint.WRITE_DECIDED | CrashPoint.WRITE_COMMITTED:
                member = await self._armed(FIRST, f"{point}:5")
            case CrashPoint.SYNC_PAGE:
                for program in self.pool.members.values():
                    program.kill()  # nobody has a copy, so who claims reads etcd
                member, order = await self._armed(SECOND, f"{point}:3"), THE_OTHER_WAY
            case CrashPoint.CLAIM_DECIDED | CrashPoint.CLAIM_WON:
                member = await self._armed(SECOND, point)
                await self._ready(SECOND)
                self.pool.members[FIRST].kill()
            case CrashPoint.HANDOVER_CLOSED | CrashPoint.HANDOVER_FENCED | CrashPoint.HANDOVER_CONFIRMED:
                member, order = await self._armed(FIRST, f"{point}:3"), THE_OTHER_WAY
                await self._as_usual()
            case CrashPoint.TARGET_ASKED | CrashPoint.TARGET_ACTIVE:
                member, order = await self._armed(SECOND, f"{point}:3"), THE_OTHER_WAY
                await self._ready(SECOND)
            case CrashPoint.UNDO_DECIDED:
                member, order = await self._armed(FIRST, point), THE_OTHER_WAY
                await self._as_usual()
                await self._armed(SECOND, f"{CrashPoint.TARGET_ASKED}:2")
                await self._ready(SECOND)

        async def ended() -> bool:
            await self.pool.write_table([order])
            return not self.pool.members[member].runs

        await until(ended, PATIENCE, f"{member} ends at {point}", every=0.3)
        process = self.pool.members[member].process
        assert process is not None
        assert process.returncode == -signal.SIGKILL
        begun = len(self.history.ops) + OPERATIONS_WITHOUT
        await until(lambda: len(self.history.ops) >= begun, PATIENCE, "clients meet the pool without it")
        for program in self.pool.members.values():
            if not program.runs:
                program.start()
        await self._as_usual()

    async def _armed(self, name: str, crash_at: str) -> str:
        member = self.pool.members[name]
        member.kill()
        member.start(**{VARIABLE: crash_at})
        return name

    async def _ready(self, name: str) -> None:
        async def ready() -> bool:
            status = await self.pool.status(name)
            return status["state"] in ("READY", "UP") and status["in_sync"] == self.pool.spec.slots

        await until(ready, PATIENCE, f"{name} is in sync")

    async def _as_usual(self) -> None:
        """Have the first member own everything; a table that is older than a takeover would change nothing."""

        async def owning() -> bool:
            owners = await self.pool.owners()
            status = await self.pool.status(FIRST)
            elsewhere = [slot for slot, at in owners.items() if (at.active, at.phase) != (FIRST, "stable")]
            if not elsewhere and len(status["active"]) == self.pool.spec.slots:
                return True
            await self.pool.write_table([AS_USUAL])
            raise LookupError(f"not with {FIRST}: {elsewhere}; its status: {status}")

        await self.pool.write_table([AS_USUAL])  # else the table before goes on moving slots
        await until(owning, PATIENCE, f"{FIRST} owns all slots", every=0.3)


@pytest.mark.parametrize(
    ("takeover", "points"),
    [
        pytest.param("fast", [WRITE_DECIDED, WRITE_COMMITTED, CLAIM_WON], id="writes and claims"),
        pytest.param("fast", [CLAIM_DECIDED, SYNC_PAGE], id="claims and copies", marks=pytest.mark.nightly),
        pytest.param("lease", HANDOVERS, id="handovers", marks=pytest.mark.nightly),
    ],
)
async def test_a_sidecar_that_ends_at_any_named_point_breaks_no_promise(takeover, points, tmp_path):
    async with (
        fault_pool(takeover=takeover, controls=0, slots=3 * SLOTS_TOGETHER, home=tmp_path) as pool,
        judged_clients(pool) as history,
    ):
        stage = Stage(pool, history)
        for point in points:
            await stage.played(point)
    assert sum(op.writes and op.outcome == "ok" for op in history.ops) > 50


def test_nothing_is_armed_by_default(monkeypatch, caplog):
    monkeypatch.delenv(VARIABLE, raising=False)
    with caplog.at_level(logging.WARNING):
        arm_from_environment()
    assert caplog.text == ""


@pytest.mark.parametrize("wrong", ["write", "write.decided:0", "write.decided:often"])
async def test_a_sidecar_that_is_asked_to_crash_nowhere_does_not_start(wrong, monkeypatch):
    monkeypatch.setenv(VARIABLE, wrong)
    with pytest.raises(UnknownCrashPoint, match=r"handover\.fenced"):
        arm_from_environment()
