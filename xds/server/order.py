"""What has to wait for what on one stream: routes for warm clusters, removals for whatever used the names.

A base of ``understudy.xds.server.stream.Conversation``, which sends what does not have to wait. A node that has one
stream per type is seen as a whole: its other streams are looked at too. Which names stay for how long is decided in
``understudy.xds.server.removal``.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from understudy.xds.server import types
from understudy.xds.server.removal import FOREVER, SECOND, Going, Users, follow, kept, never_named
from understudy.xds.server.snapshot import Snapshot, TypeSnapshot
from understudy.xds.server.stream_config import Pace
from understudy.xds.server.subscription import Answer, Subscription

NO_NAMES: frozenset[str] = frozenset()


class Waits:
    """What a stream waits with, by type; made when there is something, since thousands of streams have nothing.

    Attributes:
        owed: names that were due before their type was subscribed to.
        going: what is gone from the content and not from the client.
        held_up: since when another stream of the node id holds an answer up.
        renewed_ns: when lifetimes were renewed last.
    """

    __slots__ = ("going", "held_up", "owed", "renewed_ns")

    def __init__(self) -> None:
        self.owed: dict[str, set[str]] = {}
        self.going: dict[str, dict[str, Going]] = {}
        self.held_up: dict[str, int] = {}
        self.renewed_ns: dict[str, int] = {}

    def forget_what_is_back(self, snapshot: Snapshot) -> None:
        """A name that exists again starts anew when it goes again, whether or not the client saw it come back."""
        for type_url, going in self.going.items():
            there = snapshot.of(type_url).resources
            for name in [name for name in going if name in there]:
                del going[name]


class Found(NamedTuple):
    """A node's subscription to a type, and the stream that it is on."""

    owner: "Ordering"
    subscription: Subscription


class Ordering:
    """A stream's subscriptions, the content that it is to see, and who waits for whom.

    Attributes:
        content: what the client is to see.
        unnamed: clusters that the client was sent, has not acknowledged, and that nothing it was sent names.
        fresh: whether this server is known to be as new as the truth was when the stream began. Until then a client
            that brings versions from elsewhere is not sent other ones, so that it is never rolled back.
        needs_freshness: something waits for ``fresh``.
        wake_ns: when there may be an answer although nothing happened; None when never.
    """

    __slots__ = (
        "_in_order",
        "_pace",
        "_siblings",
        "_waits",
        "content",
        "fresh",
        "needs_freshness",
        "unnamed",
        "wake_ns",
    )

    def __init__(self, pace: Pace, siblings: "Callable[..., Iterable[Ordering]]") -> None:
        self.content = Snapshot()
        self.unnamed = NO_NAMES
        self.fresh = True
        self.needs_freshness = False
        self.wake_ns: int | None = None
        self._pace = pace
        self._siblings = siblings
        self._in_order: list[Subscription] = []
        self._waits: Waits | None = None

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

    def held_until(self, subscription: Subscription, answer: Answer, now_ns: int) -> int:
        """The time before which an answer must not go; 0 when it may go now."""
        if subscription.resumed and not subscription.sent_version and not self.fresh:
            self.needs_freshness = True
            return FOREVER
        if subscription.type_url == types.ENDPOINTS:
            return 0
        until = 0
        if subscription.unanswered and not answer.asked:
            until = subscription.sent_at_ns + round(self._pace.ack_wait * SECOND)
        if subscription.type_url in types.POINT_AT_CLUSTERS and until <= now_ns:
            until = self._clusters_warm_at(subscription.type_url, answer, now_ns)
        return until

    def _clusters_warm_at(self, type_url: str, answer: Answer, now_ns: int) -> int:
        """When the clusters that an answer leads to can be relied on.

        What a client asks for waits too: it may have asked because of a listener that is to replace one in service.
        A client that has acknowledged no cluster yet serves nothing that could break.
        """
        found = self._find(types.CLUSTER)
        if found is None or (answer.asked and not found.subscription.acked_version):
            return 0
        named = answer.clusters | self._clusters_of_new_routes(type_url, answer)
        clusters = found.subscription
        if self._lacks(found, named, answer, now_ns):
            if found.owner is self:
                return FOREVER
            since = self.waiting.held_up.setdefault(type_url, now_ns)
            until = since + round(self._pace.beside_limit * SECOND)
            if until > now_ns:
                return until
        limit = round(self._pace.warm_limit * SECOND)
        return max(
            (sent.at_ns + limit for sent in clusters.unanswered.values() if not named.isdisjoint(sent.added)),
            default=0,
        )

    def _lacks(self, found: Found, named: frozenset[str], answer: Answer, now_ns: int) -> bool:
        """Whether the client surely has not got one of the clusters: not sent yet, or refused."""
        clusters = found.subscription
        unsent = clusters.what_to_send(found.owner.view_of(clusters, now_ns))
        if unsent is not None and not named.isdisjoint(unsent.added):
            return True
        replaces = bool(answer.changed - answer.added) and not answer.asked
        return replaces and any(not named.isdisjoint(refusal.missing) for refusal in clusters.refusals)

    def _clusters_of_new_routes(self, type_url: str, answer: Answer) -> frozenset[str]:
        """The clusters behind the routes that listeners name and that the client does not hold yet.

        It asks for those routes as soon as it has the listeners, so the listeners wait for the clusters.
        """
        if type_url != types.LISTENER:
            return NO_NAMES
        names = frozenset[str]().union(*(one.points_at.routes for one in answer.resources))
        found = self._find(types.ROUTES)
        if found is not None:
            names -= found.subscription.wanted(names & found.subscription.offered.resources.keys())
        routes = self.content.of(types.ROUTES).resources
        return frozenset[str]().union(*(routes[name].points_at.clusters for name in names if name in routes))

    def note_what_is_named(self, subscription: Subscription, answer: Answer) -> None:
        """Keep in mind which of the clusters that the client has not acknowledged are named by nothing it was sent."""
        if subscription.type_url == types.CLUSTER:
            added = answer.added if subscription.acked_version else NO_NAMES
            if added or self.unnamed:
                fresh = self.unnamed | added
                content = {resource.name: resource for resource in answer.resources}
                self.unnamed = never_named(fresh, answer.changed - fresh, content)
        elif subscription.type_url in types.REMOVED_AFTER[types.CLUSTER]:
            found = self._find(types.CLUSTER)
            if found is not None and found.owner.unnamed:
                held = found.subscription.offered.resources
                found.owner.unnamed = never_named(found.owner.unnamed, answer.clusters, held)

    # Removal

    def view_of(self, subscription: Subscription, now_ns: int) -> TypeSnapshot:
        """What the client is to see of a type now: the snapshot and what must not be taken away yet."""
        type_url = subscription.type_url
        target = self.content.of(type_url)
        if subscription.offered is target or type_url not in types.REMOVED_AFTER:
            return target
        gone = target.since(subscription.offered).removed
        going = subscription.wanted(gone) if gone else NO_NAMES
        needed = self._endpoints_of_kept_clusters(now_ns) if gone and type_url == types.ENDPOINTS else NO_NAMES
        if type_url == types.CLUSTER:
            going -= self.unnamed
        stay, until = self._kept(type_url, going, now_ns)
        self.wake_at(until)
        return target.keeping(subscription.offered, stay | needed.intersection(gone))

    def _kept(self, type_url: str, going: frozenset[str], now_ns: int) -> tuple[frozenset[str], int]:
        if not going:
            if self._waits is not None:
                self._waits.going.pop(type_url, None)
            return NO_NAMES, FOREVER
        users = self._users_of(type_url)
        known = self.waiting.going
        known[type_url] = follow(known.get(type_url, {}), going, users, now_ns)
        return kept(known[type_url], users, self._pace, now_ns)

    def _endpoints_of_kept_clusters(self, now_ns: int) -> frozenset[str]:
        """The endpoints of clusters that are gone and that the client still has: without them it may never warm up."""
        found = self._find(types.CLUSTER)
        if found is None:
            return NO_NAMES
        view = found.owner.view_of(found.subscription, now_ns)
        gone = found.owner.content.of(types.CLUSTER).since(view).removed
        return frozenset[str]().union(*(view.resources[name].points_at.endpoints for name in gone))

    def _users_of(self, type_url: str) -> Users:
        """How the client stands with the types that may use resources of this one."""
        found = [one for one in map(self._find, types.REMOVED_AFTER[type_url]) if one is not None]
        refusing = [one.owner is self for one in found if one.subscription.refusals]
        return Users(
            current=all(_is_current(one) for one in found) and self._has_the_routes(type_url),
            refused=any(refusing),
            refused_beside=not all(refusing),
        )

    def _has_the_routes(self, type_url: str) -> bool:
        """Whether the client has asked for all routes that its listeners name; until then older listeners serve.

        Routes may go only when it has acknowledged the others too.
        """
        listeners, routes = self._find(types.LISTENER), self._find(types.ROUTES)
        if listeners is None or routes is None:
            return True
        if type_url == types.ROUTES and (routes.subscription.asked or routes.subscription.unanswered):
            return False
        held = routes.owner.content.of(types.ROUTES).resources
        content = listeners.owner.content.of(types.LISTENER).resources
        wanted = listeners.subscription.wanted(content.keys())
        named = frozenset[str]().union(*(content[name].points_at.routes for name in wanted))
        return all(routes.subscription.wants_any((name,)) for name in named if name in held)

    def _find(self, type_url: str) -> Found | None:
        """The node's subscription to a type: on this stream, or on another one that it has beside it."""
        own = self.subscription(type_url)
        if own is not None:
            return Found(self, own)
        for sibling in self._siblings(self):
            beside = sibling.subscription(type_url)
            if beside is not None:
                return Found(sibling, beside)
        return None

    @property
    def waiting(self) -> Waits:
        """What the stream waits with; made when it is first needed."""
        if self._waits is None:
            self._waits = Waits()
        return self._waits

    def wake_at(self, until: int) -> None:
        """There may be an answer then."""
        if until != FOREVER:
            self.wake_ns = until if self.wake_ns is None else min(self.wake_ns, until)


def _is_current(user: Found) -> bool:
    """Whether the client has acknowledged all content of a type as it is now."""
    content = user.owner.content.of(user.subscription.type_url)
    return not user.subscription.unanswered and user.subscription.what_to_send(content) is None
