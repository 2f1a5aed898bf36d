"""One stream's conversation as a pure object: its subscriptions, and which answer goes next.

Both variants and all services use it. It promises make before break: endpoints follow their clusters, routes wait
until the clusters they newly name are warm at this node, removals wait until the node has acknowledged what no
longer uses them; every wait has a time limit. Endpoint changes wait for nothing. Time comes in as an argument
(monotonic ns); reading, writing and waking are left to ``understudy.xds.server.ads``.
"""

import bisect
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from understudy.xds.server import types, wire
from understudy.xds.server.order import NO_NAMES, Ordering
from understudy.xds.server.removal import SECOND
from understudy.xds.server.snapshot import Resource, Snapshot, TypeSnapshot
from understudy.xds.server.split import parts_of
from understudy.xds.server.stream_config import Limits, Outgoing, Pace, Refused, Variant
from understudy.xds.server.subscription import Answer, Facts, Standing, Subscription
from understudy.xds.server.variants import Delta, StateOfTheWorld
from understudy.xds.server.wire import Node, Request

# How the streams of nodes without an id are called in status and metrics, before the stream's own number.
UNNAMED = "unnamed-"


class _Part(NamedTuple):
    """An answer, or a part of one, that has its nonce. A ``renewal`` tells lifetimes and no content."""

    type_url: str
    answer: Answer
    view: TypeSnapshot
    nonce: str
    asked: bool
    renewal: bool = False


class Conversation(Ordering):
    """What a stream's client wants, holds and is owed.

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
        pace: Pace | None = None,
        limits: Limits | None = None,
        siblings: "Callable[[Conversation], Iterable[Conversation]]" = lambda _: (),
    ) -> None:
        super().__init__(pace or Pace(), siblings)
        self.variant = variant
        self.node: Node | None = None
        self.identity = ""
        self._unsettled = True
        self._resting: Snapshot | None = None
        self._prefix = prefix
        self._only_type = type_url
        self._limits = limits or Limits()
        self._parts: tuple[_Part, ...] = ()
        self._withheld = NO_NAMES
        self._renews = False
        self._count = 0

    @property
    def settled(self) -> bool:
        """Whether the client has answered everything that it can be sent now. Pending removals don't count."""
        if self._unsettled or self._withheld:
            return False
        for one in self._in_order:  # noqa: SIM110  asked at every turn of every stream: any() costs twice as much
            if one.unanswered:
                return False
        return True

    @property
    def changed_ns(self) -> int:
        """Monotonic time of the change that the client is to see."""
        return self.content.changed_ns

    def rejections(self) -> Iterable[Subscription]:
        """The subscriptions whose content, as it is now, the node refuses; none before :meth:`next` has settled."""
        for one in self._in_order:
            pending = self._unsettled or one.unanswered or one.type_url in self._withheld
            if one.error is not None and not pending:
                yield one

    def offer(self, snapshot: Snapshot) -> None:
        """From now on the client is to see this snapshot."""
        self.content = snapshot
        self._unsettled = True
        if self._waits is not None:
            self._waits.forget_what_is_back(snapshot)

    def introduce(self, request: Request) -> Node:
        """The node that a stream's first request names; raises :class:`Refused` when it names none.

        A node without an id is served too: clients of gRPC may have none.
        """
        if request.node is None:
            raise Refused("the first request of a stream must carry the node")
        self.node = request.node
        self.identity = request.node.id or f"{UNNAMED}{self._prefix.rstrip('-')}"
        self._renews = wire.heeds_ttl(request.node.features, delta=self.variant is Variant.DELTA)
        return request.node

    def on_request(self, request: Request, now_ns: int) -> tuple[str, Facts]:
        """Take in a request; returns its type URL and what it said. Raises :class:`Refused`."""
        type_url = self._type_of(request)
        self._unsettled = True
        subscription = self.subscription(type_url) or self._subscribe_to(type_url)
        facts = subscription.on_request(request, now_ns)
        if facts.kind != "ack" or facts.subscription_changed:
            self._resting = None
        if type_url == types.CLUSTER and not subscription.unanswered:
            self.unnamed = NO_NAMES
        owed = self._waits.owed.pop(type_url, ()) if self._waits is not None else ()
        if facts.kind == "first" and subscription.resumed:
            subscription.renew(owed)
        if len(subscription.names) > self._limits.names:
            raise Refused(
                f"{len(subscription.names)} names of {type_url}, more than {self._limits.names}", exhausted=True
            )
        return type_url, facts

    def _type_of(self, request: Request) -> str:
        if not self._only_type:
            if not request.type_url:
                raise Refused("a request on an aggregated stream must carry a type_url")
            return request.type_url
        if request.type_url not in ("", self._only_type):
            raise Refused(f"this service carries {self._only_type}, not {request.type_url}")
        return self._only_type

    def _subscribe_to(self, type_url: str) -> Subscription:
        if len(self._in_order) >= self._limits.types:
            raise Refused(f"more than {self._limits.types} types on one stream", exhausted=True)
        kind = StateOfTheWorld if self.variant is Variant.SOTW else Delta
        subscription = kind(type_url)
        bisect.insort(self._in_order, subscription, key=lambda one: types.rank_of(one.type_url))
        return subscription

    def next(self, now_ns: int) -> Outgoing | None:
        """The response that goes now, counted as sent; None when there is none, or none before ``wake_ns``."""
        self.wake_ns = self._resting = None
        if self._parts:
            return self._write(self._parts)
        self._withheld = NO_NAMES
        for subscription in self._in_order:
            if subscription.is_quiet(self.content.of(subscription.type_url)):
                continue
            view = self.view_of(subscription, now_ns)
            answer = subscription.what_to_send(view)
            if answer is None:
                continue
            until = self.held_until(subscription, answer, now_ns)
            if until <= now_ns:
                return self._send(subscription, answer, view, now_ns)
            self.wake_at(until)
            self._withheld |= {subscription.type_url}
        self._unsettled = False
        if self._waits is not None and self._waits.held_up:
            self._waits.held_up = {kind: at for kind, at in self._waits.held_up.items() if kind in self._withheld}
        # An acknowledgement can change nothing as long as nothing is held back and the content is the same.
        self._resting = self.content if not self._withheld and self.wake_ns is None else None
        return self._heartbeat(now_ns) if self._renews else None

    def rests(self) -> bool:
        """Whether there is surely nothing to send and nothing to wait for, so that :meth:`next` need not be asked."""
        if self._resting is not self.content or self._renews:
            return False
        self._unsettled = False
        return True

    def _send(self, subscription: Subscription, answer: Answer, view: TypeSnapshot, now_ns: int) -> Outgoing:
        type_url = subscription.type_url
        self.note_what_is_named(subscription, answer)
        asked = answer.asked or (subscription.resumed and not subscription.sent_version)
        *before, last = self._parts_of(answer)
        # Every part has its nonce before the first one is written, so the ACK of a part is none of the whole.
        to_write = []
        for part in before:
            to_write.append(_Part(type_url, part, view, self._next_nonce(), asked))
            subscription.on_part_sent(part, to_write[-1].nonce, now_ns)
        to_write.append(_Part(type_url, last, view, self._next_nonce(), asked))
        subscription.on_sent(last, view, to_write[-1].nonce, now_ns)
        self._let_follow(type_url, answer)
        return self._write(to_write)

    def _parts_of(self, answer: Answer) -> tuple[Answer, ...]:
        return parts_of(answer, self._limits.message) if self.variant is Variant.DELTA else (answer,)

    def _write(self, parts: Sequence[_Part]) -> Outgoing:
        """The first of the parts; the others go before anything else."""
        self._parts = tuple(parts[1:])
        return self._response(parts[0])

    def _response(self, part: _Part) -> Outgoing:
        answer, renewal = part.answer, part.renewal
        return Outgoing(
            type_url=part.type_url,
            version=answer.version,
            nonce=part.nonce,
            data=wire.with_nonce(self._payload(part), part.nonce),
            resources=0 if renewal else len(answer.resources),
            removed=len(answer.removed),
            asked=part.asked,
        )

    def _payload(self, part: _Part) -> bytes:
        type_url, answer = part.type_url, part.answer
        names = tuple(resource.name for resource in answer.resources)

        def build() -> bytes:
            return self._pack(type_url, answer.version, answer.resources, answer.removed, renewal=part.renewal)

        if part.renewal:
            return build()
        return part.view.payload((type_url, self.variant, self._renews, answer.version, names, answer.removed), build)

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

    def _heartbeat(self, now_ns: int) -> Outgoing | None:
        """Renew, at half of their time to live, resources that the client holds with a limited one."""
        for subscription in self._in_order:
            held = [one for one in subscription.offered.renewed if subscription.wants_any((one.name,))]
            if not held or subscription.type_url in self._withheld:
                continue
            half = round(min(one.ttl or 0 for one in held) / 2 * SECOND)
            renewed_ns = self.waiting.renewed_ns
            last = max(renewed_ns.setdefault(subscription.type_url, now_ns), subscription.sent_at_ns)
            if last + half > now_ns:
                self.wake_at(last + half)
                continue
            renewed_ns[subscription.type_url] = now_ns
            answer = Answer(subscription.sent_version, tuple(held))
            parts = [
                _Part(subscription.type_url, part, subscription.offered, self._next_nonce(), asked=True, renewal=True)
                for part in self._parts_of(answer)
            ]
            for part in parts:
                subscription.on_heartbeat(part.nonce, now_ns)
            return self._write(parts)
        return None

    def _next_nonce(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count:x}"

    # Order

    def _let_follow(self, type_url: str, answer: Answer) -> None:
        """A cluster is warm, and a listener takes traffic, only when what it points at came after it."""
        follower = {types.CLUSTER: types.ENDPOINTS, types.LISTENER: types.ROUTES}.get(type_url)
        if follower is None:
            return
        names: set[str] = set()
        for resource in answer.resources:
            if resource.name in answer.changed:
                names |= resource.points_at.of_type(follower)
        names &= self.content.of(follower).resources.keys()
        subscription = self.subscription(follower)
        if subscription is None:
            self.waiting.owed.setdefault(follower, set()).update(names)
        else:
            subscription.renew(names)

    def standing(self, subscription: Subscription) -> Standing:
        """How the node stands with a type; STALE also while newer content for it is held back."""
        standing = subscription.standing
        if standing is Standing.SYNCED and subscription.type_url in self._withheld:
            return Standing.STALE
        return standing
