"""The parts of a running sidecar, for what reads many of them: status, metrics, HTTP ports and tests."""

from dataclasses import dataclass

from understudy.proxy.events.recorder import Recorder
from understudy.proxy.health.app_health_check import AppHealthCheck
from understudy.proxy.health.check_registry import CheckRegistry
from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.health.resource_watch import ResourceWatch
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.drain import Drain
from understudy.proxy.ownership.handover import Handover
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.ownership.read_deadline import ReadDeadline
from understudy.proxy.ownership.slot_reconciler import SlotReconciler
from understudy.proxy.ownership.takeovers import Takeovers
from understudy.proxy.peers.anti_entropy import AntiEntropy
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.peers.predecessor_monitor import PredecessorMonitor
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.proxy.sessions.async_writes import AsyncWrites
from understudy.proxy.sessions.load_shedding import LoadShedder
from understudy.proxy.sessions.overwrite_log import OverwriteLog
from understudy.proxy.sessions.owner_writes import OwnerWrites
from understudy.proxy.sessions.routing import OwnerRouter
from understudy.proxy.sessions.service import SessionService
from understudy.proxy.sidecar.load_meter import LoadMeter
from understudy.proxy.sidecar.member_state import MemberStatus
from understudy.proxy.sidecar.name_holder import NameHolder
from understudy.proxy.sidecar.registration import Registration
from understudy.proxy.sidecar.site_watch import SiteWatch
from understudy.proxy.sidecar.take_over_watch import TakeOverWatch
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.sessions.commit import Committer


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What a sidecar consists of; ``assembly`` puts it together."""

    pool: PoolView
    copies: LocalCopies
    owned: OwnedSlots
    clock: PoolClock
    loop_lag: LoopLag
    load: LoadMeter
    recorder: Recorder
    client: PeerClient
    monitor: PredecessorMonitor
    reads: ReadDeadline
    check: AppHealthCheck
    checks: CheckRegistry
    resources: ResourceWatch
    status: MemberStatus
    handover: Handover
    takeovers: Takeovers
    reconciler: SlotReconciler
    drain: Drain
    committer: Committer
    keeper: CopyKeeper
    active: ActiveSlots
    writes: OwnerWrites
    async_writes: AsyncWrites
    overwritten: OverwriteLog
    router: OwnerRouter
    service: SessionService
    shedding: LoadShedder
    anti_entropy: AntiEntropy
    name: NameHolder
    take_over: TakeOverWatch
    site_watch: SiteWatch
    registration: Registration
