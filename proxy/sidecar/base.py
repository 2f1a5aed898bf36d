"""What most parts of a sidecar are built upon: its settings, etcd, what it knows of the pool, clocks and signals."""

import secrets
from dataclasses import dataclass

from understudy.proxy.events.incarnation import Incarnation
from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.member.home_watch import HomeWatch
from understudy.proxy.member.identity import MemberIdentity
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.member.signal import Signal
from understudy.proxy.ownership.drain_reason import DrainState
from understudy.proxy.ownership.etcd_contact import EtcdContact
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.sidecar.settings import SidecarSettings
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.informer import Informer, InformerBatch
from understudy.statesync.heartbeat.challenge import ChallengeAnswers
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.pool.state import Changed
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.request_log import RequestLog
from understudy.statesync.sessions.session_crypto import SessionCrypto
from understudy.telemetry.tracing.setup import Telemetry


@dataclass(frozen=True, slots=True)
class Base:
    """What most parts are built upon."""

    settings: SidecarSettings
    etcd: EtcdClient
    client: PeerClient
    telemetry: Telemetry
    pool: PoolView
    copies: LocalCopies
    home: HomeWatch
    owned: OwnedSlots
    updates: PoolUpdates
    drain: DrainState
    incarnation: Incarnation
    clock: PoolClock
    contact: EtcdContact
    challenges: ChallengeAnswers
    loop_lag: LoopLag
    changed: Signal
    beat_now: Signal


def base_of(
    settings: SidecarSettings, etcd: EtcdClient, client: PeerClient, telemetry: Telemetry, codec: SessionCrypto
) -> Base:
    """Make it; nothing runs yet."""
    identity = MemberIdentity(
        settings.member, secrets.token_hex(8), PoolKeys(settings.pool), settings.site, settings.app_version
    )
    keys = identity.keys
    pool, owned, incarnation, changed = PoolView(identity), OwnedSlots(), Incarnation(), Signal()
    drain = DrainState(pool)
    replica, requests = Replica(etcd, keys, codec), RequestLog(keys, identity.me, identity.boot)
    updates = PoolUpdates(pool, owned, drain, incarnation)
    challenges = ChallengeAnswers(etcd, keys, identity.me, identity.boot)

    def on_batch(batch: InformerBatch) -> None:
        challenges.heard(batch.events)
        kinds = updates.apply(batch)
        if kinds & Changed.CONTROLS:
            telemetry.set_endpoints([at.record.grpc for at in pool.state.controls.values()])
        if kinds & Changed.TAKE_OVER and pool.state.take_over:
            etcd.refuse(pool.state.take_over.record.removed)
        if home.apply(batch) or kinds:
            changed()

    informer = Informer(etcd, (*keys.records, challenges.watched), on_batch)
    home = HomeWatch(pool, informer)
    return Base(
        settings=settings,
        etcd=etcd,
        client=client,
        telemetry=telemetry,
        pool=pool,
        copies=LocalCopies(informer, replica, requests),
        home=home,
        owned=owned,
        updates=updates,
        drain=drain,
        incarnation=incarnation,
        clock=PoolClock(),
        contact=EtcdContact(),
        challenges=challenges,
        loop_lag=LoopLag(),
        changed=changed,
        beat_now=Signal(),
    )
