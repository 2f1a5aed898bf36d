"""Puts the parts of a sidecar together: each gets what it uses through its constructor, lower parts first."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial

from understudy.proxy.events.recorder import Recorder
from understudy.proxy.events.rejoins import takeover_before
from understudy.proxy.health.app_health_check import AppHealthCheck
from understudy.proxy.health.check_registry import CheckRegistry
from understudy.proxy.health.process_usage import ProcessUsage
from understudy.proxy.health.spec_checks import SpecChecks
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.member.signal import Signal
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.claims import Claimer
from understudy.proxy.ownership.copy_repair import CopyRepair
from understudy.proxy.ownership.drain import Drain
from understudy.proxy.ownership.etcd_contact import LATE
from understudy.proxy.ownership.etcd_set_back import EtcdSetBack
from understudy.proxy.ownership.handover import Handover
from understudy.proxy.ownership.handover_pacing import HandoverPacing
from understudy.proxy.ownership.opening import SlotOpener
from understudy.proxy.ownership.read_deadline import ReadDeadline
from understudy.proxy.ownership.read_proof import ReadProof
from understudy.proxy.ownership.set_changes import SetChanges
from understudy.proxy.ownership.slot_reconciler import SlotReconciler
from understudy.proxy.ownership.step_down import StepDown
from understudy.proxy.ownership.takeovers import Takeovers
from understudy.proxy.peers.anti_entropy import AntiEntropy
from understudy.proxy.peers.clock_watch import ClockWatch
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.peers.peer_probe import PeerProbe
from understudy.proxy.peers.predecessor_monitor import PredecessorMonitor
from understudy.proxy.replication.copy_connection import SlotSource
from understudy.proxy.replication.copy_connections import CopyConnections
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.proxy.sessions.async_writes import AsyncWrites
from understudy.proxy.sessions.creation import SessionKeys
from understudy.proxy.sessions.load_shedding import LoadShedder
from understudy.proxy.sessions.overwrite_log import OverwriteLog
from understudy.proxy.sessions.owner_reads import OwnerReads
from understudy.proxy.sessions.owner_writes import OwnerWrites
from understudy.proxy.sessions.request_sweep import RequestSweep
from understudy.proxy.sessions.routing import OwnerRouter
from understudy.proxy.sessions.service import SessionService
from understudy.proxy.sessions.session_sweep import SessionSweep
from understudy.proxy.sidecar.base import Base, base_of
from understudy.proxy.sidecar.beats import Beats
from understudy.proxy.sidecar.heartbeat_client import HeartbeatClient
from understudy.proxy.sidecar.load_meter import LoadMeter
from understudy.proxy.sidecar.member_parts import (
    app_health_check,
    facts_of,
    has_no_pool,
    registration_of,
    resource_watch,
    wanted_checks,
)
from understudy.proxy.sidecar.member_state import Faults, MemberStatus, lasting_others
from understudy.proxy.sidecar.metrics import PartsCollector, SidecarMetrics
from understudy.proxy.sidecar.name_holder import NameHolder
from understudy.proxy.sidecar.parts import Sidecar
from understudy.proxy.sidecar.settings import SidecarSettings
from understudy.proxy.sidecar.site_watch import SiteWatch
from understudy.proxy.sidecar.take_over_watch import TakeOverWatch
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.heartbeat.challenge import Challenger
from understudy.statesync.heartbeat.pulse import Pulses
from understudy.statesync.pool.owner_records import FailoverLog
from understudy.statesync.pool.pools import PoolWatch
from understudy.statesync.replication.sync_set import Process
from understudy.statesync.sessions.commit import Committer
from understudy.statesync.sessions.session_crypto import SessionCrypto
from understudy.telemetry.metrics.phase_metrics import PhaseMetrics
from understudy.telemetry.metrics.span_metrics import SpanMetrics
from understudy.telemetry.tracing.setup import Telemetry

Service = Coroutine[object, object, None]


@dataclass(frozen=True, slots=True)
class Assembled:
    """A sidecar that does not run yet, with what only its process needs.

    ``changed`` is the signal that the member's state may be another one. ``services`` makes the coroutines that run
    it, by their names, in the order of their start.
    """

    sidecar: Sidecar
    probe: PeerProbe
    metrics: SidecarMetrics
    changed: Signal
    services: Callable[[], dict[str, Service]]


@dataclass(frozen=True, slots=True)
class _Replication:
    """Replication between members: the actives' side, the copies' side, and the changes of sync sets."""

    committer: Committer
    keeper: CopyKeeper
    connections: CopyConnections
    active: ActiveSlots
    changes: SetChanges


def assemble(
    settings: SidecarSettings, etcd: EtcdClient, client: PeerClient, telemetry: Telemetry, codec: SessionCrypto
) -> Assembled:
    """Build all parts of a sidecar; nothing runs yet."""
    base = base_of(settings, etcd, client, telemetry, codec)
    pool, copies, owned, metrics = base.pool, base.copies, base.owned, SidecarMetrics()
    reads = ReadDeadline(pool.identity.keys, etcd, base.contact, base.updates.apply, base.changed)
    check, checks, resources = app_health_check(base), CheckRegistry(), resource_watch(base)
    spec_checks = SpecChecks(checks, base.changed, commands=settings.allow_command_checks)
    faults = Faults(check, checks, reads, copies.replica)
    recorder = _recorder(base, check)
    monitor = PredecessorMonitor(pool, Pulses(), base.beat_now)
    probe = PeerProbe(client, pool, base.loop_lag, monitor, Challenger(etcd, pool.identity.keys).ask)
    replication = _replication(base, recorder, metrics)
    handover, takeovers, reconciler = _ownership(base, replication, probe, recorder, faults)
    replication.active.on_fenced = recorder.audit.refused
    async_writes, overwritten = AsyncWrites(lambda slot: recorder.audit.lost(pool.view().owner(slot))), OverwriteLog()
    writes, router, service, shedding = _sessions(
        base, replication, probe, recorder, reads, async_writes, overwritten, takeovers, metrics
    )
    pool_watch = PoolWatch(etcd, settings.pool, partial(has_no_pool, base))
    status = MemberStatus(partial(facts_of, base, faults, spec_checks, pool_watch))
    name = NameHolder(pool, etcd, probe)
    site_watch = SiteWatch(pool, owned, replication.connections.site_lag)
    sidecar = Sidecar(
        pool=pool,
        copies=copies,
        owned=owned,
        clock=base.clock,
        loop_lag=base.loop_lag,
        load=LoadMeter(
            recorder.calls,
            owned,
            copies.replica,
            base.loop_lag,
            ProcessUsage(settings.app_cgroup),
            replication.active.exposure,
            site_watch,
        ),
        recorder=recorder,
        client=client,
        monitor=monitor,
        reads=reads,
        check=check,
        checks=checks,
        resources=resources,
        status=status,
        handover=handover,
        takeovers=takeovers,
        reconciler=reconciler,
        drain=_drain(base, replication.changes),
        committer=replication.committer,
        keeper=replication.keeper,
        active=replication.active,
        writes=writes,
        async_writes=async_writes,
        overwritten=overwritten,
        router=router,
        service=service,
        shedding=shedding,
        anti_entropy=AntiEntropy(
            pool, copies.replica, _copy_repair(base, replication), etcd, recorder, interval=settings.scrub_interval
        ),
        name=name,
        take_over=TakeOverWatch(pool, etcd, client),
        site_watch=site_watch,
        registration=registration_of(base, status, name, resources),
    )
    _meter(metrics, sidecar, telemetry)
    services = partial(_services, base, replication, sidecar, spec_checks, pool_watch)
    return Assembled(sidecar, probe, metrics, base.changed, services)


def _services(
    base: Base, replication: _Replication, sidecar: Sidecar, spec_checks: SpecChecks, pool_watch: PoolWatch
) -> dict[str, Service]:
    pool, copies, owned, etcd, clock = base.pool, base.copies, base.owned, base.etcd, base.clock
    return {
        "group commit": sidecar.committer.run(),
        "active slots": replication.active.run(),
        "what readers may see": replication.active.tell(),
        "replication": replication.connections.run(),
        "sync sets": replication.changes.run(),
        "ownership": sidecar.reconciler.run(),
        "read deadline": sidecar.reads.run(),
        "contact with etcd": _step_down(base, sidecar).run(),
        "session sweep": SessionSweep(copies.replica, owned, clock, sidecar.writes).run(),
        "request sweep": RequestSweep(pool, copies.requests, etcd).run(),
        "anti-entropy": sidecar.anti_entropy.run(),
        "application check": sidecar.check.run(),
        "event loop lag": base.loop_lag.run(),
        "load": sidecar.load.run(),
        "forecast": sidecar.resources.run(),
        "pulses": sidecar.monitor.run(),
        "pool clock": ClockWatch(pool, copies.informer, base.client, clock).run(),
        "checks of the spec": spec_checks.run(partial(wanted_checks, base)),
        "member state": sidecar.registration.watch_state(),
        "pool": pool_watch.run(),
        "challenges": base.challenges.run(),
        "take-overs of etcd": sidecar.take_over.run(),
        "slots on one site": sidecar.site_watch.run(),
        "watch": copies.informer.run(),
        "member record": sidecar.registration.run(),
        "heartbeats": _heartbeats(base, sidecar).run(),
    }


def _recorder(base: Base, check: AppHealthCheck) -> Recorder:
    return Recorder(
        base.telemetry,
        base.settings.pool,
        base.settings.member,
        slowest=check.slowest_since,
        on_progress=base.beat_now,
        going_down=lambda: base.drain.going_down,
        takeover_before=lambda member: takeover_before(base.pool.state, member, time.time()),
    )


def _replication(base: Base, recorder: Recorder, metrics: SidecarMetrics) -> _Replication:
    pool, copies, etcd, owned, me = base.pool, base.copies, base.etcd, base.owned, base.pool.identity
    committer = Committer(etcd, me.keys, me.me, me.boot, copies.requests, metrics.committed)

    def refused(slot: int, known: int) -> None:
        owned.refuses(slot, known)

    keeper = CopyKeeper(Process(me.me, me.boot), me.keys.pool, copies.replica, copies.requests, owned.refuses)
    connections = CopyConnections(pool, base.client, SlotSource(copies.replica, copies.requests), recorder.rejoins)
    active = ActiveSlots(pool, copies.replica, copies.requests, committer, keeper, connections, base.updates)
    changes = SetChanges(pool, etcd, owned, active, connections, base.updates, base.loop_lag, base.home)
    owned.on_lose = active.lost
    base.updates.on_take_over = EtcdSetBack(pool, copies.replica, keeper, owned).look
    base.updates.on_epoch = keeper.heard_of
    active.on_blocked = changes.wake
    connections.asking = lambda: base.contact.silent_for(time.monotonic()) > LATE
    connections.on_progress = active.progress
    connections.on_refused = refused
    return _Replication(committer, keeper, connections, active, changes)


def _ownership(
    base: Base, replication: _Replication, probe: PeerProbe, recorder: Recorder, faults: Faults
) -> tuple[Handover, Takeovers, SlotReconciler]:
    pool, copies, etcd, owned = base.pool, base.copies, base.etcd, base.owned
    failovers, claiming = FailoverLog(pool.identity.keys, pool.identity.me), asyncio.Lock()
    active, keeper, changes = replication.active, replication.keeper, replication.changes
    opener = SlotOpener(pool, copies, etcd, owned, active, keeper, base.clock)
    claimer = Claimer(pool, copies, etcd, owned, keeper, opener, failovers, recorder, base.contact, base.home)
    handover = Handover(pool, copies, etcd, base.client, owned, active, opener, changes, failovers, recorder)
    takeovers = Takeovers(
        pool, copies, etcd, probe, claimer, claiming, base.contact, base.drain, base.updates, recorder
    )

    def host_refuses(process: Process) -> None:
        takeovers.of_refused(process)
        changes.wake()

    replication.connections.on_host_refuses = host_refuses
    reconciler = SlotReconciler(
        pool,
        copies,
        owned,
        active,
        keeper,
        opener,
        base.updates,
        base.drain,
        base.contact,
        claimer,
        handover,
        takeovers,
        claiming,
        recorder,
        faults.any,
        HandoverPacing.within(base.settings.drain_seconds),
    )
    return handover, takeovers, reconciler


def _copy_repair(base: Base, replication: _Replication) -> CopyRepair:
    pool, copies, etcd, owned = base.pool, base.copies, base.etcd, base.owned
    active, keeper, changes = replication.active, replication.keeper, replication.changes
    opener = SlotOpener(pool, copies, etcd, owned, active, keeper, base.clock)
    return CopyRepair(pool, copies.replica, etcd, owned, active, keeper, changes, base.updates, opener)


def _sessions(
    base: Base,
    replication: _Replication,
    probe: PeerProbe,
    recorder: Recorder,
    deadline: ReadDeadline,
    async_writes: AsyncWrites,
    overwritten: OverwriteLog,
    takeovers: Takeovers,
    metrics: SidecarMetrics,
) -> tuple[OwnerWrites, OwnerRouter, SessionService, LoadShedder]:
    pool, copies, etcd, owned, updates = base.pool, base.copies, base.etcd, base.owned, base.updates
    clock, loop_lag = base.clock, base.loop_lag
    proof = ReadProof(deadline, replication.active, replication.connections)
    reads = OwnerReads(pool, copies, replication.keeper, etcd, owned, proof, clock, updates, async_writes)
    writes = OwnerWrites(
        pool,
        copies,
        owned,
        replication.committer,
        replication.active,
        proof,
        clock,
        loop_lag,
        updates,
        recorder,
        async_writes,
        overwritten,
    )
    router, keys = OwnerRouter(pool, base.client, probe, takeovers), SessionKeys(pool, owned, etcd)
    shedding = LoadShedder(lambda: loop_lag.smoothed)
    service = SessionService(
        pool,
        base.home,
        owned,
        updates,
        reads,
        writes,
        router,
        keys,
        clock,
        loop_lag,
        recorder,
        shedding,
        metrics.answered,
    )
    return writes, router, service, shedding


def _drain(base: Base, changes: SetChanges) -> Drain:
    others = partial(lasting_others, base.pool)
    seconds = base.settings.drain_seconds
    return Drain(
        base.drain,
        base.owned,
        base.updates,
        on_change=base.changed,
        others=others,
        needed=partial(_counted_on, base.pool),
        save=changes.save_all,
        seconds=seconds,
    )


def _counted_on(pool: PoolView) -> int:
    """How many slots of other members have this process in their sync set."""
    view = pool.view()
    return sum(view.counts_on(slot) and not view.mine(slot) for slot in view.sync_sets)


def _step_down(base: Base, sidecar: Sidecar) -> StepDown:
    return StepDown(
        base.pool,
        base.owned,
        base.client,
        base.updates,
        base.contact,
        base.loop_lag,
        sidecar.reads,
        sidecar.reconciler,
    )


def _heartbeats(base: Base, sidecar: Sidecar) -> HeartbeatClient:
    beats = Beats(
        base.pool,
        base.copies,
        lambda: sidecar.registration.record,
        base.loop_lag,
        base.clock,
        sidecar.recorder.claims,
        sidecar.monitor,
        base.telemetry.now_ns,
        lambda: sidecar.load.report,
    )
    return HeartbeatClient(beats.controls, beats.beat, beats.answered, base.settings.tls, base.beat_now)


def _meter(metrics: SidecarMetrics, sidecar: Sidecar, telemetry: Telemetry) -> None:
    metrics.registry.register(PartsCollector(sidecar))
    telemetry.on_span = PhaseMetrics(metrics.registry, sidecar.pool.identity.keys.pool).recorded
    SpanMetrics(metrics.registry, lambda: telemetry.counts)
