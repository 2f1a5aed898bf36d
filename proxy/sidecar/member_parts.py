"""The parts of a sidecar that stand for its member: its record and state, the health of its application, forecasts."""

import time

from understudy.proxy.health.app_health_check import AppHealthCheck
from understudy.proxy.health.resource_watch import ResourceWatch, UsageReader, Watched
from understudy.proxy.health.spec_checks import SpecChecks
from understudy.proxy.sidecar.base import Base
from understudy.proxy.sidecar.member_state import Facts, Faults, MemberStatus, fit_others
from understudy.proxy.sidecar.name_holder import NameHolder
from understudy.proxy.sidecar.registration import Registration
from understudy.proxy.sidecar.settings import SidecarSettings
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.app_health import AppHealth
from understudy.statesync.pool.pools import PoolWatch
from understudy.statesync.pool.records import Member, MemberState
from understudy.statesync.pool.spec_parts import CheckSpec
from understudy.telemetry.tracing.setup import service_version


def facts_of(base: Base, faults: Faults, spec_checks: SpecChecks, pool_watch: PoolWatch) -> Facts:
    """What decides about the member's state, as of now."""
    pool, reason, owns = base.pool, base.drain.reason, bool(len(base.owned))
    return Facts(
        draining=reason.why if reason else "",
        fault=faults.any(),
        own_fault=faults.own(),
        synced=base.copies.informer.synced.is_set() and pool.spec is not None,
        owns=owns,
        has_roles=owns or bool(pool.assigned()),
        others=bool(fit_others(pool)),
        starting=spec_checks.unbegun(wanted_checks(base)) or faults.checks.starting(time.monotonic()),
        no_pool=pool_watch.fault,
        away=base.home.away,
    )


def app_health_check(base: Base) -> AppHealthCheck:
    """The health check of the application."""
    pool, loop_lag = base.pool, base.loop_lag
    return AppHealthCheck(
        base.settings.app,
        AppHealth.parse(base.settings.app_health),
        base.changed,
        rules=lambda: pool.liveness,
        stall=lambda: loop_lag.worst,
        known=lambda: pool.spec is not None,
        tcp=lambda: pool.spec.tcp if pool.spec else None,
    )


def resource_watch(base: Base) -> ResourceWatch:
    """What forecasts that the member will run out of something."""
    settings, pool = base.settings, base.pool
    watched = Watched(
        app=split_address(settings.app)[1],
        app_memory=settings.app_memory_limit,
        app_cgroup=settings.app_cgroup,
        disks=settings.watched_disks,
        certificate=settings.tls.cert if settings.tls else None,
    )

    def wanted() -> bool:
        return pool.spec is not None and pool.spec.predictive != "off"

    return ResourceWatch(UsageReader(watched), base.loop_lag, wanted, base.changed)


def registration_of(base: Base, status: MemberStatus, name: NameHolder, resources: ResourceWatch) -> Registration:
    """What keeps the member's record in etcd."""
    return Registration(
        _record(base.settings, base.pool.identity.boot),
        status.look,
        base.etcd,
        name,
        base.loop_lag,
        base.clock,
        base.incarnation,
        lambda: resources.forecast,
        base.changed,
        base.beat_now,
    )


def has_no_pool(base: Base) -> bool:
    """Whether the pool surely has no spec; one that cannot be read is there."""
    state = base.pool.state
    return base.copies.informer.synced.is_set() and state.spec is None and state.keys.spec not in state.faults


def wanted_checks(base: Base) -> tuple[CheckSpec, ...]:
    """The checks that the sidecar is to run now: the spec's, this member's own, and the local Envoy's."""
    settings, spec = base.settings, base.pool.spec
    envoy = settings.envoy_admin
    ready = (CheckSpec(name="envoy", http=f"http://{envoy}/ready", failures=3),) if envoy else ()
    shared = spec.checks if spec else ()
    return ready + shared + tuple(own for own in settings.checks if own.name not in {c.name for c in shared})


def _record(settings: SidecarSettings, boot: str) -> Member:
    return Member(
        settings.member,
        boot,
        settings.app,
        settings.advertise or settings.peer,
        MemberState.INIT,
        site=settings.site,
        weight=settings.weight,
        priority=settings.priority,
        reason="starting",
        since=time.time(),
        version=service_version(),
        node=settings.node,
        zone=settings.zone,
        app_version=settings.app_version,
    )
