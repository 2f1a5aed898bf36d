"""One client's subscription to one type: what it wants, what it was sent, and its ACKs and NACKs. Pure.

State of the world and delta (``understudy.xds.server.variants``) differ only in how a request names resources and in
how much a response carries. The object takes requests and snapshots and says what to send. When to send, and the order
among types, is decided in ``understudy.xds.server.stream``. The rules are those of the xDS protocol text ("xDS REST and
gRPC protocol", v3).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from understudy.xds.server.responses import ConfigStatus, Rejection, RequestOutcome, Response, Sent, version_in
from understudy.xds.server.snapshot import EMPTY, TypeSnapshot
from understudy.xds.server.wire import Request

WILDCARD = "*"
_NOTHING_SENT: Mapping[str, Sent] = MappingProxyType({})
_NO_VERSIONS: Mapping[str, str] = MappingProxyType({})
_MAX_UNACKNOWLEDGED = 64


class Subscription:
    """The part that both variants share: the wanted names, the content sent, acknowledgements and rejections.

    Attributes:
        offered: the snapshot of which the client was sent everything that it wants.
        unacknowledged: responses without ACK or NACK, oldest first.
        resumed: the client came with versions from an earlier stream.
    """

    __slots__ = (
        "_all_due",
        "_asked",
        "_begun",
        "_due",
        "_untaken",
        "acked_at_ns",
        "acked_version",
        "error",
        "names",
        "nonce",
        "offered",
        "rejections",
        "resumed",
        "sent_at_ns",
        "sent_version",
        "type_url",
        "unacknowledged",
        "wildcard",
    )

    def __init__(self, type_url: str) -> None:
        self.type_url = type_url
        self.wildcard = False
        self.names: frozenset[str] = frozenset()
        self.offered: TypeSnapshot = EMPTY
        self.resumed = False
        self.unacknowledged: Mapping[str, Sent] = _NOTHING_SENT
        self.rejections: tuple[Rejection, ...] = ()
        self.nonce = ""
        self.sent_version = ""
        self.acked_version = ""
        self.error: str | None = None
        self.sent_at_ns = 0
        self.acked_at_ns = 0
        self._begun = False
        self._due: frozenset[str] = frozenset()
        self._untaken: frozenset[str] = frozenset()
        self._all_due = False
        self._asked = False

    # What the client says

    def on_request(self, request: Request, now_ns: int) -> RequestOutcome:
        """Take in one request. The first of a subscription has rules of its own."""
        if not self._begun:
            self._begun = True
            self._begin(request)
            return RequestOutcome("first", subscription_changed=True)
        outcome = self._judge(request, now_ns)
        if outcome.kind == "stale" and self.ignores_stale(request):
            return outcome
        changed = self._subscribe(request)
        if changed and self.rejections:
            self._retry_rejected()
        return RequestOutcome(outcome.kind, outcome.sent, outcome.error, changed)

    def ignores_stale(self, request: Request) -> bool:
        """Whether the names in a request with an old nonce do not count."""
        raise NotImplementedError

    def _begin(self, request: Request) -> None:
        raise NotImplementedError

    def _subscribe(self, request: Request) -> bool:
        raise NotImplementedError

    def _judge(self, request: Request, now_ns: int) -> RequestOutcome:
        """Which response the request is about, and what it says of it."""
        if not request.nonce:
            return RequestOutcome("plain")
        sent = self.unacknowledged.get(request.nonce)
        newest = request.nonce == self.nonce
        if sent is None:
            return RequestOutcome("plain" if newest else "stale")
        if request.error is not None:
            self.on_nack(sent, request.error, now_ns)
            return RequestOutcome("nack" if newest else "stale", sent, request.error)
        self.on_ack(sent, now_ns)
        return RequestOutcome("ack" if newest else "stale", sent)

    def on_ack(self, sent: Sent, now_ns: int) -> None:
        """The client accepts a response and, if it is the newest, all earlier ones that it did not reject."""
        self._settle(sent)
        if self._untaken:
            self._untaken -= sent.versions.keys()
        if sent.nonce != self.nonce:
            return
        self.acked_version, self.acked_at_ns = sent.version, now_ns
        if not self.rejections:
            self.error = None

    def on_nack(self, sent: Sent, error: str, now_ns: int) -> None:
        """The client rejects a response: its names are not sent again until one of them or the subscription changes.

        Names that were sent again since are left out: their ACK or NACK is still to come. If something in the response
        is different by now, the rest is due at once.
        """
        self._settle(sent)
        again = frozenset[str]().union(*(other.versions for other in self.unacknowledged.values()))
        parked = sent.versions.keys() - again
        if parked:
            rejection = Rejection(frozenset(parked), sent.versions, sent.added, sent.version, error)
            self.rejections = (*self.rejections, rejection)
            self._untaken |= sent.added & parked
            if rejection.is_outdated(self.offered.resources):
                self.renew(parked)
        self.error, self.acked_at_ns = error, now_ns

    def _settle(self, sent: Sent) -> None:
        if sent.nonce == self.nonce:
            self.unacknowledged = _NOTHING_SENT  # an emptied dict would keep its memory: a KB per stream
            return
        nonces = list(self.unacknowledged)
        later = nonces[nonces.index(sent.nonce) + 1 :]
        self.unacknowledged = {nonce: self.unacknowledged[nonce] for nonce in later}

    # What to send

    def is_up_to_date(self, snapshot: TypeSnapshot) -> bool:
        """Whether there is certainly nothing to send for ``snapshot``. Cheap, since it is called very often."""
        return snapshot is self.offered and not self._due and not self._all_due

    def next_response(self, snapshot: TypeSnapshot) -> Response | None:
        """The response that brings the client to ``snapshot``, or None. Call :meth:`on_sent` when it is sent."""
        if self.is_up_to_date(snapshot):
            return None
        if self._due or self._all_due or self.rejections or (self.resumed and not self.sent_version):
            return self._own_response(snapshot)
        # Clients with the same names that have the same snapshot share the response.
        key = (type(self), self.wildcard, self.names)
        response = snapshot.response(self.offered, key, lambda: self._own_response(snapshot))
        if response is None:
            self._advance(snapshot)
        return response

    def _own_response(self, snapshot: TypeSnapshot) -> Response | None:
        difference = snapshot.since(self.offered)
        touched = self._wanted(difference.changed)
        gone = self._wanted(difference.removed)
        due = self._due_names(snapshot)
        retried = self._rejected_and_changed(snapshot)
        response = None
        if touched or gone or due or retried or self._all_due:
            response = self._response_for(snapshot, touched, gone, due | retried)
        if response is None:
            self._advance(snapshot)
            if self.resumed and not self.sent_version:
                self._has(snapshot)
        return response

    def _response_for(
        self, snapshot: TypeSnapshot, touched: Collection[str], gone: Collection[str], due: frozenset[str]
    ) -> Response | None:
        raise NotImplementedError

    def _version(self, snapshot: TypeSnapshot) -> str:
        """The version of the part of a snapshot that this client wants, whatever part of it a response carries."""
        return snapshot.version if self.wildcard else snapshot.version_of(self.names)

    def _compose(
        self,
        snapshot: TypeSnapshot,
        names: Iterable[str],
        removed: Iterable[str],
        changed: frozenset[str],
        due: frozenset[str],
    ) -> Response:
        offered, held = self.offered.resources, snapshot.resources
        asked = due if self._asked else frozenset[str]()
        return Response(
            version=self._version(snapshot),
            resources=tuple(held[name] for name in sorted(names)),
            removed=tuple(sorted(removed)),
            changed=changed,
            added=frozenset(n for n in changed if n not in offered or n in asked or n in self._untaken),
            asked=self._asked,
        )

    def on_sent(self, response: Response, snapshot: TypeSnapshot, nonce: str, now_ns: int) -> None:
        """The response, made from ``snapshot``, is being written under ``nonce``."""
        self.on_part_sent(response, nonce, now_ns)
        self.sent_version, self.sent_at_ns = response.version, now_ns
        self._advance(snapshot)

    def on_part_sent(self, part: Response, nonce: str, now_ns: int) -> None:
        """A part of a response is being written under its own nonce; :meth:`on_sent` follows with the last part."""
        versions = part.versions
        self._expect(Sent(nonce, part.version, versions, part.added, now_ns))
        if self.rejections:
            self._still_rejected(lambda _, name: name not in versions)

    def on_heartbeat(self, nonce: str, now_ns: int) -> None:
        """A response without content, which only renews lifetimes, is being written under ``nonce``."""
        self._expect(Sent(nonce, self.sent_version, _NO_VERSIONS, frozenset(), now_ns))

    def _expect(self, sent: Sent) -> None:
        kept = dict(self.unacknowledged)
        if len(kept) >= _MAX_UNACKNOWLEDGED:
            del kept[next(iter(kept))]
        kept[sent.nonce] = sent
        self.unacknowledged = kept
        self.nonce = sent.nonce

    def renew(self, names: Iterable[str]) -> None:
        """Send these names again with the next response, changed or not, if the client wants them."""
        self._due |= frozenset(self._wanted(tuple(names)))

    @property
    def status(self) -> ConfigStatus:
        """How far the node is with this type."""
        if self.error is not None:
            return ConfigStatus.ERROR
        if self.unacknowledged:
            return ConfigStatus.STALE
        return ConfigStatus.SYNCED if self.sent_version or self.acked_version else ConfigStatus.NOT_SENT

    @property
    def asked(self) -> bool:
        """Whether a request waits for a response, so that nothing may hold it back."""
        return self._asked

    def _has(self, snapshot: TypeSnapshot) -> None:
        """The client has all of this from an earlier stream: it counts as sent and acknowledged on this one."""
        self.sent_version = self.acked_version = self._version(snapshot)

    def wants_any(self, names: Collection[str]) -> bool:
        """Whether the client wants one of these."""
        return bool(self._wanted(names))

    def _advance(self, snapshot: TypeSnapshot) -> None:
        self.offered = snapshot
        if self.rejections:
            now = snapshot.resources
            self._still_rejected(lambda rejection, name: version_in(now, name) == rejection.versions[name])
            if not self.rejections and not self.unacknowledged:
                self.error = None
        self._due = frozenset()
        self._all_due = self._asked = False

    def _still_rejected(self, holds: Callable[[Rejection, str], bool]) -> None:
        """Keep only the rejected names for which ``holds`` is true."""
        left = (replace(one, names=frozenset(n for n in one.names if holds(one, n))) for one in self.rejections)
        self.rejections = tuple(one for one in left if one.names)

    def wanted(self, names: Collection[str]) -> frozenset[str]:
        """Those of the names that the client wants."""
        return frozenset(self._wanted(names))

    def _wanted(self, names: Collection[str]) -> Collection[str]:
        if self.wildcard or not names:
            return names
        if len(names) > len(self.names):
            among = frozenset(names)
            return [name for name in self.names if name in among]
        return [name for name in names if name in self.names]

    def _due_names(self, snapshot: TypeSnapshot) -> frozenset[str]:
        due = frozenset(self._wanted(tuple(self._due)))
        if self._all_due:
            due |= self.names
            if self.wildcard:
                due |= snapshot.resources.keys()
        return due

    def _ask(self, names: Iterable[str]) -> None:
        asked = frozenset(names)
        self._due |= asked
        self._asked = self._asked or bool(asked)

    def _ask_all(self) -> None:
        self._all_due = self._asked = True

    def _rejected_and_changed(self, snapshot: TypeSnapshot) -> frozenset[str]:
        """Rejected names to try again: all that were refused together with one that is different now."""
        names: frozenset[str] = frozenset()
        for rejection in self.rejections:
            if rejection.is_outdated(snapshot.resources):
                names |= self.wanted(rejection.names)
        return names

    def _retry_rejected(self) -> None:
        for rejection in self.rejections:
            self._ask(self._wanted(rejection.names))
        self.rejections = ()
