"""The state of one stream: its subscriptions, and which response is sent next. Pure.

Both variants and all services use it. It keeps the order make before break: endpoints follow their clusters, routes
wait until the clusters that they newly name are warm at this node, and removals wait until the node has acknowledged
the resources that no longer use the names. Every wait has a limit. Changes of endpoints do not wait. Times (monotonic
ns) are arguments. ``understudy.xds.server.ads`` reads, writes and wakes.
"""

import bisect
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from understudy.xds.server import types, wire
from understudy.xds.server.order import NO_NAMES, Ordering
from understudy.xds.server.removal import SECOND
from understudy.xds.server.responses import ConfigStatus, RequestOutcome, Response
from understudy.xds.server.snapshot import Resource, Snapshot, TypeSnapshot
from understudy.xds.server.split import parts_of
from understudy.xds.server.stream_config import EncodedResponse, RequestRefused, StreamLimits, StreamTimeouts, Variant
from understudy.xds.server.subscription import Subscription
from understudy.xds.server.variants import Delta, StateOfTheWorld
from understudy.xds.server.wire import Node, Request

# The names of nodes without an id, in status and metrics: this and the stream's own number.
UNNAMED = "unnamed-"


class _ResponsePart(NamedTuple):
    """A response, or a part of one, with its nonce. A ``renewal`` carries lifetimes and no content."""

    type_url: str
    response: Response
    view: TypeSnapshot
    nonce: str
    asked: bool
    renewal: bool = False


class StreamState(Ordering):
    """What a stream's client wants, what it holds and what is due.

    ``siblings`` gives the other streams of a stream's node, which matter when it uses one stream per type. What has
    to wait is decided by its base, :class:`understudy.xds.server.order.Ordering`.

    Attributes:
        node: who the client says it is; None before the first request.
        identity: the node's id, or a name of the stream's own where the node has none: such streams are strangers.
    """

    __slots__ = (
        "_count",
        "_limits",
        "_only_type",
        "_parts",
        "_prefix",
        "_renews",
        "_resting",
        "_unsettled",
        "_withheld",
        "identity",
        "node",
        "variant",
    )

    def __init__(
        self,
        variant: Variant,
        *,
        prefix: str,
        type_url: str = "",
        timeouts: StreamTimeouts | None = None,
        limits: StreamLimits | None = None,
        siblings: "Callable[[StreamState], Iterable[StreamState]]" = lambda _: (),
    ) -> None:
        super().__init__(timeouts or StreamTimeouts(), siblings)
        self.variant = variant
        self.node: Node | None = None
        self.identity = ""
        self._unsettled = True
        self._resting: Snapshot | None = None
        self._prefix = prefix
        self._only_type = type_url
        self._limits = limits or StreamLimits()
        self._parts: tuple[_ResponsePart, ...] = ()
        self._withheld = NO_NAMES
        self._renews = False
        self._count = 0

    @property
    def settled(self) -> bool:
        """Whether the client has answered all that can be sent now. Pending removals do not count."""
        if self._unsettled or self._withheld:
            return False
        for one in self._in_order:  # noqa: SIM110  called very often, and any() costs twice as much
            if one.unacknowledged:
                return False
        return True

    @property
    def changed_ns(self) -> int:
        """Monotonic time of the newest change of the content."""
        return self.content.changed_ns

    def rejecting(self) -> Iterable[Subscription]:
        """The subscriptions whose present content the node rejects; none before :meth:`next` has settled."""
        for one in self._in_order:
            pending = self._unsettled or one.unacknowledged or one.type_url in self._withheld
            if one.error is not None and not pending:
                yield one

    def offer(self, snapshot: Snapshot) -> None:
        """From now on the client should have this snapshot."""
        self.content = snapshot
        self._unsettled = True
        if self._deferred is not None:
            self._deferred.forget_what_is_back(snapshot)

    def introduce(self, request: Request) -> Node:
        """The node that a stream's first request names; raises :class:`RequestRefused` when it names none.

        A node without an id is served too: clients of gRPC may have none.
        """
        if request.node is None:
            raise RequestRefused("the first request of a stream must carry the node")
        self.node = request.node
        self.identity = request.node.id or f"{UNNAMED}{self._prefix.rstrip('-')}"
        self._renews = wire.heeds_ttl(request.node.features, delta=self.variant is Variant.DELTA)
        return request.node

    def on_request(self, request: Request, now_ns: int) -> tuple[str, RequestOutcome]:
        """Take in a request; returns its type URL and its outcome. Raises :class:`RequestRefused`."""
        type_url = self._type_of(request)
        self._unsettled = True
        subscription = self.subscription(type_url) or self._subscribe_to(type_url)
        outcome = subscription.on_request(request, now_ns)
        if outcome.kind != "ack" or outcome.subscription_changed:
            self._resting = None
        if type_url == types.CLUSTER and not subscription.unacknowledged:
            self.unnamed = NO_NAMES
        owed = self._deferred.owed.pop(type_url, ()) if self._deferred is not None else ()
        if outcome.kind == "first" and subscription.resumed:
            subscription.renew(owed)
        if len(subscription.names) > self._limits.names:
            raise RequestRefused(
                f"{len(subscription.names)} names of {type_url}, more than {self._limits.names}", exhausted=True
            )
        return type_url, outcome

    def _type_of(self, request: Request) -> str:
        if not self._only_type:
            if not request.type_url:
                raise RequestRefused("a request on an aggregated stream must carry a type_url")
            return request.type_url
        if request.type_url not in ("", self._only_type):
            raise RequestRefused(f"this service carries {self._only_type}, not {request.type_url}")
        return self._only_type

    def _subscribe_to(self, type_url: str) -> Subscription:
        if len(self._in_order) >= self._limits.types:
            raise RequestRefused(f"more than {self._limits.types} types on one stream", exhausted=True)
        kind = StateOfTheWorld if self.variant is Variant.SOTW else Delta
        subscription = kind(type_url)
        bisect.insort(self._in_order, subscription, key=lambda one: types.rank_of(one.type_url))
        return subscription

    def next(self, now_ns: int) -> EncodedResponse | None:
        """The response to send now, which counts as sent; None if there is none, or none before ``wake_ns``."""
        self.wake_ns = self._resting = None
        if self._parts:
            return self._write(self._parts)
        self._withheld = NO_NAMES
        for subscription in self._in_order:
            if subscription.is_up_to_date(self.content.of(subscription.type_url)):
                continue
            view = self.view_of(subscription, now_ns)
            response = subscription.next_response(view)
            if response is None:
                continue
            until = self.held_until(subscription, response, now_ns)
            if until <= now_ns:
                return self._send(subscription, response, view, now_ns)
            self.wake_at(until)
            self._withheld |= {subscription.type_url}
        self._unsettled = False
        if self._deferred is not None and self._deferred.held_up:
            self._deferred.held_up = {kind: at for kind, at in self._deferred.held_up.items() if kind in self._withheld}
        # While nothing is held back and the content is the same, an acknowledgement changes nothing.
        self._resting = self.content if not self._withheld and self.wake_ns is None else None
        return self._heartbeat(now_ns) if self._renews else None

    def rests(self) -> bool:
        """Whether there is certainly nothing to send or to wait for, so that :meth:`next` need not be called."""
        if self._resting is not self.content or self._renews:
            return False
        self._unsettled = False
        return True

    def _send(self, subscription: Subscription, response: Response, view: TypeSnapshot, now_ns: int) -> EncodedResponse:
        type_url = subscription.type_url
        self.note_what_is_named(subscription, response)
        asked = response.asked or (subscription.resumed and not subscription.sent_version)
        *before, last = self._parts_of(response)
        # Every part has its nonce before the first is written, so the ACK of a part is not taken for one of the whole.
        to_write = []
        for part in before:
            to_write.append(_ResponsePart(type_url, part, view, self._next_nonce(), asked))
            subscription.on_part_sent(part, to_write[-1].nonce, now_ns)
        to_write.append(_ResponsePart(type_url, last, view, self._next_nonce(), asked))
        subscription.on_sent(last, view, to_write[-1].nonce, now_ns)
        self._let_follow(type_url, response)
        return self._write(to_write)

    def _parts_of(self, response: Response) -> tuple[Response, ...]:
        return parts_of(response, self._limits.message) if self.variant is Variant.DELTA else (response,)

    def _write(self, parts: Sequence[_ResponsePart]) -> EncodedResponse:
        """The first of the parts; the others are sent before anything else."""
        self._parts = tuple(parts[1:])
        return self._encoded(parts[0])

    def _encoded(self, part: _ResponsePart) -> EncodedResponse:
        response, renewal = part.response, part.renewal
        return EncodedResponse(
            type_url=part.type_url,
            version=response.version,
            nonce=part.nonce,
            data=wire.with_nonce(self._payload(part), part.nonce),
            resources=0 if renewal else len(response.resources),
            removed=len(response.removed),
            asked=part.asked,
        )

    def _payload(self, part: _ResponsePart) -> bytes:
        type_url, response = part.type_url, part.response
        names = tuple(resource.name for resource in response.resources)

        def build() -> bytes:
            return self._pack(type_url, response.version, response.resources, response.removed, renewal=part.renewal)

        if part.renewal:
            return build()
        return part.view.payload(
            (type_url, self.variant, self._renews, response.version, names, response.removed), build
        )

    def _pack(
        self,
        type_url: str,
        version: str,
        resources: Iterable[Resource],
        removed: Iterable[str],
        *,
        renewal: bool,
    ) -> bytes:
        packed = []
        for one in resources:
            ttl = one.ttl if self._renews else None
            if self.variant is Variant.SOTW and ttl is None:
                packed.append(one.packed)
                continue
            whole = wire.resource_of(one.name, one.version, None if renewal else one.packed, ttl)
            packed.append(whole if self.variant is Variant.DELTA else wire.any_of(wire.RESOURCE_TYPE, whole))
        if self.variant is Variant.SOTW:
            return wire.response(type_url, version, packed)
        return wire.delta_response(type_url, version, packed, removed)

    def _heartbeat(self, now_ns: int) -> EncodedResponse | None:
        """Renew resources with a time to live that the client holds, at half of that time."""
        for subscription in self._in_order:
            held = [one for one in subscription.offered.renewed if subscription.wants_any((one.name,))]
            if not held or subscription.type_url in self._withheld:
                continue
            half = round(min(one.ttl or 0 for one in held) / 2 * SECOND)
            renewed_ns = self.deferred.renewed_ns
            last = max(renewed_ns.setdefault(subscription.type_url, now_ns), subscription.sent_at_ns)
            if last + half > now_ns:
                self.wake_at(last + half)
                continue
            renewed_ns[subscription.type_url] = now_ns
            response = Response(subscription.sent_version, tuple(held))
            parts = [
                _ResponsePart(
                    subscription.type_url, part, subscription.offered, self._next_nonce(), asked=True, renewal=True
                )
                for part in self._parts_of(response)
            ]
            for part in parts:
                subscription.on_heartbeat(part.nonce, now_ns)
            return self._write(parts)
        return None

    def _next_nonce(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count:x}"

    # Order

    def _let_follow(self, type_url: str, response: Response) -> None:
        """Send what the resources point at after them: without it a cluster is not warm, and a listener not in use."""
        follower = {types.CLUSTER: types.ENDPOINTS, types.LISTENER: types.ROUTES}.get(type_url)
        if follower is None:
            return
        names: set[str] = set()
        for resource in response.resources:
            if resource.name in response.changed:
                names |= resource.points_at.of_type(follower)
        names &= self.content.of(follower).resources.keys()
        subscription = self.subscription(follower)
        if subscription is None:
            self.deferred.owed.setdefault(follower, set()).update(names)
        else:
            subscription.renew(names)

    def status(self, subscription: Subscription) -> ConfigStatus:
        """How far the node is with a type; STALE also while newer content is held back."""
        status = subscription.status
        if status is ConfigStatus.SYNCED and subscription.type_url in self._withheld:
            return ConfigStatus.STALE
        return status
