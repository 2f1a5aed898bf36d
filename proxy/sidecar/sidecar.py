"""The sidecar: puts the member's parts together, starts them in order and stops them in reverse.

On SIGTERM it drains first: it says so, hands its slots over (by the new table, or to the next in line if none comes),
goes on answering meanwhile, and leaves when it owns nothing or after ``drain_seconds``.
"""

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial

from understudy.proxy.events.claim_progress import FirstAnswers
from understudy.proxy.events.handover_latency import HeldUp
from understudy.proxy.events.split_brain_audit import Writers
from understudy.proxy.front.process_util import first_of
from understudy.proxy.health.app_health_check import ApplicationCheck
from understudy.proxy.health.check_registry import CheckBook
from understudy.proxy.health.health_port import Patient, Question, open_health_port
from understudy.proxy.health.loop_lag import StallWatch
from understudy.proxy.health.spec_checks import Probes
from understudy.proxy.ownership.context import MemberContext
from understudy.proxy.ownership.drain import BEGIN_PATIENCE, Drain, DrainApi
from understudy.proxy.ownership.handover_pacing import Unhurried
from understudy.proxy.ownership.owned_slots import Holdings
from understudy.proxy.ownership.read_deadline import ReadDeadline
from understudy.proxy.ownership.slot_reconciler import Roles
from understudy.proxy.ownership.step_down import StepDown
from understudy.proxy.peers.anti_entropy import Scrub
from understudy.proxy.peers.clock_watch import ClockWatch, clock_view
from understudy.proxy.peers.peer_api import peer_app
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.peers.predecessor_monitor import Silence
from understudy.proxy.peers.sync_api import SyncApi, metrics_app, sync_view
from understudy.proxy.sessions.owner_calls import OwnerCalls
from understudy.proxy.sessions.request_sweep import RequestSweep
from understudy.proxy.sessions.service import SessionService
from understudy.proxy.sessions.session_api import session_app
from understudy.proxy.sidecar.checks_api import ChecksApi, built_in_checks
from understudy.proxy.sidecar.listen import CannotStart, listen, protection
from understudy.proxy.sidecar.metrics import SidecarMetrics
from understudy.proxy.sidecar.name_holder import NameTaken
from understudy.proxy.sidecar.registration import Presence, fit_others, lasting_others, refusal_of, state_of
from understudy.proxy.sidecar.settings import NO_HEALTH_PORT, SidecarSettings
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.etcd.informer import Mirror, MirrorBatch
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.heartbeat.pulse import Pulses
from understudy.statesync.http.http_port import serve
from understudy.statesync.pool.access import EtcdMissing, await_etcd
from understudy.statesync.pool.app_health import AppHealth
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.ownership import FailoverLog
from understudy.statesync.pool.pools import PoolWatch
from understudy.statesync.pool.records import Member, MemberState
from understudy.statesync.pool.spec import CheckSpec
from understudy.statesync.pool.spec_tcp import Tcp
from understudy.statesync.pool.state import Changed, PoolState
from understudy.statesync.sessions.commit import Committer
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.request_log import RequestLog
from understudy.statesync.sessions.session_crypto import SessionCodec, agree
from understudy.statesync.testing.crash_points import UnknownCrashPoint, arm_from_environment
from understudy.statesync.tls.identity import Trust
from understudy.statesync.tls.secret_files import TooOpen, fault_of
from understudy.telemetry.metrics.phase_metrics import PhaseMetrics, expose
from understudy.telemetry.metrics.span_metrics import SpanMetrics
from understudy.telemetry.tracing.names import POOL, SERVICE_SIDECAR, SITE
from understudy.telemetry.tracing.setup import Telemetry, service_version, start_telemetry

logger = logging.getLogger(__name__)


async def run_sidecar(settings: SidecarSettings) -> int:
    """Run a sidecar until SIGTERM or SIGINT; returns the process's exit code.

    1: another process of the same name has taken its place. 2: it could not start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        arm_from_environment()
        async with running_sidecar(settings) as sidecar:
            _keep_what_is_there()
            logger.info("sidecar of %s: session API on %s", settings.member, settings.session_api)
            await first_of(stop, sidecar.presence.displaced)
            if not stop.is_set():
                return 1
            await sidecar.drain.run()
    except (CannotStart, EtcdMissing, UnknownCrashPoint) as error:
        logger.error("sidecar of %s cannot start: %s", settings.member, error)  # noqa: TRY400 - one line is the point
        return 2
    return 0


def _keep_what_is_there() -> None:
    """Take what has been loaded out of the cycle collector's sight; only for who owns the process.

    Of the 70,000 objects of a sidecar that has just started nearly all are there to stay. To look at them held up
    every request, and the beats, for 20 to 35 ms each time.
    """
    gc.collect()
    gc.freeze()


@dataclass(slots=True)
class Sidecar:
    """A running sidecar."""

    settings: SidecarSettings
    context: MemberContext
    roles: Roles
    presence: Presence
    check: ApplicationCheck
    reads: ReadDeadline
    service: SessionService
    calls: OwnerCalls
    scrub: Scrub
    book: CheckBook
    drain: Drain
    pool: PoolWatch
    unbegun: Callable[[], str]
    started: bool = False
    was_well: bool = False
    """Whether it could have had slots at some time since it started."""
    refusal: str = "starting"
    """Why front Envoys had better go elsewhere, as of the last look; '' if they may come."""

    def state(self) -> tuple[MemberState, str]:
        """How the member is now."""
        context, leaving = self.context, self.roles.leaving
        roles = bool(len(context.holdings)) or bool(context.view().table.slots_held_by(context.me))
        state, reason = state_of(
            draining=leaving.why if leaving else "",
            fault=self.fault(),
            synced=context.mirror.synced.is_set() and context.state.spec is not None,
            has_roles=roles,
            others=bool(fit_others(self.context)),
            starting=self.unbegun() or self.book.starting(time.monotonic()),
            failed=self.was_well and bool(self.local_fault()),
            no_pool=self.pool.fault,
        )
        self.was_well |= state.may_hold_slots
        self.refusal = refusal_of(state, reason, fault=self.local_fault(), owns=bool(len(context.holdings)))
        return state, reason

    def fault(self) -> str:
        """What keeps this member from serving well, '' for nothing."""
        return self.local_fault() or self.reads.fault or self.context.replica.fault

    def local_fault(self) -> str:
        """What is wrong in this member itself, '' for nothing."""
        return self.check.reason or self.book.fault(time.monotonic())

    def questions(self) -> Mapping[str, Question]:
        """What an orchestrator may ask at the health port besides."""
        return {
            "/started": lambda: "" if self.started else "starting",
            "/drained": Patient(
                lambda: self.drain.outstanding(time.monotonic()), lambda: self.drain.begun, BEGIN_PATIENCE
            ),
        }

    def status(self) -> tuple[dict[str, object], bool]:
        """The member's view of itself for ``/v1/status``, and whether it is ready."""
        context = self.context
        state, reason = self.state()
        commits, pressure = context.committer.stats, context.committer.pressure(time.monotonic())
        view: dict[str, object] = {
            "member": context.me,
            "pool": context.keys.pool,
            "boot": context.boot,
            "state": state,
            "reason": reason,
            "active": sorted(context.holdings.slots),
            "held": len(context.replica.held),
            "in_sync": len(context.replica.synced),
            "sessions": context.replica.count(context.replica.held),
            "applied_revision": context.mirror.revision,
            "queued_writes": context.committer.queued,
            "unresolved_writes": pressure.writes,
            "oldest_write_ms": round(pressure.delay * 1000),
            "committed_writes": commits.writes,
            "transactions": commits.transactions,
            "resent_transactions": commits.resent,
            "async_lost": self.calls.async_lost,
            "forwarded_calls": self.service.forwarded,
            "sync": sync_view(context),
            "pulses": {member: runs for (member, _), runs in sorted(context.seen().items())},
            "clock": clock_view(context.clock),
            "trouble": self.roles.trouble or context.mirror.trouble,
        }
        return view, state in (MemberState.READY, MemberState.UP)


@contextlib.asynccontextmanager
async def running_sidecar(settings: SidecarSettings) -> AsyncIterator[Sidecar]:
    """A sidecar that serves inside the block. Raises :class:`CannotStart` or ``EtcdMissing``."""
    trust = Trust(settings.pool, settings.trust_domain)
    guard = protection(
        peer=settings.peer,
        tls=settings.tls,
        session_api=settings.session_api,
        token_file=settings.session_token_file,
        key_file=settings.session_keys,
        insecure=settings.insecure,
        trust=trust,
    )
    async with contextlib.AsyncExitStack() as stack:
        etcd = _etcd(settings.etcd)
        stack.push_async_callback(etcd.close)
        peers = PeerClient(guard.peers)
        stack.push_async_callback(peers.close)
        credentials = settings.tls.channel_credentials if settings.tls else None
        place = {POOL: settings.pool, **({SITE: settings.site} if settings.site else {})}
        telemetry = start_telemetry(SERVICE_SIDECAR, settings.member, attributes=place, credentials=credentials)
        stack.push_async_callback(telemetry.aclose)
        parts = _Assembly(settings, etcd, peers, telemetry, guard.codec)
        stack.callback(parts.context.held_up.close)
        sidecar = parts.sidecar
        parts.presence.record = replace(parts.presence.record, health=_open_health_port(stack, sidecar))
        session_side = session_app(parts.service, sidecar.status, guard.tokens)
        parts.checks_api.add_to(session_side)
        DrainApi(sidecar.drain, lambda: parts.check.listening).add_to(session_side)
        session_runner = await serve(stack, session_side)
        peer_side = peer_app(
            parts.context,
            parts.service,
            parts.roles.handover,
            parts.roles.takeovers,
            parts.reads,
            trust=trust if guard.peers is not None else None,
        )
        exposed = partial(expose, parts.metrics.registry)
        SyncApi(parts.context, sidecar.status, sidecar.scrub, exposed).add_to(peer_side)
        peer_runner = await serve(stack, peer_side)
        await listen(peer_runner, settings.peer, "the peer API", tls=guard.peers.server() if guard.peers else None)
        await listen(session_runner, settings.session_api, "the session API", mode=settings.socket_mode)
        if settings.metrics:
            await listen(await serve(stack, metrics_app(exposed)), settings.metrics, "the metrics port")
        await await_etcd(etcd, settings.etcd, settings.pool)
        await _agree(parts.context, guard.codec)
        await _own_name(parts.presence)
        for name, work in {
            "group commit": parts.context.committer.run(),
            "ownership": parts.roles.run(),
            "read deadline": parts.reads.run(),
            "contact with etcd": StepDown(parts.context, parts.reads, parts.roles).run(),
            "sweeping": parts.service.sweep(),
            "request sweep": RequestSweep(parts.context).run(),
            "scrubbing": sidecar.scrub.run(),
            "application check": parts.check.run(),
            "stall watch": sidecar.context.stall.run(),
            "pulses": parts.silence.run(),
            "pool clock": ClockWatch(parts.context).run(),
            "checks of the spec": parts.probes.run(parts.wanted_checks),
            "state": parts.presence.watch_state(),
            "pool": sidecar.pool.run(),
            "mirror": parts.context.mirror.run(),
            "member record": parts.presence.run(),
            "heartbeats": parts.presence.beat(),
        }.items():
            await _keep_running(stack, work, name)
        sidecar.started = True
        yield sidecar


def _open_health_port(stack: contextlib.AsyncExitStack, sidecar: Sidecar) -> str:
    """Open the health port; returns where it is, '' if there is none."""
    settings = sidecar.settings
    if settings.health == NO_HEALTH_PORT:
        return ""
    try:
        return open_health_port(
            stack,
            settings.health,
            settings.app,
            lambda: sidecar.refusal,
            sidecar.context.stall,
            sidecar.questions(),
            lambda: sidecar.context.etcd.wanting_at,
        )
    except (OSError, ValueError) as error:
        raise CannotStart(
            f"the health port cannot be opened: {error}; give an address of this host that the front Envoys reach "
            f"with --health, or --health {NO_HEALTH_PORT}"
        ) from None


def _etcd(settings: EtcdSettings) -> EtcdClient:
    try:
        return settings.client()
    except TooOpen as error:
        raise CannotStart(fault_of(error)) from None
    except (OSError, ValueError) as error:
        raise CannotStart(f"--etcd {','.join(settings.endpoints)}: {error}") from None


async def _agree(context: MemberContext, codec: SessionCodec) -> None:
    """Start with the others' encryption key or not at all."""
    try:
        fault = await agree(context.etcd, context.keys, codec)
    except EtcdError as error:
        fault = f"the pool's encryption cannot be checked: {error}"
    if fault:
        raise CannotStart(fault)


async def _own_name(presence: Presence) -> None:
    """Start as the only living process of this name or not at all."""
    try:
        await presence.name.check()
    except NameTaken as error:
        raise CannotStart(str(error)) from None
    except EtcdError as error:
        raise CannotStart(f"etcd does not tell who has this member's name: {error}") from None


class _Assembly:
    """Builds the parts of one sidecar, whose callbacks need one another."""

    def __init__(
        self,
        settings: SidecarSettings,
        etcd: EtcdClient,
        peers: PeerClient,
        telemetry: Telemetry,
        codec: SessionCodec,
    ) -> None:
        self.settings = settings
        keys = PoolKeys(settings.pool)
        boot = secrets.token_hex(8)
        self.telemetry = telemetry
        stall, requests = StallWatch(), RequestLog(keys, settings.member, boot)
        self.context = MemberContext(
            me=settings.member,
            boot=boot,
            keys=keys,
            etcd=etcd,
            state=PoolState(keys),
            mirror=Mirror(
                etcd,
                (*keys.without_sessions, prefix_range(keys.requests)),
                self._on_batch,
                watched=(keys.everything,),
            ),
            replica=Replica(etcd, keys, codec),
            requests=requests,
            holdings=Holdings(),
            committer=Committer(etcd, keys, settings.member, boot, requests),
            peers=peers,
            telemetry=telemetry,
            first_answers=FirstAnswers(telemetry, settings.pool, settings.member),
            held_up=HeldUp(telemetry, settings.pool, settings.member, self._slowest_since),
            writers=Writers(telemetry, settings.pool, settings.member),
            failovers=FailoverLog(keys, settings.member),
            stall=stall,
            site=settings.site,
        )
        self.roles = Roles(self.context, self._fault, Unhurried.within(settings.drain_seconds))
        self.reads = ReadDeadline(self.context, self.roles.on_batch, self._on_check)
        self.check = ApplicationCheck(
            settings.app,
            AppHealth.parse(settings.app_health),
            self._on_check,
            rules=lambda: self.context.liveness,
            stall=lambda: stall.worst,
            known=lambda: self.context.state.spec is not None,
            tcp=self._tcp,
        )
        self.presence = Presence(self.context, _record(settings, boot), self._state, settings.tls)
        self.context.first_answers.on_change = self.presence.beat_at_once
        self.silence = Silence(self.context, Pulses(), self.presence.beat_at_once)
        self.context.seen = lambda: self.silence.seen
        peers.runs = self.silence.runs
        calls = OwnerCalls(self.context, self.reads)
        self.service = SessionService(self.context, self.roles, calls)
        self.sidecar = Sidecar(
            settings,
            self.context,
            self.roles,
            self.presence,
            self.check,
            self.reads,
            self.service,
            calls,
            Scrub(self.context, interval=settings.scrub_interval),
            CheckBook(),
            Drain(
                self.context,
                self.roles,
                stir=self.presence.stir,
                others=partial(lasting_others, self.context),
                seconds=settings.drain_seconds,
            ),
            PoolWatch(etcd, settings.pool, self._no_pool),
            lambda: self.probes.unbegun(self.wanted_checks()),
        )
        self.probes = Probes(self.sidecar.book, self._on_check, commands=settings.allow_command_checks)
        own = partial(built_in_checks, self.context, self.check, self.reads, stall)
        self.checks_api = ChecksApi(self.sidecar.book, own, self._on_check)
        self.metrics = self._metered(calls)

    def _metered(self, calls: OwnerCalls) -> SidecarMetrics:
        metrics = SidecarMetrics(
            self.context,
            self.reads,
            state=lambda: self.sidecar.state()[0],
            forwarded=lambda: self.service.forwarded,
            async_lost=lambda: calls.async_lost,
        )
        self.telemetry.on_span = PhaseMetrics(metrics.registry, self.context.keys.pool).recorded
        SpanMetrics(metrics.registry, lambda: self.telemetry.counts)
        self.service.on_answer = metrics.answered
        self.context.committer.on_commit = metrics.committed
        return metrics

    def _on_batch(self, batch: MirrorBatch) -> None:
        changed = self.roles.on_batch(batch)
        if changed & Changed.CONTROLS:
            self.telemetry.set_endpoints([at.record.grpc for at in self.context.state.controls.values()])
        if changed:
            self.presence.stir()

    def _on_check(self) -> None:
        self.presence.stir()

    def _state(self) -> tuple[MemberState, str]:
        return self.sidecar.state()

    def _fault(self) -> str:
        return self.sidecar.fault()

    def _slowest_since(self, then: float) -> float:
        return self.check.slowest_since(then)

    def _no_pool(self) -> bool:
        state = self.context.state
        return self.context.mirror.synced.is_set() and state.spec is None and state.keys.spec not in state.faults

    def _tcp(self) -> Tcp | None:
        spec = self.context.state.spec
        return spec.record.tcp if spec else None

    def wanted_checks(self) -> tuple[CheckSpec, ...]:
        """The checks that the sidecar is to run now: the spec's, this member's own, and the local Envoy's."""
        spec = self.context.state.spec
        envoy = self.settings.envoy_admin
        ready = (CheckSpec(name="envoy", http=f"http://{envoy}/ready", failures=3),) if envoy else ()
        shared = spec.record.checks if spec else ()
        return ready + shared + tuple(own for own in self.settings.checks if own.name not in {c.name for c in shared})


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
    )


async def _keep_running(stack: contextlib.AsyncExitStack, work: Coroutine[object, object, None], name: str) -> None:
    """Run ``work`` beside the block; when the stack unwinds it is cancelled and awaited."""
    task = asyncio.create_task(work, name=name)

    def failed(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and done.exception() is not None:
            logger.critical("%s failed; this sidecar cannot go on", name, exc_info=done.exception())
            os.kill(os.getpid(), signal.SIGTERM)

    async def end() -> None:
        task.remove_done_callback(failed)  # who ends it needs no signal, and may be another process than a sidecar's
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, Exception):
            logger.error("%s did not end well", name, exc_info=outcome)

    task.add_done_callback(failed)
    stack.push_async_callback(end)
