"""The two variants of a subscription: state of the world, and delta.

They differ in how a request names resources, in what a wildcard is, and in how much a response carries. Everything else
is in ``understudy.xds.server.subscription``.
"""

import weakref
from collections import deque
from collections.abc import Collection, Mapping

from understudy.xds.server import types
from understudy.xds.server.responses import Response
from understudy.xds.server.snapshot import EMPTY, Resource, TypeSnapshot
from understudy.xds.server.subscription import WILDCARD, Subscription
from understudy.xds.server.wire import Request

# Thousands of Envoys want the same names. They share one set of them while one of them needs it.
_SHARED: weakref.WeakValueDictionary[frozenset[str], frozenset[str]] = weakref.WeakValueDictionary()


def shared(names: frozenset[str]) -> frozenset[str]:
    """An equal set that all clients with these names share."""
    return _SHARED.setdefault(names, names)


def _held_resource(name: str, version: str) -> Resource:
    """A resource that a client says it holds from an earlier stream: name and version, without the content."""
    return Resource(name, version, packed=b"", mark=0)


# The clients of a replica that died come back all at once and hold the same resources. They share one snapshot of them,
# and so its difference from the content. A stream drops it with its first response; the last few are kept for others.
_HELD: weakref.WeakValueDictionary[frozenset[tuple[str, str]], TypeSnapshot] = weakref.WeakValueDictionary()
_RECENT_HELD: deque[TypeSnapshot] = deque(maxlen=8)
_MAX_HELD_NAMES = 5_000


def _held_snapshot(held: Mapping[str, str]) -> TypeSnapshot:
    """The resources that a client says it holds, as a snapshot that all clients with the same ones share."""
    if not held:
        return EMPTY
    key = frozenset(held.items())
    found = _HELD.get(key)
    if found is None:
        found = _HELD[key] = TypeSnapshot({name: _held_resource(name, version) for name, version in held.items()})
        if len(held) <= _MAX_HELD_NAMES:
            _RECENT_HELD.append(found)
    return found


class StateOfTheWorld(Subscription):
    """The variant whose requests carry all wanted names each time."""

    __slots__ = ("_claimed", "_full", "_implicit", "_left_out")

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._full = type_url in types.FULL_STATE
        self._implicit = False
        self._claimed = ""
        self._left_out: frozenset[str] = frozenset()

    def ignores_stale(self, request: Request) -> bool:
        """Always: the client responses the newer response too, again with all its names.

        But a name that it leaves out now and names again then may have been dropped in between, and is due again.
        """
        self._left_out |= self.names.difference(request.names)
        return True

    def _begin(self, request: Request) -> None:
        self._implicit = self._full and not request.names
        self.wildcard = self._implicit or WILDCARD in request.names
        self.names = shared(frozenset(request.names) - {WILDCARD})
        self._claimed = request.version
        self.resumed = bool(request.version)
        self._all_due, self._asked = True, not self.resumed

    def next_response(self, snapshot: TypeSnapshot) -> Response | None:
        """As in both variants, but nothing for a client that came with the version that it would get."""
        if self._claimed and self._claimed == self._version(snapshot):
            self.offered, self._all_due, self._claimed = snapshot, False, ""
            self._has(snapshot)
        return super().next_response(snapshot)

    def on_sent(self, response: Response, snapshot: TypeSnapshot, nonce: str, now_ns: int) -> None:
        """As in both variants; the version that the client came with no longer counts."""
        super().on_sent(response, snapshot, nonce, now_ns)
        self._claimed = ""

    def _subscribe(self, request: Request) -> bool:
        if self._implicit and not request.names:
            return False
        self._implicit = False
        asked = frozenset(request.names)
        names, wildcard = asked - {WILDCARD}, WILDCARD in asked
        again, self._left_out = names & self._left_out, frozenset()
        self._ask(again)
        if names == self.names and wildcard == self.wildcard:
            return bool(again)
        self._claimed = ""
        if wildcard and not self.wildcard:
            self._ask_all()
        elif not names <= self.names:
            self._ask(names - self.names)
        self.names, self.wildcard = shared(names), wildcard
        return True

    def _response_for(
        self, snapshot: TypeSnapshot, touched: Collection[str], gone: Collection[str], due: frozenset[str]
    ) -> Response | None:
        changed = snapshot.resources.keys() & due.union(touched)
        if self._full and (changed or gone or due or self._all_due):
            wanted = snapshot.resources if self.wildcard else snapshot.resources.keys() & self.names
            return self._compose(snapshot, wanted, (), frozenset(changed), due)
        if not changed:
            return None
        return self._compose(snapshot, changed, (), frozenset(changed), due)


class Delta(Subscription):
    """The variant whose requests carry changes of the wanted names and whose responses carry changes of content."""

    __slots__ = ()

    def ignores_stale(self, request: Request) -> bool:
        """Only if there are none: a change of the wanted names is sent only once, so it counts with any nonce."""
        return not request.subscribe and not request.unsubscribe

    def _begin(self, request: Request) -> None:
        # A first request that only unsubscribes asks for nothing. Only an empty request is the legacy wildcard.
        self.wildcard = WILDCARD in request.subscribe or not (request.subscribe or request.unsubscribe)
        self.names = shared(frozenset(request.subscribe) - {WILDCARD})
        held = {name: version for name, version in request.held.items() if self.wildcard or name in self.names}
        self.resumed = bool(held)
        self.offered = _held_snapshot(held)
        self._ask(self.names - held.keys())
        if self.wildcard and not self.resumed:
            self._ask_all()

    def _subscribe(self, request: Request) -> bool:
        if not request.subscribe and not request.unsubscribe:
            return False
        before = self.wildcard, self.names
        if WILDCARD in request.unsubscribe:
            self.wildcard = False
        left = self.names.intersection(request.unsubscribe)
        if left:
            self.names = shared(self.names - left)
        if self.wildcard:
            # Protocol text: the server sends the state of a name that only the wildcard still covers.
            self._ask(left)
        named = frozenset(request.subscribe) - {WILDCARD}
        if named:
            self.names = shared(self.names | named)
        self._ask(named)
        if WILDCARD in request.subscribe:
            self.wildcard = True
            self._ask_all()
        return bool(request.subscribe) or before != (self.wildcard, self.names)

    def _response_for(
        self, snapshot: TypeSnapshot, touched: Collection[str], gone: Collection[str], due: frozenset[str]
    ) -> Response | None:
        names = due.union(touched)
        changed = frozenset(name for name in names if name in snapshot.resources and snapshot.resources[name].packed)
        removed = names.union(gone) - changed
        if not changed and not removed and not self._all_due:
            return None
        return self._compose(snapshot, changed, removed, changed, due)
