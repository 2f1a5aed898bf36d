"""The two variants of a subscription: state of the world, and delta.

What differs is how a request names resources, what a wildcard is, and how much an answer carries. Everything else
is in ``understudy.xds.server.subscription``.
"""

import weakref
from collections import deque
from collections.abc import Collection, Mapping

from understudy.xds.server import types
from understudy.xds.server.snapshot import EMPTY, Resource, TypeSnapshot
from understudy.xds.server.subscription import WILDCARD, Answer, Subscription
from understudy.xds.server.wire import Request

# Thousands of Envoys want the same names: they share one set of them, for as long as one of them wants it.
_SHARED: weakref.WeakValueDictionary[frozenset[str], frozenset[str]] = weakref.WeakValueDictionary()


def shared(names: frozenset[str]) -> frozenset[str]:
    """An equal set that all clients with these names hold in common."""
    return _SHARED.setdefault(names, names)


def _ghost(name: str, version: str) -> Resource:
    """What a client says it holds from an earlier stream: a name and a version, the content unknown."""
    return Resource(name, version, packed=b"", mark=0)


# The clients of a replica that died come back all at once and hold the same: they share one snapshot of it, and with
# that what it lacks of the content. A stream lets go of it with its first answer; the last few are kept for the next.
_GHOSTS: weakref.WeakValueDictionary[frozenset[tuple[str, str]], TypeSnapshot] = weakref.WeakValueDictionary()
_RECENT: deque[TypeSnapshot] = deque(maxlen=8)
_KEPT_NAMES = 5_000


def _ghosts(held: Mapping[str, str]) -> TypeSnapshot:
    """What a client says it holds as a snapshot, shared by all that hold the same."""
    if not held:
        return EMPTY
    key = frozenset(held.items())
    found = _GHOSTS.get(key)
    if found is None:
        found = _GHOSTS[key] = TypeSnapshot({name: _ghost(name, version) for name, version in held.items()})
        if len(held) <= _KEPT_NAMES:
            _RECENT.append(found)
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
        """Always: the client answers the newer response too, again with all its names.

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

    def what_to_send(self, snapshot: TypeSnapshot) -> Answer | None:
        """As for both variants; and nothing for a client that came with the version it would get."""
        if self._claimed and self._claimed == self._version(snapshot):
            self.offered, self._all_due, self._claimed = snapshot, False, ""
            self._has(snapshot)
        return super().what_to_send(snapshot)

    def on_sent(self, answer: Answer, snapshot: TypeSnapshot, nonce: str, now_ns: int) -> None:
        """As for both variants; what the client came with no longer counts."""
        super().on_sent(answer, snapshot, nonce, now_ns)
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

    def _answer(
        self, snapshot: TypeSnapshot, touched: Collection[str], gone: Collection[str], due: frozenset[str]
    ) -> Answer | None:
        changed = snapshot.resources.keys() & due.union(touched)
        if self._full and (changed or gone or due or self._all_due):
            wanted = snapshot.resources if self.wildcard else snapshot.resources.keys() & self.names
            return self._compose(snapshot, wanted, (), frozenset(changed), due)
        if not changed:
            return None
        return self._compose(snapshot, changed, (), frozenset(changed), due)


class Delta(Subscription):
    """The variant whose requests carry changes of interest and whose answers carry changes of content."""

    __slots__ = ()

    def ignores_stale(self, request: Request) -> bool:
        """Only if there are none: a change of interest is said only once, so of an old nonce only the ACK is void."""
        return not request.subscribe and not request.unsubscribe

    def _begin(self, request: Request) -> None:
        # Who begins by leaving something asks for nothing: only an empty request is the wildcard of old.
        self.wildcard = WILDCARD in request.subscribe or not (request.subscribe or request.unsubscribe)
        self.names = shared(frozenset(request.subscribe) - {WILDCARD})
        held = {name: version for name, version in request.held.items() if self.wildcard or name in self.names}
        self.resumed = bool(held)
        self.offered = _ghosts(held)
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
            # Protocol text: the server says where a name stands now that only the wildcard covers it.
            self._ask(left)
        named = frozenset(request.subscribe) - {WILDCARD}
        if named:
            self.names = shared(self.names | named)
        self._ask(named)
        if WILDCARD in request.subscribe:
            self.wildcard = True
            self._ask_all()
        return bool(request.subscribe) or before != (self.wildcard, self.names)

    def _answer(
        self, snapshot: TypeSnapshot, touched: Collection[str], gone: Collection[str], due: frozenset[str]
    ) -> Answer | None:
        names = due.union(touched)
        changed = frozenset(name for name in names if name in snapshot.resources and snapshot.resources[name].packed)
        removed = names.union(gone) - changed
        if not changed and not removed and not self._all_due:
            return None
        return self._compose(snapshot, changed, removed, changed, due)
