"""One stream's conversation as a pure object: its subscriptions, and which answer goes next.

Both variants and all services use it. It promises make before break: endpoints follow their clusters, routes wait
until the clusters they newly name are warm at this node, removals wait until the node has acknowledged what no
longer uses them; every wait has a time limit. Endpoint changes wait for nothing. Time comes in as an argument
(monotonic ns); reading, writing and waking are left to ``xds.ads``.
"""

import bisect
from collections.abc import Callable, Iterable

from xds import types, wire
from xds.snapshot import Resource, Snapshot, TypeSnapshot
from xds.subscription import Answer, Facts, Standing, Subscription
from xds.terms import Limits, Outgoing, Pace, Refused, Variant
from xds.variants import Delta, StateOfTheWorld
from xds.wire import Node, Request

_FOREVER = (1 << 63) - 1
_SECOND = 1_000_000_000


class _Waits:
    """What a stream waits with, by type; made when there is something, since thousands of streams have nothing.

    Attributes:
        owed: names that were due before their type was subscribed to.
        holding_since: when a removal was first held back.
        unused: what is to go, and since when nothing uses it.
        renewed_ns: when lifetimes were renewed last.
    """

    __slots__ = ("holding_since", "owed", "renewed_ns", "unused")

    def __init__(self) -> None:
        self.owed: dict[str, set[str]] = {}
        self.holding_since: dict[str, int] = {}
        self.unused: dict[str, tuple[frozenset[str], int]] = {}
        self.renewed_ns: dict[str, int] = {}


class Conversation:
    """What a stream's client wants, holds and is owed.

    ``siblings`` gives the other streams of a stream's node, which matter when it uses one stream per type.

    Attributes:
        node: who the client is; None before the first request.
        fresh: whether this server is known to be as new as the truth was when the stream began. Until then a client
            that brings versions from elsewhere is not sent other ones, so that it is never rolled back.
        needs_freshness: something waits for ``fresh``.
        wake_ns: when :meth:`next` may have an answer although nothing happened; None when never.
    """

    __slots__ = (
        "_count",
        "_in_order",
        "_limits",
        "_only_type",
        "_pace",
        "_prefix",
        "_renews",
        "_resting",
        "_siblings",
        "_snapshot",
        "_unsettled",
        "_waits",
        "_withheld",
        "fresh",
        "needs_freshness",
        "node",
        "variant",
        "wake_ns",
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
        self.variant = variant
        self.node: Node | None = None
        self.fresh = True
        self.needs_freshness = False
        self.wake_ns: int | None = None
        self._unsettled = True
        self._snapshot = Snapshot()
        self._resting: Snapshot | None = None
        self._prefix = prefix
        self._only_type = type_url
        self._pace = pace or Pace()
        self._limits = limits or Limits()
        self._siblings = siblings
        self._in_order: list[Subscription] = []
        self._waits: _Waits | None = None
        self._withheld: frozenset[str] = frozenset()
        self._renews = False
        self._count = 0

    @property
    def subscriptions(self) -> Iterable[Subscription]:
        """The subscriptions in the order in which they are served."""
        return self._in_order

    def subscription(self, type_url: str) -> Subscription | None:
        """The subscription to a type, if there is one; there are a handful, so looking through them is quick."""
        for one in self._in_order:
            if one.type_url == type_url:
                return one
        return None

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
        return self._snapshot.changed_ns

    def rejections(self) -> Iterable[Subscription]:
        """The subscriptions whose content, as it is now, the node refuses; none before :meth:`next` has settled."""
        for one in self._in_order:
            pending = self._unsettled or one.unanswered or one.type_url in self._withheld
            if one.error is not None and not pending:
                yield one

    def offer(self, snapshot: Snapshot) -> None:
        """From now on the client is to see this snapshot."""
        self._snapshot = snapshot
        self._unsettled = True

    def introduce(self, request: Request) -> Node:
        """The node that a stream's first request names; raises :class:`Refused` when it names none."""
        if request.node is None or not request.node.id:
            raise Refused("the first request of a stream must carry the node, with its id")
        self.node = request.node
        self._renews = wire.TTL_FEATURE in request.node.features
        return request.node

    def on_request(self, request: Request, now_ns: int) -> tuple[str, Facts]:
        """Take in a request; returns its type URL and what it said. Raises :class:`Refused`."""
        type_url = self._type_of(request)
        self._unsettled = True
        subscription = self.subscription(type_url) or self._subscribe_to(type_url)
        facts = subscription.on_request(request, now_ns)
        if facts.kind != "ack" or facts.subscription_changed:
            self._resting = None
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
        self._withheld = frozenset()
        for subscription in self._in_order:
            if subscription.is_quiet(self._snapshot.of(subscription.type_url)):
                continue
            view = self.view_of(subscription, now_ns)
            answer = subscription.what_to_send(view)
            if answer is None:
                continue
            until = self._held_until(subscription, answer, now_ns)
            if until <= now_ns:
                return self._send(subscription, answer, view, now_ns)
            self._wake_at(until)
            self._withheld |= {subscription.type_url}
        self._unsettled = False
        # An acknowledgement can change nothing as long as nothing is held back and the content is the same.
        self._resting = self._snapshot if not self._withheld and self.wake_ns is None else None
        return self._heartbeat(now_ns) if self._renews else None

    def rests(self) -> bool:
        """Whether there is surely nothing to send and nothing to wait for, so that :meth:`next` need not be asked."""
        if self._resting is not self._snapshot or self._renews:
            return False
        self._unsettled = False
        return True

    def _send(self, subscription: Subscription, answer: Answer, view: TypeSnapshot, now_ns: int) -> Outgoing:
        nonce = self._next_nonce()
        asked = answer.asked or (subscription.resumed and not subscription.sent_version)
        subscription.on_sent(answer, view, nonce, now_ns)
        self._let_follow(subscription.type_url, answer)
        return Outgoing(
            type_url=subscription.type_url,
            version=answer.version,
            nonce=nonce,
            data=wire.with_nonce(self._payload(subscription.type_url, answer, view), nonce),
            resources=len(answer.resources),
            removed=len(answer.removed),
            asked=asked,
        )

    def _payload(self, type_url: str, answer: Answer, view: TypeSnapshot) -> bytes:
        names = tuple(resource.name for resource in answer.resources)

        def build() -> bytes:
            return self._pack(type_url, answer.version, answer.resources, answer.removed)

        return view.payload((type_url, self.variant, self._renews, answer.version, names, answer.removed), build)

    def _pack(
        self,
        type_url: str,
        version: str,
        resources: Iterable[Resource],
        removed: Iterable[str] = (),
        *,
        renewal: bool = False,
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
            half = round(min(one.ttl or 0 for one in held) / 2 * _SECOND)
            renewed_ns = self._waiting.renewed_ns
            last = max(renewed_ns.setdefault(subscription.type_url, now_ns), subscription.sent_at_ns)
            if last + half > now_ns:
                self._wake_at(last + half)
                continue
            renewed_ns[subscription.type_url] = now_ns
            nonce = self._next_nonce()
            subscription.on_heartbeat(nonce, now_ns)
            data = self._pack(subscription.type_url, subscription.sent_version, held, renewal=True)
            return Outgoing(
                type_url=subscription.type_url,
                version=subscription.sent_version,
                nonce=nonce,
                data=wire.with_nonce(data, nonce),
                resources=0,
                removed=0,
                asked=True,
            )
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
        names &= self._snapshot.of(follower).resources.keys()
        subscription = self.subscription(follower)
        if subscription is None:
            self._waiting.owed.setdefault(follower, set()).update(names)
        else:
            subscription.renew(names)

    def _held_until(self, subscription: Subscription, answer: Answer, now_ns: int) -> int:
        """The time before which an answer must not go; 0 when it may go now."""
        if subscription.resumed and not subscription.sent_version and not self.fresh:
            self.needs_freshness = True
            return _FOREVER
        if answer.asked or subscription.type_url == types.ENDPOINTS:
            return 0
        until = 0
        if subscription.unanswered:
            until = subscription.sent_at_ns + round(self._pace.ack_wait * _SECOND)
        if subscription.type_url in types.POINT_AT_CLUSTERS and until <= now_ns:
            until = self._clusters_warm_at(answer, now_ns)
        return until

    def _clusters_warm_at(self, answer: Answer, now_ns: int) -> int:
        """When the clusters that an answer points at can be relied on."""
        found = self._find(types.CLUSTER)
        if found is None:
            return 0
        owner, clusters = found
        named = frozenset[str]().union(*(one.points_at.clusters for one in answer.resources))
        unsent = clusters.what_to_send(owner.view_of(clusters, now_ns))
        if unsent is not None and not named.isdisjoint(unsent.added):
            return _FOREVER
        replaces = bool(answer.changed - answer.added)
        if replaces and any(not named.isdisjoint(refusal.missing) for refusal in clusters.refusals):
            return _FOREVER
        limit = round(self._pace.warm_limit * _SECOND)
        return max(
            (sent.at_ns + limit for sent in clusters.unanswered.values() if not named.isdisjoint(sent.added)),
            default=0,
        )

    # Removal

    def view_of(self, subscription: Subscription, now_ns: int) -> TypeSnapshot:
        """What the client is to see of a type now: the snapshot and what must not be taken away yet."""
        target = self._snapshot.of(subscription.type_url)
        if subscription.offered is target or subscription.type_url not in types.REMOVED_AFTER:
            return target
        gone = target.since(subscription.offered).removed
        if not gone or not subscription.wants_any(gone):
            if self._waits is not None:
                self._waits.holding_since.pop(subscription.type_url, None)
                self._waits.unused.pop(subscription.type_url, None)
            return target
        if self._may_remove(subscription.type_url, now_ns) and self._lingered(
            subscription.type_url, frozenset(gone), now_ns
        ):
            return target
        return target.keeping(subscription.offered)

    def _lingered(self, type_url: str, gone: frozenset[str], now_ns: int) -> bool:
        """Whether what is to go has been out of use for long enough; more names to go start the time anew."""
        if not self._pace.removal_linger:
            return True
        unused = self._waiting.unused
        known, since = unused.get(type_url, (frozenset[str](), now_ns))
        if not gone <= known:
            since = now_ns
        unused[type_url] = (gone, since)
        until = since + round(self._pace.removal_linger * _SECOND)
        if until <= now_ns:
            return True
        self._wake_at(until)
        return False

    def _may_remove(self, type_url: str, now_ns: int) -> bool:
        found = [self._find(user) for user in types.REMOVED_AFTER[type_url]]
        present = [one[1] for one in found if one is not None]
        if any(user.refusals for user in present):
            # The node keeps its last good routes, and these may use what is to go.
            return False
        if all(self._is_current(user) for user in present):
            return True
        since = self._waiting.holding_since.setdefault(type_url, now_ns)
        until = since + round(self._pace.removal_limit * _SECOND)
        if until <= now_ns:
            return True
        self._wake_at(until)
        return False

    def _is_current(self, user: Subscription) -> bool:
        return not user.unanswered and user.what_to_send(self._snapshot.of(user.type_url)) is None

    def _find(self, type_url: str) -> tuple["Conversation", Subscription] | None:
        """The node's subscription to a type: on this stream, or on another one that it has beside it."""
        own = self.subscription(type_url)
        if own is not None:
            return self, own
        for sibling in self._siblings(self):
            beside = sibling.subscription(type_url)
            if beside is not None:
                return sibling, beside
        return None

    @property
    def _waiting(self) -> _Waits:
        if self._waits is None:
            self._waits = _Waits()
        return self._waits

    def _wake_at(self, until: int) -> None:
        if until != _FOREVER:
            self.wake_ns = until if self.wake_ns is None else min(self.wake_ns, until)

    def standing(self, subscription: Subscription) -> Standing:
        """How the node stands with a type; STALE also while newer content for it is held back."""
        standing = subscription.standing
        if standing is Standing.SYNCED and subscription.type_url in self._withheld:
            return Standing.STALE
        return standing
