"""Sends single calls to etcd: several endpoints, deadlines, tokens, and what to do when an attempt fails.

There is one gRPC channel per endpoint. Calls stay with the endpoint that works and move on when it does not. A call is
sent only on a connected channel, which separates "no endpoint is reachable" from "sent, but not answered". A read is
tried again elsewhere before its deadline; a write only when the failed attempt certainly changed nothing. Streams
(watch, keepalive) take a connected endpoint from here and report its failures back.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from enum import Enum

import grpc
import grpc.aio
import msgspec

from understudy.statesync.etcd import etcd_pb2 as rpc
from understudy.statesync.etcd.errors import NO_LEADER, EtcdError, Unavailable, Verdict, error_of, judge
from understudy.statesync.etcd.leader import NO_LEADER_PAUSE, GivenUp, LeaderReport, LeaderWatch
from understudy.statesync.etcd.model import Message
from understudy.statesync.etcd.settings import address_of
from understudy.statesync.tls.pem_files import PemFiles
from understudy.telemetry.timing.backoff import Backoff

# etcd closes connections that ping more often than every 5 s, or without a call in flight.
# The minimum reconnect backoff is gRPC's name for the time that one attempt to connect may take.
CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_http_proxy", 0),
)
SUSPECT_FOR = 3.0
SHORTEST_ATTEMPT = 0.2
LOGINS = 3
ALL_TRIED = 0.02
"""Seconds before a call goes round all endpoints again."""
_LEADER = ("hasleader", "true")
UNARY_METHODS = {
    "range": "KV.Range",
    "put": "KV.Put",
    "delete": "KV.DeleteRange",
    "txn": "KV.Txn",
    "compact": "KV.Compact",
    "lease grant": "Lease.LeaseGrant",
    "lease revoke": "Lease.LeaseRevoke",
    "authenticate": "Auth.Authenticate",
    "status": "Maintenance.Status",
    "move leader": "Maintenance.MoveLeader",
}
"""The calls of one question and one answer: their names in messages, and the methods of etcd's API."""

FORMER = "this member belongs to an etcd that was given up by 'understudy site take-over'"
Metadata = tuple[tuple[str, str], ...]


class Choice(Enum):
    """Why no endpoint was chosen."""

    WAIT = "not connected yet"
    NONE = "no connection"


def choose(states: Sequence[grpc.ChannelConnectivity], suspect: Sequence[bool], start: int) -> int | Choice:
    """Which endpoint to use: the first connected from ``start`` on; a suspect only if there is nothing else."""
    order = [(start + step) % len(states) for step in range(len(states))]
    for suspects in (False, True):
        group = [index for index in order if suspect[index] is suspects]
        for index in group:
            if states[index] is grpc.ChannelConnectivity.READY:
                return index
        connecting = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)
        if any(states[index] in connecting for index in group):
            return Choice.WAIT
    return Choice.NONE


class EtcdEndpoint:
    """One etcd member as a client reaches it: address, channel, its methods, and until when it is suspect."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.address = address
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
        self.suspect_until = 0.0
        self.unary = {name: _method(self.channel.unary_unary, method) for name, method in UNARY_METHODS.items()}
        self.watch = _method(self.channel.stream_stream, "Watch.Watch")
        self.keep_alive = _method(self.channel.stream_stream, "Lease.LeaseKeepAlive")


def _method(kind: Callable[..., Message], name: str) -> Message:
    """A method of etcd's API, for example ``KV.Range``, as a callable of a channel."""
    service, _, method = name.partition(".")
    described = rpc.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    return kind(
        f"/{described.containing_service.full_name}/{method}",
        request_serializer=getattr(rpc, described.input_type.name).SerializeToString,
        response_deserializer=getattr(rpc, described.output_type.name).FromString,
    )


class FormerMember(Exception):
    """A member of an etcd that was given up answered. Nothing that it says or does counts."""


class _Call(msgspec.Struct):
    """One call over all its attempts."""

    name: str
    request: Message
    deadline: float
    repeatable: bool
    leader: bool
    with_token: bool = True
    tried: int = 0
    logins: int = 0

    @property
    def remaining(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def may_log_in(self) -> bool:
        return self.with_token and self.logins < LOGINS and self.remaining > 0

    def share(self, endpoints: int) -> float:
        """Seconds for the next attempt: all that is left; a read leaves some to endpoints not tried yet."""
        untried = endpoints - self.tried
        if not self.repeatable or untried <= 1:
            return max(self.remaining, 0.001)
        return min(max(self.remaining / untried, SHORTEST_ATTEMPT), max(self.remaining, 0.001))

    def may_go_on(self, verdict: Verdict, endpoints: int) -> bool:
        """Whether another attempt is allowed after one with this verdict."""
        if self.remaining <= 0 or verdict not in (Verdict.NOT_DONE, Verdict.UNKNOWN):
            return False
        return self.repeatable or (verdict is Verdict.NOT_DONE and self.tried < endpoints)


class Transport:
    """The endpoints of one etcd cluster and the calls made on them; belongs to one event loop."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout: float,
        tls: PemFiles | None,
        username: str | None,
        password: str | None,
    ) -> None:
        if not endpoints:
            raise ValueError("an etcd client needs at least one endpoint")
        credentials = tls.channel_credentials() if tls else None
        addresses = list(map(address_of, endpoints))
        self.timeout = timeout
        self.endpoints = [EtcdEndpoint(address, credentials) for address in addresses]
        self.closed = False
        self.refused: set[int] = set()
        """Ids of members of etcd whose answers do not count (:meth:`EtcdClient.refuse`)."""
        self._current = 0
        self._login = (username, password or "") if username else None
        self._token: str | None = None
        self._renewing = asyncio.Lock()
        self._leaders = LeaderWatch(len(self.endpoints), self._leader_report, self._prefer)

    async def close(self) -> None:
        """Close all channels; calls still under way end as unknown or unavailable."""
        self.closed = True
        await self._leaders.close()
        for endpoint in self.endpoints:
            await endpoint.channel.close(None)

    async def call(
        self, name: str, request: Message, *, repeatable: bool, timeout: float | None = None, leader: bool = True
    ) -> Message:
        """Carry out one unary call within ``timeout`` seconds and return the answer.

        ``repeatable`` says that doing it twice does no harm, so it may be tried again. With ``leader`` a
        member that has lost its leader refuses at once instead of letting the call wait. Raises
        :class:`Unavailable`, :class:`Compacted`, and, if not repeatable, :class:`OutcomeUnknown`.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        return await self._carry_out(_Call(name, request, deadline, repeatable, leader))

    async def ask(self, endpoint: EtcdEndpoint, name: str, request: Message) -> Message:
        """One attempt at this very endpoint, to ask about the endpoint itself; raises as :meth:`call`."""
        if self.closed:
            raise Unavailable(name, endpoint.address, "the client is closed")
        call = _Call(name, request, time.monotonic() + self.timeout, repeatable=True, leader=False)
        try:
            return await self._attempt(endpoint, call, self._head(leader=False), self.timeout, watched=False)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error, call, endpoint)[1] from None

    async def pause(self, seconds: float) -> None:
        """Wait before another try, or until etcd has a leader again if that is sooner."""
        await self._leaders.pause(seconds)

    @property
    def no_leader_at(self) -> float:
        """When (monotonic) callers last waited because etcd had no leader."""
        return self._leaders.no_leader_at

    async def connected(self, name: str, deadline: float, *, patient: bool) -> EtcdEndpoint:
        """A connected endpoint, or :class:`Unavailable`: at the deadline or, if not ``patient``, once all fail."""
        backoff = Backoff(0.001, 0.02)
        while True:
            choice = self._choose(name)
            if not isinstance(choice, Choice):
                self._current = choice
                return self.endpoints[choice]
            remaining = deadline - time.monotonic()
            if remaining <= 0 or (choice is Choice.NONE and not patient):
                raise await self._unreachable(name, choice)
            await asyncio.sleep(min(backoff.next(), remaining))

    async def metadata(self, deadline: float, *, leader: bool = True) -> Metadata:
        """Metadata of a call or stream, with a token if we have credentials; raises as :meth:`call`."""
        if self._login and self._token is None:
            await self._renew_token(None, deadline)
        return self._head(leader=leader)

    def suspect(self, endpoint: EtcdEndpoint) -> None:
        """Prefer the other endpoints for a while: this one failed."""
        endpoint.suspect_until = time.monotonic() + SUSPECT_FOR
        if self.endpoints[self._current] is endpoint:
            self._current = (self._current + 1) % len(self.endpoints)

    async def stream_failed(self, endpoint: EtcdEndpoint, error: grpc.aio.AioRpcError) -> None:
        """Renew the token, or prefer another endpoint, after a stream has failed."""
        if judge(error.code(), error.details() or "") is Verdict.LOG_IN:
            await self.renew_token()
        else:
            self.suspect(endpoint)

    async def renew_token(self) -> bool:
        """Replace the token in use, which was refused; false without credentials. Raises as :meth:`call`."""
        await self._renew_token(self._token, time.monotonic() + self.timeout)
        return self._login is not None

    async def _leader_report(self, index: int) -> LeaderReport:
        answer = await self.ask(self.endpoints[index], "status", rpc.StatusRequest())
        return LeaderReport(answer.raftTerm, answer.leader)

    def _prefer(self, index: int) -> None:
        """The member of this index knows a leader."""
        self._current = index
        self.endpoints[index].suspect_until = 0.0

    def _choose(self, name: str) -> int | Choice:
        if self.closed:
            raise Unavailable(name, "", "the client is closed")
        current = self.endpoints[self._current]
        if not current.suspect_until and current.channel.get_state() is grpc.ChannelConnectivity.READY:
            return self._current
        now = time.monotonic()
        return choose(
            [endpoint.channel.get_state(try_to_connect=True) for endpoint in self.endpoints],
            [endpoint.suspect_until > now for endpoint in self.endpoints],
            self._current,
        )

    async def _unreachable(self, name: str, choice: Choice) -> Unavailable:
        """The error for "no endpoint", with gRPC's reasons: a call on a failed channel tells them at once."""
        failed = [
            endpoint
            for endpoint in self.endpoints
            if endpoint.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        ]
        probes = (endpoint.unary["status"](rpc.StatusRequest(), timeout=0.05) for endpoint in failed)
        results = await asyncio.gather(*probes, return_exceptions=True)
        reasons = [result.details() for result in results if isinstance(result, grpc.aio.AioRpcError)]
        addresses = ", ".join(endpoint.address for endpoint in self.endpoints)
        return Unavailable(name, addresses, "; ".join(filter(None, reasons)) or choice.value)

    def _head(self, *, leader: bool) -> Metadata:
        head = (_LEADER,) if leader else ()
        return (*head, ("token", self._token)) if self._token else head

    async def _renew_token(self, stale: str | None, deadline: float) -> None:
        """Get a new token, unless another task has replaced ``stale`` meanwhile."""
        if self._login is None:
            return
        async with self._renewing:
            if self._token != stale:
                return
            name, password = self._login
            request = rpc.AuthenticateRequest(name=name, password=password)
            call = _Call("authenticate", request, deadline, repeatable=True, leader=True, with_token=False)
            try:
                self._token = (await self._carry_out(call)).token
            except EtcdError as error:
                if error.detail != "etcdserver: authentication is not enabled":
                    raise
                self._token = ""

    async def _carry_out(self, call: _Call) -> Message:
        failure: EtcdError | None = None
        while True:
            try:
                metadata = await self.metadata(call.deadline, leader=call.leader) if call.with_token else (_LEADER,)
                endpoint = await self.connected(call.name, call.deadline, patient=call.repeatable)
            except Unavailable as error:
                raise failure or error from None
            token, term = self._token, self._leaders.term
            try:
                answer = await self._attempt(endpoint, call, metadata, call.share(len(self.endpoints)))
            except grpc.aio.AioRpcError as error:
                verdict, failure = self._failure(error, call, endpoint)
            except GivenUp:
                detail = "etcd has a new leader, and the call was under way to the old one"
                verdict, where = Verdict.UNKNOWN, endpoint.address
                failure = error_of(verdict, call.name, where, detail, repeatable=call.repeatable)
                if not call.may_go_on(verdict, len(self.endpoints)):
                    raise failure from None
                continue
            except FormerMember:
                verdict, where = Verdict.NOT_DONE, endpoint.address
                failure = error_of(verdict, call.name, where, FORMER, repeatable=call.repeatable)
            else:
                endpoint.suspect_until = 0.0
                return answer
            call.tried += 1
            if not await self._prepared_again(call, endpoint, verdict, token):
                raise failure
            if call.tried >= len(self.endpoints):
                no_leader = failure.detail == NO_LEADER
                await self._leaders.pause(min(NO_LEADER_PAUSE if no_leader else ALL_TRIED, call.remaining), term)

    async def _prepared_again(self, call: _Call, endpoint: EtcdEndpoint, verdict: Verdict, token: str | None) -> bool:
        """After a failed attempt: whether there is to be another one, which this prepares."""
        if verdict is Verdict.LOG_IN and call.may_log_in and self._login:
            call.logins += 1
            await self._renew_token(token, call.deadline)
            return True
        if verdict in (Verdict.NOT_DONE, Verdict.UNKNOWN):
            self.suspect(endpoint)
        return call.may_go_on(verdict, len(self.endpoints))

    async def _attempt(
        self, endpoint: EtcdEndpoint, call: _Call, metadata: Metadata, timeout: float, *, watched: bool = True
    ) -> Message:
        """The answer to one attempt; raises :class:`GivenUp` and :class:`FormerMember` only if ``watched``."""
        attempt = endpoint.unary[call.name](call.request, timeout=timeout, metadata=metadata)
        try:
            answer = await (self._leaders.answer(attempt, led=call.leader) if watched else attempt)
        except asyncio.CancelledError:
            # Closing a channel cancels its calls; the task that waits for one was not cancelled itself.
            task = asyncio.current_task()
            if not self.closed or (task is not None and task.cancelling()):
                raise
            where, repeatable = endpoint.address, call.repeatable
            detail = "the client was closed"
            raise error_of(Verdict.UNKNOWN, call.name, where, detail, repeatable=repeatable) from None
        if watched and self.refused and call.with_token and answer.header.member_id in self.refused:
            raise FormerMember
        return answer

    @staticmethod
    def _failure(error: grpc.aio.AioRpcError, call: _Call, endpoint: EtcdEndpoint) -> tuple[Verdict, EtcdError]:
        detail = error.details() or error.code().name
        verdict = judge(error.code(), detail)
        return verdict, error_of(verdict, call.name, endpoint.address, detail, repeatable=call.repeatable)
