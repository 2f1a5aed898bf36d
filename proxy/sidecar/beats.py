"""What this member's heartbeats say, and what it learns from the answers."""

from collections.abc import Callable

from understudy.proxy.events.claim_progress import ClaimProgress
from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.peers.predecessor_monitor import PredecessorMonitor
from understudy.statesync.heartbeat.heartbeat import Beat, BeatAnswer
from understudy.statesync.heartbeat.load_report import LoadReport
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.pool.records import Member


class Beats:
    """Makes the beats; ``record`` is the member as it is now, ``now_ns`` the clock of its spans, ``load`` its load."""

    def __init__(
        self,
        pool: PoolView,
        copies: LocalCopies,
        record: Callable[[], Member],
        loop_lag: LoopLag,
        clock: PoolClock,
        claims: ClaimProgress,
        monitor: PredecessorMonitor,
        now_ns: Callable[[], int],
        load: Callable[[], LoadReport | None],
    ) -> None:
        self._pool = pool
        self._copies = copies
        self._record = record
        self._loop_lag = loop_lag
        self._clock = clock
        self._claims = claims
        self._monitor = monitor
        self._now_ns = now_ns
        self._load = load

    def controls(self) -> set[str]:
        """Where the control servers are."""
        return {at.record.grpc for at in self._pool.state.controls.values()}

    def beat(self, with_load: bool) -> Beat:
        """The beat to send now; ``with_load``: it also reports the load."""
        record = self._record()
        return Beat(
            pool=self._pool.identity.keys.pool,
            member=record.member,
            boot=record.boot,
            state=record.state,
            applied=self._copies.informer.revision,
            reason=record.reason,
            stall=round(self._loop_lag.worst, 3),
            lacking=len(self._pool.assigned() - self._copies.replica.synced),
            sent=self._now_ns(),
            claims=self._claims.told(),
            request=self._claims.last_request,
            pulses=[(*who, runs) for who, runs in self._monitor.seen.items()],
            answers=True,
            stood=self._loop_lag.standstills(),
            load=self._load() if with_load else None,
        )

    def answered(self, address: str, answer: BeatAnswer) -> None:
        """A control server answered with its clock, which it read between the beat that it answers and now."""
        now = self._clock.passed()
        asked = now - max(self._now_ns() - answer.sent, 0) / 1e9
        self._clock.heard(address, answer.clock, asked, now)
