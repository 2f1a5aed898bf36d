"""The order on one stream: routes wait for warm clusters, removals wait for the resources that used the names.

The base of ``understudy.xds.server.stream.StreamState``, which sends what need not wait. If a node has one stream per
type, its other streams count too. ``understudy.xds.server.removal`` decides how long removed names stay.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from understudy.xds.server import types
from understudy.xds.server.removal import FOREVER, SECOND, Dependents, PendingRemoval, follow, kept, never_named
from understudy.xds.server.responses import Response
from understudy.xds.server.snapshot import Snapshot, TypeSnapshot
from understudy.xds.server.stream_config import StreamTimeouts
from understudy.xds.server.subscription import Subscription

NO_NAMES: frozenset[str] = frozenset()


class Deferred:
    """What a stream has put off, by type. Only made when needed, since thousands of streams have nothing to put off.

    Attributes:
        owed: names that were due before their type was subscribed to.
        removals: names that are gone from the content and that the client still has.
        held_up: since when another stream of the node id delays a response.
        renewed_ns: when lifetimes were last renewed.
    """

    __slots__ = ("held_up", "owed", "removals", "renewed_ns")

    def __init__(self) -> None:
        self.owed: dict[str, set[str]] = {}
        self.removals: dict[str, dict[str, PendingRemoval]] = {}
        self.held_up: dict[str, int] = {}
        self.renewed_ns: dict[str, int] = {}

    def forget_what_is_back(self, snapshot: Snapshot) -> None:
        """Forget removals of names that exist again, whether or not the client has seen them come back."""
        for type_url, removals in self.removals.items():
            there = snapshot.of(type_url).resources
            for name in [name for name in removals if name in there]:
                del removals[name]


class FoundSubscription(NamedTuple):
    """A node's subscription to a type, and the stream that it is on."""

    owner: "Ordering"
    subscription: Subscription


class Ordering:
    """A stream's subscriptions, the content that its client should have, and what waits for what.

    Attributes:
        content: what the client should have.
        unnamed: clusters that were sent to the client, that it has not acknowledged, and that no other resource sent to
            it names.
        fresh: whether this server is known to be as new as the source of truth was when the stream began. Until then
            a client with versions from another server is not sent other ones, so it never gets an older configuration.
        needs_freshness: something waits for ``fresh``.
        wake_ns: when there may be a response although nothing has happened; None for never.
    """

    __slots__ = (
        "_deferred",
        "_in_order",
        "_siblings",
        "_timeouts",
        "content",
        "fresh",
        "needs_freshness",
        "unnamed",
        "wake_ns",
    )

    def __init__(self, timeouts: StreamTimeouts, siblings: "Callable[..., Iterable[Ordering]]") -> None:
        self.content = Snapshot()
        self.unnamed = NO_NAMES
        self.fresh = True
        self.needs_freshness = False
        self.wake_ns: int | None = None
        self._timeouts = timeouts
        self._siblings = siblings
        self._in_order: list[Subscription] = []
        self._deferred: Deferred | None = None

    @property
    def subscriptions(self) -> Iterable[Subscription]:
        """The subscriptions in the order in which they are served."""
        return self._in_order

    def subscription(self, type_url: str) -> Subscription | None:
        """The subscription to a type, if there is one. There are only a few, so a search is quick."""
        for one in self._in_order:
            if one.type_url == type_url:
                return one
        return None

    def held_until(self, subscription: Subscription, response: Response, now_ns: int) -> int:
        """The time before which a response must not be sent; 0 if it may be sent now."""
        if subscription.resumed and not subscription.sent_version and not self.fresh:
            self.needs_freshness = True
            return FOREVER
        if subscription.type_url == types.ENDPOINTS:
            return 0
        until = 0
        if subscription.unacknowledged and not response.asked:
            until = subscription.sent_at_ns + round(self._timeouts.ack_wait * SECOND)
        if subscription.type_url in types.POINT_AT_CLUSTERS and until <= now_ns:
            until = self._clusters_warm_at(subscription.type_url, response, now_ns)
        return until

    def _clusters_warm_at(self, type_url: str, response: Response, now_ns: int) -> int:
        """When the clusters that a response points at are warm.

        A response to a request waits too: the client may have asked because of a listener that replaces one in service.
        A client that has not acknowledged any cluster serves no traffic, so nothing waits for it.
        """
        found = self._find(types.CLUSTER)
        if found is None or (response.asked and not found.subscription.acked_version):
            return 0
        named = response.clusters | self._clusters_of_new_routes(type_url, response)
        clusters = found.subscription
        if self._lacks(found, named, response, now_ns):
            if found.owner is self:
                return FOREVER
            since = self.deferred.held_up.setdefault(type_url, now_ns)
            until = since + round(self._timeouts.sibling_timeout * SECOND)
            if until > now_ns:
                return until
        limit = round(self._timeouts.warm_timeout * SECOND)
        return max(
            (sent.at_ns + limit for sent in clusters.unacknowledged.values() if not named.isdisjoint(sent.added)),
            default=0,
        )

    def _lacks(self, found: FoundSubscription, named: frozenset[str], response: Response, now_ns: int) -> bool:
        """Whether the client certainly lacks one of the clusters: it was not sent yet, or it was rejected."""
        clusters = found.subscription
        unsent = clusters.next_response(found.owner.view_of(clusters, now_ns))
        if unsent is not None and not named.isdisjoint(unsent.added):
            return True
        replaces = bool(response.changed - response.added) and not response.asked
        return replaces and any(not named.isdisjoint(rejection.missing) for rejection in clusters.rejections)

    def _clusters_of_new_routes(self, type_url: str, response: Response) -> frozenset[str]:
        """The clusters behind the routes that listeners name and that the client does not hold yet.

        The client asks for those routes as soon as it has the listeners, so the listeners wait for the clusters.
        """
        if type_url != types.LISTENER:
            return NO_NAMES
        names = frozenset[str]().union(*(one.points_at.routes for one in response.resources))
        found = self._find(types.ROUTES)
        if found is not None:
            names -= found.subscription.wanted(names & found.subscription.offered.resources.keys())
        routes = self.content.of(types.ROUTES).resources
        return frozenset[str]().union(*(routes[name].points_at.clusters for name in names if name in routes))

    def note_what_is_named(self, subscription: Subscription, response: Response) -> None:
        """Keep in mind the clusters that the client has not acknowledged and that no resource sent to it names."""
        if subscription.type_url == types.CLUSTER:
            added = response.added if subscription.acked_version else NO_NAMES
            if added or self.unnamed:
                fresh = self.unnamed | added
                content = {resource.name: resource for resource in response.resources}
                self.unnamed = never_named(fresh, response.changed - fresh, content)
        elif subscription.type_url in types.REMOVED_AFTER[types.CLUSTER]:
            found = self._find(types.CLUSTER)
            if found is not None and found.owner.unnamed:
                held = found.subscription.offered.resources
                found.owner.unnamed = never_named(found.owner.unnamed, response.clusters, held)

    # Removal

    def view_of(self, subscription: Subscription, now_ns: int) -> TypeSnapshot:
        """What the client should have of a type now: the snapshot and the names that must not be removed yet."""
        type_url = subscription.type_url
        target = self.content.of(type_url)
        if subscription.offered is target or type_url not in types.REMOVED_AFTER:
            return target
        gone = target.since(subscription.offered).removed
        removals = subscription.wanted(gone) if gone else NO_NAMES
        needed = self._endpoints_of_kept_clusters(now_ns) if gone and type_url == types.ENDPOINTS else NO_NAMES
        if type_url == types.CLUSTER:
            removals -= self.unnamed
        stay, until = self._kept(type_url, removals, now_ns)
        self.wake_at(until)
        return target.keeping(subscription.offered, stay | needed.intersection(gone))

    def _kept(self, type_url: str, removals: frozenset[str], now_ns: int) -> tuple[frozenset[str], int]:
        if not removals:
            if self._deferred is not None:
                self._deferred.removals.pop(type_url, None)
            return NO_NAMES, FOREVER
        dependents = self._dependents_of(type_url)
        known = self.deferred.removals
        known[type_url] = follow(known.get(type_url, {}), removals, dependents, now_ns)
        return kept(known[type_url], dependents, self._timeouts, now_ns)

    def _endpoints_of_kept_clusters(self, now_ns: int) -> frozenset[str]:
        """The endpoints of removed clusters that the client still has: without them a cluster may never warm up."""
        found = self._find(types.CLUSTER)
        if found is None:
            return NO_NAMES
        view = found.owner.view_of(found.subscription, now_ns)
        gone = found.owner.content.of(types.CLUSTER).since(view).removed
        return frozenset[str]().union(*(view.resources[name].points_at.endpoints for name in gone))

    def _dependents_of(self, type_url: str) -> Dependents:
        """How far the client is with the types that may use resources of this type."""
        found = [one for one in map(self._find, types.REMOVED_AFTER[type_url]) if one is not None]
        refusing = [one.owner is self for one in found if one.subscription.rejections]
        return Dependents(
            current=all(_is_current(one) for one in found) and self._has_the_routes(type_url),
            refused=any(refusing),
            refused_beside=not all(refusing),
        )

    def _has_the_routes(self, type_url: str) -> bool:
        """Whether the client has asked for all routes that its listeners name. Until then its older listeners serve.

        Routes may be removed only when it has acknowledged the other routes too.
        """
        listeners, routes = self._find(types.LISTENER), self._find(types.ROUTES)
        if listeners is None or routes is None:
            return True
        if type_url == types.ROUTES and (routes.subscription.asked or routes.subscription.unacknowledged):
            return False
        held = routes.owner.content.of(types.ROUTES).resources
        content = listeners.owner.content.of(types.LISTENER).resources
        wanted = listeners.subscription.wanted(content.keys())
        named = frozenset[str]().union(*(content[name].points_at.routes for name in wanted))
        return all(routes.subscription.wants_any((name,)) for name in named if name in held)

    def _find(self, type_url: str) -> FoundSubscription | None:
        """The node's subscription to a type: on this stream, or on another stream of the node."""
        own = self.subscription(type_url)
        if own is not None:
            return FoundSubscription(self, own)
        for sibling in self._siblings(self):
            beside = sibling.subscription(type_url)
            if beside is not None:
                return FoundSubscription(sibling, beside)
        return None

    @property
    def deferred(self) -> Deferred:
        """What the stream has put off; made when it is first needed."""
        if self._deferred is None:
            self._deferred = Deferred()
        return self._deferred

    def wake_at(self, until: int) -> None:
        """Look for a response at this time, if not before."""
        if until != FOREVER:
            self.wake_ns = until if self.wake_ns is None else min(self.wake_ns, until)


def _is_current(user: FoundSubscription) -> bool:
    """Whether the client has acknowledged all present content of a type."""
    content = user.owner.content.of(user.subscription.type_url)
    return not user.subscription.unacknowledged and user.subscription.next_response(content) is None
