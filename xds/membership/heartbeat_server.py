"""The shell around the book of life: heartbeat streams in, probes out.

Serves the bidirectional gRPC method of :mod:`understudy.statesync.heartbeat.heartbeat`, so that a killed member is
noticed when its kernel closes the socket, and asks a suspect's peer port whether it still lives. Every judgement is
left to :mod:`understudy.xds.membership.failure_detector`. A stream that says nonsense is ended with the reason; it
never disturbs others.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import aiohttp
import grpc

from understudy.statesync.heartbeat.heartbeat import (
    ANSWER_INTERVAL,
    ANSWERS,
    BEAT_INTERVAL,
    METHOD,
    SERVICE,
    STREAM_SILENCE,
    Answer,
    Beat,
)
from understudy.statesync.heartbeat.probe import Found, ask
from understudy.statesync.pool.pool_clock import wall_ms
from understudy.statesync.pool.records import Member
from understudy.statesync.tls.peer_tls import PeerTls
from understudy.xds.membership.claim_reports import Told
from understudy.xds.membership.failure_detector import SECOND, Finding, Identity, LivenessBook, Question
from understudy.xds.server.stream_quota import StreamQuota

logger = logging.getLogger(__name__)

PROBE_TRIES = 3
_SILENCE = round(STREAM_SILENCE * SECOND)
_ANSWER_EVERY = round(ANSWER_INTERVAL * SECOND)


@dataclass(slots=True)
class OpenStream:
    """A heartbeat stream: when it was last heard and answered, in ns, and what ends it."""

    heard: int
    limit: asyncio.Timeout
    answered: int = 0


class Heartbeat:
    """Heartbeat streams and probes of one pool.

    Args:
        pool: the pool's name; a beat for another pool is refused.
        book: what is told of every sign of life.
        now_ns: the process's clock.
        on_change: called on the event loop when a standing or a reported state changed.

    Attributes:
        identify: given a member's name and gRPC's auth context, why its beats are not believed, or None. Set it before
            the server starts.
        tls: for the probes, if the members' peer ports want mTLS. Set it before :meth:`run`.
        told: what the members tell of their takeovers.
        quota: counts the open streams. They are not counted with those of xDS, so that neither can use up the other's.
    """

    def __init__(
        self, pool: str, book: LivenessBook, *, now_ns: Callable[[], int], on_change: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._book = book
        self._now = now_ns
        self._on_change = on_change
        self.identify: Callable[[str, Mapping[str, Any]], str | None] = lambda _member, _context: None
        self.tls: PeerTls | None = None
        self.told = Told()
        self.quota = StreamQuota()
        self._seen = book.version
        self._numbers = itertools.count(1)
        self._stopping = False
        self._look_now = asyncio.Event()
        self._probes: set[asyncio.Task[None]] = set()
        self._open: dict[int, OpenStream] = {}
        self._turn = 0

    def register(self, server: grpc.aio.Server) -> None:
        """Add the heartbeat service to a server that has not started yet."""
        handler = grpc.stream_stream_rpc_method_handler(self._stream)
        name = METHOD.rsplit("/", 1)[1]
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {name: handler}),))

    def record(self, members: Iterable[Member], owning: Iterable[Identity]) -> None:
        """Tell the book who is registered and who owns slots, as etcd has it now."""
        self._book.record(members, owning, self._now())
        self.told.keep(self._book.pulses)
        self._look_now.set()

    async def run(self) -> None:
        """Let time pass for the book and carry out its probes, until cancelled."""
        # A fresh connection for each probe: the question is whether anybody accepts one now.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
        ) as session:
            try:
                while True:
                    self._look_now.clear()
                    for question in self._book.due(self._now()):
                        self._start_probe(session, question)
                    self._end_silent(self._now())
                    self._tell()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._look_now.wait(), BEAT_INTERVAL)
            finally:
                for probe in self._probes:
                    probe.cancel()
                await asyncio.gather(*self._probes, return_exceptions=True)

    def stop(self) -> None:
        """This server is about to end its streams itself: from now on, that is no sign of anything."""
        self._stopping = True

    async def _stream(self, beats: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        async with self.quota.held(context):
            # The open stream is what the member waits for, and this tells it that answers follow.
            await context.send_initial_metadata(((ANSWERS, "1"),))
            await self._serve(beats, context)

    async def _serve(self, beats: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        stream = next(self._numbers)
        try:
            async with asyncio.timeout(None) as limit:
                self._open[stream] = OpenStream(self._now(), limit)
                await self._listen(stream, beats, context)
        except TimeoutError:
            logger.info("heartbeat stream %d is ended: nothing was heard on it for %g s", stream, STREAM_SILENCE)
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no beat was heard for too long")
        finally:
            self._open.pop(stream, None)

    async def _listen(
        self, stream: int, beats: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        who: Identity | None = None
        try:
            async for raw in beats:
                beat = await self._read(raw, who, context)
                who, now = (beat.member, beat.boot), self._now()
                self._open[stream].heard = now
                self._book.beat(
                    stream,
                    *who,
                    beat.state,
                    now,
                    reason=beat.reason,
                    applied=beat.applied,
                    stall=round(beat.stall * 1e9),
                    lacking=beat.lacking,
                    pulses={(member, boot): runs for member, boot, runs in beat.pulses},
                )
                self._tell()
                if not all(runs for _, _, runs in beat.pulses):
                    self._look_now.set()
                if self.told.heard(beat, now):
                    self._on_change()
                if beat.answers and now - self._open[stream].answered >= _ANSWER_EVERY:
                    self._open[stream].answered = now
                    await context.write(Answer(beat.sent, wall_ms()).encode())
        finally:
            if who is not None and not self._stopping:
                self._book.closed(stream, *who, self._now())
                self._look_now.set()

    def _end_silent(self, now: int) -> None:
        """End the streams on which nothing is heard; not for a silence in which this process stood still itself."""
        late, self._turn = now - self._turn if self._turn else 0, now
        for one in self._open.values():
            if late > self._book.rules.pause:
                one.heard = max(one.heard, now)
            elif now - one.heard >= _SILENCE and not one.limit.expired():
                one.heard = now
                one.limit.reschedule(asyncio.get_running_loop().time())

    async def _read(self, raw: bytes, who: Identity | None, context: grpc.aio.ServicerContext[bytes, bytes]) -> Beat:
        try:
            beat = Beat.decode(raw)
        except (ValueError, TypeError) as error:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"not a beat: {error}")
        if beat.pool != self._pool:
            text = f"this control server serves pool {self._pool!r}, not {beat.pool!r}"
            await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, text)
        if who is None and (reason := self.identify(beat.member, context.auth_context())):
            await _refuse(context, grpc.StatusCode.PERMISSION_DENIED, reason)
        if who is not None and who != (beat.member, beat.boot):
            text = f"one stream is one boot of one member: it began as {who}, now {beat.member, beat.boot}"
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, text)
        return beat

    def _tell(self) -> None:
        if self._seen != self._book.version:
            self._seen = self._book.version
            self._on_change()

    def _start_probe(self, session: aiohttp.ClientSession, question: Question) -> None:
        probe = asyncio.create_task(self._probe(session, question))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _probe(self, session: aiohttp.ClientSession, question: Question) -> None:
        patience = question.patience / SECOND
        finding, boot = await probe(session, question.member, question.peer, self.tls, patience=patience)
        logger.info("probe of %s (boot %s) at %s: %s", question.member, question.boot, question.peer, finding)
        self._book.answered(question, finding, self._now(), boot=boot)
        self._tell()


async def probe(
    session: aiohttp.ClientSession, member: str, peer: str, tls: PeerTls | None = None, *, patience: float
) -> tuple[Finding, str]:
    """Ask a sidecar's peer port for its boot id: up to three tries against silence, ``patience`` seconds in all.

    A refused connection is an answer at once: the kernel of that host speaks, and it says that nobody
    listens. A try that took much longer than its time limit says more about this process than about the
    member, and is void. So is an exchange that fails over certificates: somebody is there, and who is not
    known. Only another member's certificate says for sure that this one is gone.
    """
    silent = False
    limit = patience / PROBE_TRIES
    for _ in range(PROBE_TRIES):
        one = await ask(session, peer, member, tls, limit)
        match one.found:
            case Found.ANSWERED if one.boot:
                return Finding.ANSWERED, one.boot
            case Found.OTHER_MEMBER:
                return Finding.ANSWERED, "of another member"
            case Found.FORBIDDEN | Found.UNTRUSTED:
                return Finding.VOID, ""
            case Found.REFUSED:
                return Finding.REFUSED, ""
            case Found.SILENT:
                silent = silent or one.seconds < 2 * limit
            case _:
                silent = True
    return (Finding.SILENT if silent else Finding.VOID), ""


async def _refuse(context: grpc.aio.ServicerContext[bytes, bytes], code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort raises")
