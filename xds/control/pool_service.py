"""One pool on one control server: its election, its controller, what Envoys and members connect to, and its metrics.

A process has one of these, or one for each of its pools (:mod:`understudy.xds.control.served_pools`). They share the
process's etcd client, lease, ports, trace store and clock, and nothing else.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry

from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.pools import PoolWatch
from understudy.statesync.pool.records import ControlServer
from understudy.statesync.pool.spec_parts import Timeouts
from understudy.statesync.process.services import set_within
from understudy.statesync.tls.identity import Trust
from understudy.telemetry.metrics.phase_metrics import PhaseMetrics
from understudy.telemetry.receiver.front_tally import FrontTally
from understudy.telemetry.tracing.setup import Telemetry
from understudy.xds.control.balance_metrics import BalanceMetrics
from understudy.xds.control.capacity_view import CapacityMetrics
from understudy.xds.control.controller import Controller, no_front
from understudy.xds.control.election import Leadership, at_once
from understudy.xds.control.etcd_links import EtcdLink
from understudy.xds.control.identity import Clients, refuse_several
from understudy.xds.control.pool_metrics import PoolMetrics
from understudy.xds.control.ports import peer_tls
from understudy.xds.control.served_fronts import ServedFronts
from understudy.xds.control.settings import ControlSettings
from understudy.xds.publishing.listener_groups import ListenerGroups, group_of
from understudy.xds.server.ads import AdsServer, StreamSettings
from understudy.xds.server.cache import AckEvent, ResourceCache, TypeStatus
from understudy.xds.server.metrics import XdsMetrics
from understudy.xds.server.stream_config import StreamTimeouts
from understudy.xds.server.stream_quota import QuotaLimits
from understudy.xds.tracing.failover_timing import Delivery

logger = logging.getLogger(__name__)

STOP_TIMEOUT = 2.0
REMOVAL_LINGER = Timeouts.model_construct().request_seconds + 5.0
"""Seconds that Envoy keeps a cluster after its last route is gone, so that earlier requests can be retried."""


def stream_settings(quota: QuotaLimits, max_age: float) -> StreamSettings:
    """How the xDS streams of Envoys are kept."""
    return StreamSettings(timeouts=StreamTimeouts(removal_linger=REMOVAL_LINGER), quota=quota, max_age=max_age)


class PoolService:
    """One pool on one control server.

    Args:
        pool: its name.
        settings: those of the process.
        link: the etcd that has the pool, and this process in it.
        record: name and addresses of this server.
        telemetry: what this pool's spans are recorded with; its ``on_span`` is set here.
        quota: how many xDS streams this pool may have open, and how many heartbeat streams.
        standing_delay: see :class:`~understudy.xds.control.election.Leadership`.
        fronts: the front Envoys that serve several pools; None in a process for one pool, which refuses them.

    Raises:
        StartError: the certificate files cannot be used.
    """

    def __init__(
        self,
        pool: str,
        settings: ControlSettings,
        link: EtcdLink,
        *,
        record: ControlServer,
        telemetry: Telemetry,
        quota: QuotaLimits | None = None,
        standing_delay: Callable[[str], float] = at_once,
        fronts: ServedFronts | None = None,
    ) -> None:
        keys = PoolKeys(pool)
        self.pool, self.etcd = pool, link
        client = link.client
        self._fronts = fronts
        self._telemetry = telemetry
        self.now_ns = telemetry.now_ns
        self.cache = ResourceCache(group_of)
        listeners = ListenerGroups(self.cache, pool)
        self.cache.on_group = listeners.set_listener
        self.leadership = Leadership(client, keys, record, link.lease, standing_delay=standing_delay)
        self.controller = Controller(
            client,
            keys,
            leadership=self.leadership,
            cache=self.cache,
            telemetry=telemetry,
            timing=settings.timing,
            actor=link.actor,
            before_spec=listeners.leave_sites,
            on_spec=listeners.apply_spec,
            on_publish=self._published,
            front_of=fronts.place if fronts else no_front,
            envoys=self,
        )
        self.leadership.on_change = self.controller.leadership_changed
        clients = Clients(settings.trust_clients(pool)) if settings.tls else None
        limits = quota or QuotaLimits()
        self.ads = AdsServer(
            self.cache,
            stream_settings(limits, settings.max_stream_age),
            confirm_fresh=self.controller.confirm_fresh,
            identify=partial(refuse_several, pool, clients.refuse_node if clients else None),
        )
        self.heartbeat = self.controller.heartbeat
        self.heartbeat.quota.limits = limits
        if settings.tls and clients:
            self.heartbeat.identify = clients.refuse_member
            self.heartbeat.tls = peer_tls(settings.tls, Trust(pool, settings.trust_domain))
        self.fronts = FrontTally(asyncio.get_running_loop().time, self.controller.on_durations, self._site_of)
        self.registry = self._metrics(telemetry)
        self._watch = PoolWatch(client, pool, self.controller.no_pool)

    def _site_of(self, member: str) -> str | None:
        cluster = self.controller.state_builder.current()
        record = cluster.members.get(member) if cluster is not None else None
        return record.site if record is not None else None

    def _metrics(self, telemetry: Telemetry) -> CollectorRegistry:
        """The metrics of the pool, in a registry of their own, and the hooks that feed them."""
        ads, controller = self.ads, self.controller
        metrics = XdsMetrics(self.cache, lambda: ads.streams, lambda: ads.quota.refused + self.heartbeat.quota.refused)
        telemetry.on_span = PhaseMetrics(metrics.registry, self.pool).recorded
        PoolMetrics(
            metrics.registry,
            controller.state_builder.current,
            lambda: controller.missing,
            self.fronts,
            lambda: self.front_hold,
        )
        BalanceMetrics(metrics.registry, lambda: controller.balancer.proposal)
        CapacityMetrics(
            metrics.registry, controller.state_builder.current, lambda: controller.loads.current(self.now_ns())
        )
        self.cache.on_push = metrics.on_push
        self.cache.on_ack = lambda event: self._on_ack(metrics, event)
        return metrics.registry

    def _on_ack(self, metrics: XdsMetrics, event: AckEvent) -> None:
        """Count an Envoy's ACK or NACK, and pass an ACK on."""
        metrics.on_ack(event)
        if event.error is None:
            self.on_delivery(event)
        else:
            logger.warning("pool %s: Envoy %s rejected %s: %s", self.pool, event.node, event.type_url, event.error)

    def on_delivery(self, event: AckEvent) -> None:
        """An Envoy acknowledged a response: pass it on, with its monotonic times as those of the process's clock."""
        at_ns = self._telemetry.clock.at_ns
        delivery = Delivery(event.node, at_ns(event.sent_at_ns / 1e9), at_ns(event.acked_at_ns / 1e9))
        self.controller.on_delivery(delivery)

    def _published(self) -> None:
        publisher, proven = self.controller.publisher, self.controller.state_builder.state.front_spec
        view = publisher.published
        if self._fronts is not None and view is not None:
            self._fronts.published(view, self.cache.snapshot(), proven.record if proven else None, publisher.older)

    async def acknowledged(self, timeout: float) -> None:
        """Wait until all Envoys of the pool have acknowledged what is published now.

        Raises as :meth:`understudy.xds.server.cache.ResourceCache.acknowledged`.
        """
        async with asyncio.timeout(timeout):
            await self.cache.acknowledged(timeout)
            if self._fronts is not None:
                await self._fronts.acknowledged(self.pool, timeout)

    def envoys(self) -> list[TypeStatus]:
        """How far the pool's Envoys are with each type of resource."""
        return [*self.cache.status(), *(self._fronts.rows(self.pool) if self._fronts else ())]

    @property
    def front_fault(self) -> str:
        """Why front Envoys of several pools do not serve the pool as its spec says; '' if they do."""
        return self._fronts.fault(self.pool) if self._fronts else ""

    @property
    def front_hold(self) -> str:
        """Which front Envoys of several pools reject what the spec makes, and why; '' if none does."""
        return self._fronts.hold(self.pool) if self._fronts else ""

    def services(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What has to run, by name."""
        return {
            **self.controller.services(),
            "election": self.leadership.run(),
            "pool watch": self._watch.run(),
        }

    def unready(self) -> str:
        """Why Envoys cannot be served yet; '' when they can."""
        controller = self.controller
        if not controller.informer.synced.is_set():
            return f"etcd has not been read yet: {controller.informer.trouble or 'no answer so far'}"
        return self.fault or ("" if controller.publisher.publications else "the first configuration is being made")

    @property
    def tenant(self) -> str:
        """The tenant of the pool, '' for none or while the spec is not known."""
        spec = self.controller.state_builder.spec
        return (spec.tenant or "") if spec is not None else ""

    @property
    def fault(self) -> str:
        """What is wrong with the pool itself, so that there is nothing yet with which Envoys could be served."""
        controller = self.controller
        if controller.state_builder.spec is None:
            return controller.state_builder.spec_fault
        return "" if controller.publisher.publications else controller.publisher.fault

    async def end_streams(self) -> None:
        """End the streams of Envoys cleanly. A member whose stream ends from now on is no suspect for that."""
        self.heartbeat.stop()
        await self.ads.stop(STOP_TIMEOUT)

    async def withdraw(self) -> None:
        """Serve the pool no longer, while the process goes on: resign, and end the pool's streams."""
        self.leadership.resign()
        await set_within(self.leadership.ended, STOP_TIMEOUT)
        self.heartbeat.end_streams()
        await self.end_streams()
