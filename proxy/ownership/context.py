"""What the parts of one sidecar share: identity, clients, the pool as seen from here, and what is held and owned."""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from understudy.proxy.events.claim_progress import FirstAnswers
from understudy.proxy.events.counters import Tally
from understudy.proxy.events.handover_latency import HeldUp
from understudy.proxy.events.incarnation import Lives
from understudy.proxy.events.split_brain_audit import Writers
from understudy.proxy.health.loop_lag import StallWatch
from understudy.proxy.ownership.etcd_contact import EtcdContact
from understudy.proxy.ownership.owned_slots import Holdings
from understudy.proxy.peers.peer_client import Peer, PeerClient
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.informer import Mirror
from understudy.statesync.heartbeat.adaptive_timeout import adaptive_timeout
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.ownership import FailoverLog, View
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.pool.records import Member, Table
from understudy.statesync.pool.spec import Liveness
from understudy.statesync.pool.state import PoolState
from understudy.statesync.sessions.commit import Committer
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.request_log import RequestLog
from understudy.telemetry.tracing.ids import TraceIds, TraceparentError, takeover_seed
from understudy.telemetry.tracing.setup import Telemetry

_MET_KEPT = 8


@dataclass(slots=True)
class MemberContext:
    """One running member; made once at start, and every field stays the same object.

    ``seen`` tells whose pulse is taken here, and whether it runs. ``clock`` tells the pool's time. ``met`` has the
    boots of each member that were registered in the life of this one. ``going_down``: this process was told to end.
    """

    me: str
    boot: str
    keys: PoolKeys
    etcd: EtcdClient
    state: PoolState
    mirror: Mirror
    replica: Replica
    requests: RequestLog
    holdings: Holdings
    committer: Committer
    peers: PeerClient
    telemetry: Telemetry
    first_answers: FirstAnswers
    held_up: HeldUp
    writers: Writers
    failovers: FailoverLog
    stall: StallWatch
    site: str = ""
    addresses: dict[str, str] = field(default_factory=dict)
    known: dict[str, Member] = field(default_factory=dict)
    met: dict[str, deque[str]] = field(default_factory=dict)
    going_down: bool = False
    lives: Lives = field(default_factory=Lives)
    seen: Callable[[], Mapping[tuple[str, str], bool]] = dict
    tally: Tally = field(default_factory=Tally)
    clock: PoolClock = field(default_factory=PoolClock)
    contact: EtcdContact = field(default_factory=EtcdContact)

    def view(self) -> View:
        """What ownership decisions are made from, as of now."""
        at = self.state.table
        table, revision = (at.record, at.revision) if at else (Table(), 0)
        return View(self.me, self.boot, table, revision, self.state.owners, self.state.members)

    def peer(self, member: str) -> Peer | None:
        """Where a member's peer API is, or last was if its record is gone; None if it never was seen."""
        record = self.state.members.get(member)
        if record is not None:
            self.addresses[member] = record.record.peer
            self.known[member] = record.record
            met = self.met.setdefault(member, deque(maxlen=_MET_KEPT))
            if record.record.boot not in met:
                met.append(record.record.boot)
        address = self.addresses.get(member)
        return Peer(member, address) if address else None

    def stop_or_start(self, member: str, boot: str) -> bool:
        """Whether a takeover from ``boot`` of ``member`` belongs to a stop or a start of the pool, or of this member.

        So it does when this process is going down itself, or has never met the one that it replaces.
        """
        self.peer(member)
        return self.going_down or boot not in self.met.get(member, ())

    @property
    def liveness(self) -> Liveness:
        """When silence counts, by the spec in force."""
        return self.state.spec.record.liveness if self.state.spec else Liveness()

    def patience(self, member: str) -> float:
        """Seconds of silence towards probes that count against ``member``: more while it, or this process, is late.

        Busy is not dead. What a member's own delays are, its record tells. One that runs, as its pulse shows, is given
        as long as an application.
        """
        at = self.state.members.get(member)
        delay = max(self.stall.worst, at.record.stall if at else 0.0)
        rules = self.liveness
        runs = at is not None and self.seen().get((member, at.record.boot), False)
        usual = max(rules.unanswered_ms, rules.application_ms) if runs else rules.unanswered_ms
        return adaptive_timeout(usual / 1000, delay, rules.load_cap_ms / 1000)

    def takeover_of(self, member: str, boot: str) -> TraceIds:
        """The trace of the takeover of a member's process: as the table says, or else as everybody can tell."""
        lost = self.view().table.lost.get(member)
        if lost is not None and lost.boot == boot:
            with contextlib.suppress(TraceparentError):
                return TraceIds.from_traceparent(lost.traceparent)
        self.peer(member)
        record = self.known.get(member)
        return takeover_seed(self.keys.pool, member, boot, record.life if record and record.boot == boot else 0)
