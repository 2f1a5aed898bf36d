"""One pool's controller: connects what is seen to what is published and decided.

Every replica publishes to Envoy. The one that leads also writes the table. Both work on the same
:class:`~understudy.xds.membership.cluster_state.ClusterState`. It changes in two ways:

* the etcd informer brings a batch of records (:meth:`Controller._on_batch`);
* the failure detector finds a change of a member, above all its death (:meth:`Controller._on_member_change`).

Each of the two wakes the services that act on it. The state is built in
:mod:`understudy.xds.membership.state_builder`, published in :mod:`understudy.xds.publishing.publisher`, decided on in
:mod:`understudy.xds.control.leader` and traced in :mod:`understudy.xds.tracing.failover_tracer`.
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from understudy.statesync.audit.entry import Actor
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.informer import Informer, InformerBatch
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.heartbeat.challenge import Challenger
from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.site_records import PoolInGroup
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_front import Front
from understudy.telemetry.tracing.names import COUNT_SECONDS
from understudy.telemetry.tracing.setup import Telemetry
from understudy.xds.control.balancer import Balancer
from understudy.xds.control.decision_log import DecisionLog
from understudy.xds.control.election import Leadership
from understudy.xds.control.front_records import FrontRecords
from understudy.xds.control.group_watch import GroupWatch
from understudy.xds.control.growth_watch import GrowthWatch
from understudy.xds.control.leader import Leader
from understudy.xds.control.rebalancer import Rebalancer
from understudy.xds.envoy.routing_view import RoutingView
from understudy.xds.membership.answer_times import AnswerTimes
from understudy.xds.membership.cluster_state import ClusterState, pool_view
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.heartbeat_server import HeartbeatServer
from understudy.xds.membership.load_book import LoadBook
from understudy.xds.membership.member_health import SECOND, DetectorTimeouts, MemberChange
from understudy.xds.membership.missing_members import MissingMembers
from understudy.xds.membership.state_builder import StateBuilder
from understudy.xds.planning.capacity import too_busy_without
from understudy.xds.planning.plan import FirstTableTimer
from understudy.xds.publishing.publisher import MERGE_SECONDS, Publisher, ignore_spec
from understudy.xds.server.cache import ResourceCache
from understudy.xds.tracing.failover_timing import Delivery, OwnershipChange
from understudy.xds.tracing.failover_tracer import Envoys, FailoverTracer
from understudy.xds.tracing.post_failover import watch

logger = logging.getLogger(__name__)


def no_front(_spec: PoolSpec, _revision: int) -> Front | None:
    """The pool has no place at front Envoys of several pools."""
    return None


MILLISECOND = SECOND // 1000


class Timing(msgspec.Struct, frozen=True):
    """Times of the controller, in seconds.

    Attributes:
        first_table: the longest wait for further members before a pool's first table.
        first_quiet: or the wait after the last change of any member.
        merge: between two publications of anything but health.
        settle: how long changes of owner that nothing else explains must rest before the table follows them.
        detection: times of the failure detector, in ns; the spec sets some of them.
    """

    first_table: float = 1.0
    first_quiet: float = 0.3
    merge: float = MERGE_SECONDS
    settle: float = 2.0
    detection: DetectorTimeouts = msgspec.field(default_factory=DetectorTimeouts)


class Controller:
    """The controller of one pool on one control server.

    Args:
        client: the etcd client.
        keys: key names of the pool.
        leadership: this server's part in the election; tell :meth:`leadership_changed` of its changes.
        cache: what xDS is served from.
        telemetry: where failovers are recorded, and the process's clock.
        timing: how long to wait for what.
        actor: this control server, in the audit log.
        before_spec: awaited with the spec of every publication, before its resources are in the cache.
        on_spec: the same, as soon as they are.
        on_publish: called after each publication.
        front_of: the pool's place at front Envoys of several pools, given its spec and the revision of that.
        envoys: all Envoys of the pool, asked for their acknowledgement; those of ``cache`` by default.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: PoolKeys,
        *,
        leadership: Leadership,
        cache: ResourceCache,
        telemetry: Telemetry,
        timing: Timing,
        actor: Actor,
        before_spec: Callable[[PoolSpec], Awaitable[None]] = ignore_spec,
        on_spec: Callable[[PoolSpec], Awaitable[None]] = ignore_spec,
        on_publish: Callable[[], None] = lambda: None,
        front_of: Callable[[PoolSpec, int], Front | None] = no_front,
        envoys: Envoys | None = None,
    ) -> None:
        self._client = client
        self._tell_published = on_publish
        self._front_of = front_of
        self._telemetry = telemetry
        self._cache = cache
        self._ranges = watched_ranges(keys)
        self._missing = MissingMembers()
        self._answer_times = AnswerTimes()
        self.detector = FailureDetector(timing.detection, on_change=self._on_member_change)
        self.state_builder = StateBuilder(keys, self.detector, too_busy=self.too_busy)
        self.informer = Informer(client, self._ranges, self._on_batch)
        self.publisher = Publisher(
            cache,
            self.state_builder.current,
            on_publish=self._on_publish,
            before_spec=before_spec,
            on_spec=on_spec,
            front_of=self._place,
            older=self._older,
            merge=timing.merge,
        )
        self.heartbeat = HeartbeatServer(
            keys.pool,
            self.detector,
            now_ns=telemetry.now_ns,
            on_claim=self._on_claim,
            challenge=Challenger(client, keys).ask,
        )
        self.tracer = FailoverTracer(
            telemetry,
            envoys or cache,
            self.publisher,
            self.state_builder.current,
            self._watch_after,
            reports=self.heartbeat.claim_reports,
            leads=lambda: leadership.is_leader,
        )
        self.front_records = FrontRecords(client, keys, actor, self.state_builder)
        self._log = DecisionLog(client, keys, actor, leadership)
        self.leader = Leader(
            client,
            keys,
            leadership=leadership,
            state_builder=self.state_builder,
            log=self._log,
            on_table=self.tracer.on_table,
            now_ns=telemetry.now_ns,
            first_table=FirstTableTimer(longest=int(timing.first_table * 1e9), quiet=int(timing.first_quiet * 1e9)),
            etcd_well_since=lambda: telemetry.clock.at_ns(self.informer.well_since),
            settle=timing.settle,
        )
        self.group_watch = GroupWatch(client, keys.pool, self._group, self._on_group)
        self.rebalancer = Rebalancer(client, keys, leadership, self.state_builder)
        self.balancer = Balancer(
            client, keys, leadership, self.state_builder, lambda: self.loads.current(telemetry.now_ns()), actor.who
        )

        self.growth = GrowthWatch(client, self.state_builder.current, lambda: self.loads.current(telemetry.now_ns()))

    @property
    def loads(self) -> LoadBook:
        """What members report of their load."""
        return self.heartbeat.loads

    def too_busy(self, cluster: ClusterState, member: str) -> str:
        """Why the other members cannot carry the slots of one, by measured load; '' if they can, or it is not known."""
        return too_busy_without(cluster, self.loads.current(self._telemetry.now_ns()), member)

    def services(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What has to run, by name."""
        return {
            "etcd informer": self.informer.run(),
            "heartbeats": self.heartbeat.run(),
            "publisher": self.publisher.run(),
            "group": self.group_watch.run(),
            "leader": self.leader.run(),
            "rebalance": self.rebalancer.run(),
            "load balance": self.balancer.run(),
            "growth": self.growth.run(),
            "front records": self.front_records.run(),
            "audit retention": self._log.run(),
            "failover tracer": self.tracer.run(),
        }

    @property
    def missing(self) -> dict[str, tuple[str, float]]:
        """Members that were lost and have not come back: why, and for how many seconds they have been away."""
        return self._missing.members(self._telemetry.now_ns() / SECOND)

    def leadership_changed(self) -> None:
        """This server began or ceased to lead."""
        self.leader.wake()
        self.rebalancer.wake()

    def on_delivery(self, delivery: Delivery) -> None:
        """An Envoy acknowledged a response."""
        self.tracer.on_delivery(delivery)

    async def confirm_fresh(self) -> None:
        """Return when the cache is as new as etcd was at the call; raises ``EtcdError`` when etcd does not answer.

        Called before an Envoy that comes from another replica gets other versions than it has. So a replica that is
        behind gives no Envoy an older configuration.
        """
        for key_range in self._ranges:
            page = await self._client.range(key_range, keys_only=True)
            newest = max(page.kvs, key=lambda kv: kv.mod_revision, default=None)
            if newest is not None:
                await self.informer.caught_up(newest.mod_revision, newest.key)
        await self.publisher.settled()

    def no_pool(self) -> bool:
        """Whether etcd was read, and holds no spec of the pool."""
        state = self.state_builder.state
        return self.informer.synced.is_set() and state.spec is None and state.keys.spec not in state.faults

    async def _watch_after(self, change: OwnershipChange) -> None:
        await watch(
            change,
            self._telemetry,
            self.state_builder.current,
            lambda: self.detector.members,
            lambda: self.state_builder.table_revision,
            self.heartbeat.claim_reports,
        )

    def on_durations(self, durations: Mapping[float, int]) -> None:
        """An Envoy reported how long answers took: hedges wait for longer than nearly all of them."""
        self._answer_times.add(durations, self._telemetry.now_ns() / SECOND)
        within_ms = self._answer_times.within_ms
        if within_ms is not None and self.state_builder.answers_took(within_ms):
            logger.info("99 %% of the answers came within %d ms: requests are hedged only after that", within_ms)
            self.publisher.wake()

    def _on_member_change(self, change: MemberChange) -> None:
        """The failure detector found a death, a return or another state of a member."""
        if change.death is not None:
            logger.warning(
                "member %s (boot %s) is lost: %s", change.after.member, change.after.boot, change.death.cause
            )
        if change.death is not None or change.goes_down:
            spec = self.state_builder.spec
            held = (spec.timeouts.request_seconds if spec else 0) + COUNT_SECONDS
            self._answer_times.ignore_until(self._telemetry.now_ns() / SECOND + held)
        self.state_builder.members_changed()
        self._wake_services()

    def _on_claim(self) -> None:
        """A member reported something new about a claim."""
        self.tracer.wake()

    def _on_batch(self, batch: InformerBatch) -> None:
        """The etcd informer brings changed records."""
        proven = self.state_builder.state.front_spec
        self.state_builder.apply(batch)
        if take_over := self.state_builder.state.take_over:
            self._client.refuse(take_over.record.removed)
        self.detector.timeouts = self._timeouts()
        self.heartbeat.update_records(self.state_builder.members, self.state_builder.owning)
        table = self.state_builder.state.table
        boots = {member.member: member.boot for member in self.state_builder.members}
        self._missing.update(table.record.lost if table else {}, boots, self._telemetry.now_ns() / SECOND)
        self.tracer.on_owners()
        self._wake_services()
        if self.state_builder.state.front_spec != proven:
            self._tell_published()

    def _group(self) -> str:
        return self.state_builder.spec.full_group if self.state_builder.spec else ""

    def _on_group(self, others: Mapping[str, PoolInGroup] | None) -> None:
        """Another pool of the group says something new of its sites."""
        self.state_builder.group_says(others)
        self.leader.wake()

    def _wake_services(self) -> None:
        self.group_watch.wake()
        self.publisher.wake()
        self.leader.wake()
        self.rebalancer.wake()
        self.tracer.wake()

    def _timeouts(self) -> DetectorTimeouts:
        """How long members may be silent, by the spec in force."""
        if self.state_builder.spec is None:
            return self.detector.timeouts
        liveness = self.state_builder.spec.liveness
        silence = round(liveness.missed_beats * BEAT_INTERVAL * SECOND)
        return replace(
            self.detector.timeouts,
            silence=silence,
            unanswered=liveness.unanswered_ms * MILLISECOND,
            running=liveness.application_ms * MILLISECOND,
            site_patience=liveness.site_patience_ms * MILLISECOND,
            load_cap=liveness.load_cap_ms * MILLISECOND,
        )

    def _place(self, spec: PoolSpec) -> Front | None:
        written = self.state_builder.state.spec
        return self._front_of(spec, written.revision if written else 0)

    def _older(self, cluster: ClusterState) -> RoutingView | None:
        """The pool with the spec that front Envoys of several pools accepted last, if that is not the spec in force."""
        proven = self.state_builder.state.front_spec
        if proven is None or proven.record == cluster.spec or proven.record.slots != cluster.spec.slots:
            return None
        if self._place(cluster.spec) is None:
            return None
        return replace(pool_view(replace(cluster, spec=proven.record)), front=proven.record.front)

    def _on_publish(self) -> None:
        if self.publisher.publications:
            self._cache.ready()
        self._tell_published()
        self.tracer.wake()


def watched_ranges(keys: PoolKeys) -> tuple[KeyRange, ...]:
    """What a control server copies from etcd: neither sessions nor commit markers, which change with every write."""
    return (
        prefix_range(keys.site_intents),
        prefix_range(keys.controls),
        KeyRange(keys.failovers, prefix_range(keys.owners).end),
        KeyRange(keys.spec, keys.take_over + "\0"),
    )
