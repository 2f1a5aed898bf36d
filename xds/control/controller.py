"""One pool's controller: wires what is seen to what is published and decided.

Every replica publishes to Envoy; the one that leads also writes the table. Both look at the same
:class:`World`, which changes when etcd's mirror brings a batch, when a standing changes in the book of life,
or when leadership changes. This module only connects: seeing is in :mod:`understudy.xds.membership.state_builder`,
publishing in :mod:`understudy.xds.publishing.publisher`, leading in :mod:`understudy.xds.control.leader`, measuring in
:mod:`understudy.xds.tracing.failover_tracer`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.informer import Informer, InformerBatch
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec import PoolSpec
from understudy.telemetry.tracing.setup import Telemetry
from understudy.xds.control.election import Leadership
from understudy.xds.control.leader import Leader
from understudy.xds.membership.failure_detector import SECOND, LivenessBook, Rules
from understudy.xds.membership.heartbeat_server import Heartbeat
from understudy.xds.membership.missing_members import Missing
from understudy.xds.membership.state_builder import Observer
from understudy.xds.planning.plan import FirstTable
from understudy.xds.publishing.publisher import MERGE_SECONDS, Publisher, nothing_more
from understudy.xds.server.cache import ResourceCache
from understudy.xds.tracing.failover_timing import Course, Delivery
from understudy.xds.tracing.failover_tracer import Courses
from understudy.xds.tracing.post_failover import watch


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of the controller, in seconds.

    ``first_table``: the longest wait for further members before a pool's first table; ``first_quiet``: or so long
    after the last change of any member. ``merge``: between publications of anything but health. ``settle``: how long
    changes of owner that nothing else explains must rest before the table follows them.
    """

    first_table: float = 1.0
    first_quiet: float = 0.3
    merge: float = MERGE_SECONDS
    settle: float = 2.0
    rules: Rules = field(default_factory=Rules)


class Controller:
    """The controller of one pool on one control server.

    Args:
        client: the etcd client.
        keys: key names of the pool.
        leadership: this server's part in the election; tell :meth:`leadership_changed` of its changes.
        cache: what xDS is served from.
        telemetry: where failovers are recorded, and the process's clock.
        timing: how long to wait for what.
        on_spec: awaited with the spec of every publication, as soon as its clusters are in the cache.
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
        on_spec: Callable[[PoolSpec], Awaitable[None]] = nothing_more,
    ) -> None:
        self.book = LivenessBook(timing.rules)
        self.heartbeat = Heartbeat(keys.pool, self.book, now_ns=telemetry.now_ns, on_change=self._changed)
        self.observer = Observer(keys, self.book)
        self._client = client
        self._telemetry = telemetry
        self._ranges = watched_ranges(keys)
        self._missing = Missing()
        self.mirror = Informer(client, self._ranges, self._on_batch)
        self.publisher = Publisher(
            cache, self.observer.world, on_publish=self._on_publish, on_spec=on_spec, merge=timing.merge
        )
        self.courses = Courses(
            telemetry,
            cache,
            self.publisher,
            self.observer.world,
            self._watch_aftermath,
            told=self.heartbeat.told,
            leads=lambda: leadership.is_leader,
        )
        self.leader = Leader(
            client,
            keys,
            leadership=leadership,
            observer=self.observer,
            courses=self.courses,
            now_ns=telemetry.now_ns,
            first=FirstTable(most=int(timing.first_table * 1e9), quiet=int(timing.first_quiet * 1e9)),
            reached_since=lambda: telemetry.clock.at_ns(self.mirror.well_since),
            settle=timing.settle,
        )
        self._cache = cache

    @property
    def missing(self) -> dict[str, tuple[str, float]]:
        """Members that were lost and have not come back: why, and for how many seconds they have been away."""
        return self._missing.members(self._telemetry.now_ns() / SECOND)

    def leadership_changed(self) -> None:
        """This server began or ceased to lead."""
        self.leader.wake()

    def delivered(self, delivery: Delivery) -> None:
        """An Envoy acknowledged an answer."""
        self.courses.delivered(delivery)

    async def confirm_fresh(self) -> None:
        """Return when the cache is as new as etcd was at the call; raises ``EtcdError`` when etcd does not answer.

        Asked before an Envoy that comes from another replica gets other versions than it has, so that a replica that
        is behind rolls nobody back.
        """
        newest = 0
        for key_range in self._ranges:
            page = await self._client.range(key_range, keys_only=True)
            newest = max([newest, *(kv.mod_revision for kv in page.kvs)])
        await self.mirror.caught_up(newest)
        await self.publisher.settled()

    async def run(self) -> None:
        """Control the pool until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for part in (self.mirror, self.heartbeat, self.publisher, self.leader, self.courses):
                tasks.create_task(part.run(), name=type(part).__name__)

    def no_pool(self) -> bool:
        """Whether etcd was read, and holds no spec of the pool."""
        state = self.observer.state
        return self.mirror.synced.is_set() and state.spec is None and state.keys.spec not in state.faults

    async def _watch_aftermath(self, course: Course) -> None:
        observer = self.observer
        await watch(
            course,
            self._telemetry,
            observer.world,
            lambda: self.book.pulses,
            lambda: observer.table_revision,
            self.heartbeat.told,
        )

    def _on_batch(self, batch: InformerBatch) -> None:
        self.observer.apply(batch)
        self.book.rules = self._rules()
        self.heartbeat.record(self.observer.members, self.observer.owning)
        table = self.observer.state.table
        boots = {member.member: member.boot for member in self.observer.members}
        self._missing.look(table.record.lost if table else {}, boots, self._telemetry.now_ns() / SECOND)
        self._changed()

    def _rules(self) -> Rules:
        """How long members may be silent, by the spec in force."""
        if self.observer.spec is None:
            return self.book.rules
        said = self.observer.spec.liveness
        silence = round(said.missed_beats * BEAT_INTERVAL * SECOND)
        times = (said.unanswered_ms, said.application_ms, said.load_cap_ms)
        unanswered, running, load_cap = (ms * SECOND // 1000 for ms in times)
        return replace(self.book.rules, silence=silence, unanswered=unanswered, running=running, load_cap=load_cap)

    def _changed(self) -> None:
        self.publisher.wake()
        self.leader.wake()
        self.courses.wake()

    def _on_publish(self) -> None:
        if self.publisher.publications:
            self._cache.ready()
        self.courses.wake()


def watched_ranges(keys: PoolKeys) -> tuple[KeyRange, ...]:
    """What a control server mirrors: neither sessions nor commit markers, which change with every write."""
    return (
        prefix_range(keys.site_intents),
        prefix_range(keys.controls),
        KeyRange(keys.failovers, prefix_range(keys.owners).end),
        KeyRange(keys.spec, keys.table + "\0"),
    )
