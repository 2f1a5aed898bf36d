"""Carries beats and probes for the failure detector: heartbeat streams in, probes out.

Serves the bidirectional gRPC method of :mod:`understudy.statesync.heartbeat.heartbeat`. A killed member is noticed when
its kernel closes the socket. A suspect is probed at its peer port. Every decision is made by
:mod:`understudy.xds.membership.failure_detector`. A stream with an invalid beat is ended with the reason; other streams
go on.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, NoReturn

import aiohttp
import grpc
import msgspec

from understudy.statesync.heartbeat.challenge import Answer, Challenge, cannot_ask, probe_both_ways
from understudy.statesync.heartbeat.heartbeat import (
    ANSWER_INTERVAL,
    ANSWERS,
    BEAT_INTERVAL,
    METHOD,
    SERVICE,
    STREAM_SILENCE,
    Beat,
    BeatAnswer,
    BeatReader,
)
from understudy.statesync.heartbeat.probe import TryResult, ask
from understudy.statesync.pool.pool_clock import wall_ms
from understudy.statesync.pool.records import Member
from understudy.statesync.process.services import set_within
from understudy.statesync.tls.peer_tls import PeerTls
from understudy.xds.membership.claim_reports import ClaimReports
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.load_book import LoadBook
from understudy.xds.membership.member_health import SECOND, MemberBoot, Probe, ProbeOutcome
from understudy.xds.server.stream_quota import StreamQuota

logger = logging.getLogger(__name__)

PROBE_TRIES = 3
_STREAM_TIMEOUT = round(STREAM_SILENCE * SECOND)
_ANSWER_INTERVAL = round(ANSWER_INTERVAL * SECOND)


END: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # not in the stubs
BeatContext = grpc.aio.ServicerContext[bytes, bytes]
ServeBeats = Callable[[BeatContext], Awaitable[None]]
"""Serves one heartbeat stream to its end."""


class OpenStream(msgspec.Struct):
    """A heartbeat stream: when its last beat arrived and was answered, in ns, and the timeout that ends it."""

    heard: int
    timeout: asyncio.Timeout
    answered: int = 0


def add_heartbeats(server: grpc.aio.Server, serve: ServeBeats) -> None:
    """Add the heartbeat service to a gRPC server that is not started yet."""

    async def handle(_: AsyncIterator[bytes], context: BeatContext) -> None:
        await serve(context)

    handler = grpc.stream_stream_rpc_method_handler(handle)
    name = METHOD.rsplit("/", 1)[1]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {name: handler}),))


async def greet(context: BeatContext) -> None:
    """Tell the member that its stream is open, for which it waits, and that its beats will be answered."""
    await context.send_initial_metadata(((ANSWERS, "1"),))


class HeartbeatServer:
    """Heartbeat streams and probes of one pool.

    Args:
        pool: the pool's name; a beat for another pool is refused.
        detector: gets every sign of life and every probe result.
        now_ns: the process's clock.
        on_claim: called on the event loop when a beat reports something new about a claim.
        challenge: asks a boot of a member through etcd whether it lives, for so many seconds.

    Attributes:
        identify: given a member's name and gRPC's auth context, returns why its beats are refused, or None. Set it
            before the server starts.
        tls: for the probes, if the members' peer ports want mTLS. Set it before :meth:`run`.
        claim_reports: what the members report about their claims.
        loads: what they report about their load.
        quota: counts the open streams. They are not counted with those of xDS, so that neither can use up the other's.
    """

    def __init__(
        self,
        pool: str,
        detector: FailureDetector,
        *,
        now_ns: Callable[[], int],
        on_claim: Callable[[], None],
        challenge: Challenge = cannot_ask,
    ) -> None:
        self._pool = pool
        self._detector = detector
        self._now = now_ns
        self._on_claim = on_claim
        self._challenge = challenge
        self.identify: Callable[[str, Mapping[str, Any]], str | None] = lambda _member, _context: None
        self.tls: PeerTls | None = None
        self.claim_reports = ClaimReports()
        self.loads = LoadBook()
        self.quota = StreamQuota()
        self._numbers = itertools.count(1)
        self._stopping = False
        self._check_now = asyncio.Event()
        self._probes: set[asyncio.Task[None]] = set()
        self._open: dict[int, OpenStream] = {}
        self._last_tick = 0

    def register(self, server: grpc.aio.Server) -> None:
        """Add the heartbeat service to a server that has not started yet."""
        add_heartbeats(server, self._stream)

    def update_records(self, members: Iterable[Member], owning: Iterable[MemberBoot]) -> None:
        """Tell the detector which members are registered and which own slots, as etcd has it now."""
        self._detector.update_records(members, owning, self._now())
        self.claim_reports.forget_all_but(self._detector.members)
        self.loads.forget_all_but(self._detector.members)
        self._check_now.set()

    async def run(self) -> None:
        """Run the detector's clock and carry out its probes, until cancelled."""
        # Each probe needs a new connection: it asks whether the host accepts one now.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
        ) as session:
            try:
                while True:
                    self._check_now.clear()
                    for probe in self._detector.due_probes(self._now()):
                        self._start_probe(session, probe)
                    self._end_silent_streams(self._now())
                    await set_within(self._check_now, BEAT_INTERVAL)
            finally:
                for task in self._probes:
                    task.cancel()
                await asyncio.gather(*self._probes, return_exceptions=True)

    def stop(self) -> None:
        """This server is about to end its streams. From now on a closed stream makes nobody a suspect."""
        self._stopping = True

    def end_streams(self) -> None:
        """:meth:`stop`, and end the streams: this server no longer serves the pool, but its port stays open."""
        self.stop()
        for stream in self._open.values():
            if not stream.timeout.expired():
                stream.timeout.reschedule(asyncio.get_running_loop().time())

    async def _stream(self, context: BeatContext) -> None:
        async with self.quota.held(context):
            await greet(context)
            await self.serve(context)

    async def serve(self, context: BeatContext, first: bytes | None = None) -> None:
        """Serve one stream, which was greeted, to its end. ``first`` is its first beat, if that was read already."""
        stream = next(self._numbers)
        try:
            async with asyncio.timeout(None) as timeout:
                self._open[stream] = OpenStream(self._now(), timeout)
                await self._read_beats(stream, context, first)
        except TimeoutError:
            if self._stopping:
                await context.abort(grpc.StatusCode.UNAVAILABLE, f"pool {self._pool!r} is no longer served here")
            logger.info("heartbeat stream %d ended: no beat for %g s", stream, STREAM_SILENCE)
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no beat for {STREAM_SILENCE:g} s")
        finally:
            self._open.pop(stream, None)

    async def _read_beats(self, stream: int, context: BeatContext, first: bytes | None) -> None:
        who: MemberBoot | None = None
        reader = BeatReader()
        try:
            raw = await context.read() if first is None else first
            while raw is not END:
                beat = await self._decode(reader, raw, who, context)
                who = beat.member, beat.boot
                self._take_in(stream, beat)
                await self._answer(stream, beat, context)
                raw = await context.read()
        finally:
            if who is not None and not self._stopping:
                self._detector.on_stream_closed(stream, *who, self._now())
                self._check_now.set()

    def _take_in(self, stream: int, beat: Beat) -> None:
        now = self._now()
        self._open[stream].heard = now
        self._detector.on_beat(
            stream,
            beat.member,
            beat.boot,
            beat.state,
            now,
            reason=beat.reason,
            applied=beat.applied,
            stall=round(beat.stall * 1e9),
            lacking=beat.lacking,
            pulses={(member, boot): runs for member, boot, runs in beat.pulses},
        )
        if beat.load is not None:
            self.loads.on_report((beat.member, beat.boot), beat.load, now)
        if not all(runs for _, _, runs in beat.pulses):
            self._check_now.set()
        if self.claim_reports.on_beat(beat, now):
            self._on_claim()

    async def _answer(self, stream: int, beat: Beat, context: BeatContext) -> None:
        now = self._now()
        if beat.answers and now - self._open[stream].answered >= _ANSWER_INTERVAL:
            self._open[stream].answered = now
            await context.write(BeatAnswer(beat.sent, wall_ms()).encode())

    def _end_silent_streams(self, now: int) -> None:
        """End streams without a beat for too long, unless this process itself stood still meanwhile."""
        late, self._last_tick = now - self._last_tick if self._last_tick else 0, now
        for stream in self._open.values():
            if late > self._detector.timeouts.pause:
                stream.heard = max(stream.heard, now)
            elif now - stream.heard >= _STREAM_TIMEOUT and not stream.timeout.expired():
                stream.heard = now
                stream.timeout.reschedule(asyncio.get_running_loop().time())

    async def _decode(self, reader: BeatReader, raw: bytes, who: MemberBoot | None, context: BeatContext) -> Beat:
        """The beat; ends the stream if it is not a valid beat of this pool and of the member that the stream is for."""
        try:
            beat = reader.read(raw)
        except (ValueError, TypeError) as error:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"not a beat: {error}")
        if beat.pool != self._pool:
            text = f"this control server serves pool {self._pool!r}, not {beat.pool!r}"
            await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, text)
        if who is None and (reason := self.identify(beat.member, context.auth_context())):
            await _refuse(context, grpc.StatusCode.PERMISSION_DENIED, reason)
        if who is not None and who != (beat.member, beat.boot):
            text = f"this stream is for {who}, and the beat is from {beat.member, beat.boot}"
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, text)
        return beat

    def _start_probe(self, session: aiohttp.ClientSession, probe: Probe) -> None:
        task = asyncio.create_task(self._carry_out(session, probe))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _carry_out(self, session: aiohttp.ClientSession, probe: Probe) -> None:
        direct = ask_peer(session, probe.member, probe.peer, self.tls, timeout_seconds=probe.timeout / SECOND)
        if probe.etcd_timeout:
            (result, boot), answer = await probe_both_ways(
                direct,
                lambda: self._challenge(probe.member, probe.boot, probe.etcd_timeout / SECOND),
                lambda found: found[0] is ProbeOutcome.SILENT,
            )
            result = _through_etcd(result, answer)
        else:
            result, boot = await direct
        logger.info("probe of %s (boot %s) at %s: %s", probe.member, probe.boot, probe.peer, result)
        self._detector.on_probe_outcome(probe, result, self._now(), boot=boot)


def _through_etcd(direct: ProbeOutcome, answer: Answer | None) -> ProbeOutcome:
    """The outcome of a probe, with what the member said through etcd if that was asked."""
    match answer:
        case Answer.ALIVE:
            return ProbeOutcome.THROUGH_ETCD
        case Answer.UNKNOWN:
            return ProbeOutcome.VOID
        case _:
            return direct


async def ask_peer(
    session: aiohttp.ClientSession, member: str, peer: str, tls: PeerTls | None = None, *, timeout_seconds: float
) -> tuple[ProbeOutcome, str]:
    """Ask a sidecar's peer port for its boot id: up to three tries against silence, ``timeout_seconds`` in all.

    A refused connection is a result at once: the kernel of that host says that nobody listens. A try is void if it took
    much longer than its time limit, since then this process was late. It is also void if the certificates are at fault:
    somebody answers, but it is not known who. Only another member's certificate proves that this member is gone.
    """
    silent = False
    longest = timeout_seconds / PROBE_TRIES
    for _ in range(PROBE_TRIES):
        one = await ask(session, peer, member, tls, longest)
        match one.found:
            case TryResult.ANSWERED if one.boot:
                return ProbeOutcome.ANSWERED, one.boot
            case TryResult.OTHER_MEMBER:
                return ProbeOutcome.ANSWERED, "of another member"
            case TryResult.FORBIDDEN | TryResult.UNTRUSTED:
                return ProbeOutcome.VOID, ""
            case TryResult.REFUSED:
                return ProbeOutcome.REFUSED, ""
            case TryResult.SILENT:
                silent = silent or one.seconds < 2 * longest
            case _:
                silent = True
    return (ProbeOutcome.SILENT if silent else ProbeOutcome.VOID), ""


async def _refuse(context: BeatContext, code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort raises")
