"""One client's subscription to one type, as a pure object: what it wants, what it was offered, what it answered.

State of the world and delta (``understudy.xds.server.variants``) share everything but how a request names resources and
how full an answer is. The object takes requests and snapshots and says what to send; when to send, and in which order
among types, is decided in ``understudy.xds.server.stream``. Rules are those of the xDS protocol text ("xDS REST and
gRPC protocol", v3).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Literal, NamedTuple

from understudy.xds.server.snapshot import EMPTY, Resource, TypeSnapshot
from understudy.xds.server.wire import Request

WILDCARD = "*"
_NOTHING_SENT: Mapping[str, "Sent"] = MappingProxyType({})
_NO_VERSIONS: Mapping[str, str] = MappingProxyType({})
_UNANSWERED_KEPT = 64


class Standing(StrEnum):
    """How a node stands with one type, in the words of the client status service."""

    NOT_SENT = "NOT SENT"
    STALE = "STALE"
    SYNCED = "SYNCED"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Answer:
    """What to send for one type: resources, names that are gone, and the version of the whole.

    ``changed`` names the resources that the client did not hold like this before; in an answer that carries a full
    set these are fewer than all. ``added`` are those of them that it did not hold at all. ``asked`` says that a
    request, not a change of content, is the reason. ``cut`` remembers the parts that it was cut into
    (``understudy.xds.server.split``).
    """

    version: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...] = ()
    changed: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()
    asked: bool = False
    cut: "dict[int, tuple[Answer, ...]]" = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def versions(self) -> Mapping[str, str]:
        """All names that it speaks of, with their versions; a removed name has an empty one."""
        return {resource.name: resource.version for resource in self.resources} | dict.fromkeys(self.removed, "")

    @cached_property
    def clusters(self) -> frozenset[str]:
        """All clusters that its resources point at."""
        return frozenset[str]().union(*(resource.points_at.clusters for resource in self.resources))


class Sent(NamedTuple):
    """An answer on its way: kept until the client has said what it thinks of it. Times are monotonic ns."""

    nonce: str
    version: str
    versions: Mapping[str, str]
    added: frozenset[str]
    at_ns: int


class Facts(NamedTuple):
    """What one request said: about an answer (``sent`` and, for a NACK, ``error``) and about the subscription."""

    kind: Literal["first", "ack", "nack", "stale", "plain"]
    sent: Sent | None = None
    error: str | None = None
    subscription_changed: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that the client refused.

    Attributes:
        names: what of it stays parked: names that were not sent again since.
        versions: everything that was in it, as it was sent.
        added: the names in it that the client did not hold before.
    """

    names: frozenset[str]
    versions: Mapping[str, str]
    added: frozenset[str]
    version: str
    error: str

    @property
    def missing(self) -> frozenset[str]:
        """The added names that the client surely or possibly lacks: those its text names, all if it names none."""
        added = self.added & self.names
        return frozenset(name for name in added if name in self.error) or added

    def is_outdated(self, resources: Mapping[str, Resource]) -> bool:
        """Whether something that was in the answer is different now, so that the rest is worth another try."""
        return any(version_in(resources, name) != version for name, version in self.versions.items())


class Subscription:
    """The part that both variants share: interest, offers, acknowledgements, parked refusals.

    Attributes:
        offered: the snapshot up to which the client was told everything it wants; None before the first request.
        unanswered: answers without ACK or NACK, oldest first.
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
        "refusals",
        "resumed",
        "sent_at_ns",
        "sent_version",
        "type_url",
        "unanswered",
        "wildcard",
    )

    def __init__(self, type_url: str) -> None:
        self.type_url = type_url
        self.wildcard = False
        self.names: frozenset[str] = frozenset()
        self.offered: TypeSnapshot = EMPTY
        self.resumed = False
        self.unanswered: Mapping[str, Sent] = _NOTHING_SENT
        self.refusals: tuple[Refusal, ...] = ()
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

    def on_request(self, request: Request, now_ns: int) -> Facts:
        """Take in one request; the first of a subscription is judged by its own rules."""
        if not self._begun:
            self._begun = True
            self._begin(request)
            return Facts("first", subscription_changed=True)
        facts = self._judge(request, now_ns)
        if facts.kind == "stale" and self.ignores_stale(request):
            return facts
        changed = self._subscribe(request)
        if changed and self.refusals:
            self._retry_refused()
        return Facts(facts.kind, facts.sent, facts.error, changed)

    def ignores_stale(self, request: Request) -> bool:
        """Whether the names in a request with an old nonce don't count."""
        raise NotImplementedError

    def _begin(self, request: Request) -> None:
        raise NotImplementedError

    def _subscribe(self, request: Request) -> bool:
        raise NotImplementedError

    def _judge(self, request: Request, now_ns: int) -> Facts:
        """Which answer the request is about, and what it says of it."""
        if not request.nonce:
            return Facts("plain")
        sent = self.unanswered.get(request.nonce)
        newest = request.nonce == self.nonce
        if sent is None:
            return Facts("plain" if newest else "stale")
        if request.error is not None:
            self.on_nack(sent, request.error, now_ns)
            return Facts("nack" if newest else "stale", sent, request.error)
        self.on_ack(sent, now_ns)
        return Facts("ack" if newest else "stale", sent)

    def on_ack(self, sent: Sent, now_ns: int) -> None:
        """The client accepts an answer and, if it is the newest, all before it that it did not refuse."""
        self._settle(sent)
        if self._untaken:
            self._untaken -= sent.versions.keys()
        if sent.nonce != self.nonce:
            return
        self.acked_version, self.acked_at_ns = sent.version, now_ns
        if not self.refusals:
            self.error = None

    def on_nack(self, sent: Sent, error: str, now_ns: int) -> None:
        """The client refuses an answer: what was in it is parked until some of it or the subscription changes.

        What was sent again since is left out: the client's word on that is still to come. If some of the answer is
        different by now, the rest is due at once.
        """
        self._settle(sent)
        again = frozenset[str]().union(*(other.versions for other in self.unanswered.values()))
        parked = sent.versions.keys() - again
        if parked:
            refusal = Refusal(frozenset(parked), sent.versions, sent.added, sent.version, error)
            self.refusals = (*self.refusals, refusal)
            self._untaken |= sent.added & parked
            if refusal.is_outdated(self.offered.resources):
                self.renew(parked)
        self.error, self.acked_at_ns = error, now_ns

    def _settle(self, sent: Sent) -> None:
        if sent.nonce == self.nonce:
            self.unanswered = _NOTHING_SENT  # an emptied dict would keep its table: a KB per stream
            return
        nonces = list(self.unanswered)
        later = nonces[nonces.index(sent.nonce) + 1 :]
        self.unanswered = {nonce: self.unanswered[nonce] for nonce in later}

    # What to send

    def is_quiet(self, snapshot: TypeSnapshot) -> bool:
        """Whether the client surely has nothing to get if it is to see ``snapshot``. Cheap: asked at every turn."""
        return snapshot is self.offered and not self._due and not self._all_due

    def what_to_send(self, snapshot: TypeSnapshot) -> Answer | None:
        """The answer that is due if the client is to see ``snapshot``, or None. Sending is told by :meth:`on_sent`."""
        if self.is_quiet(snapshot):
            return None
        if self._due or self._all_due or self.refusals or (self.resumed and not self.sent_version):
            return self._own_answer(snapshot)
        # Nothing but its interest tells this client from others that were offered the same: they share the answer.
        key = (type(self), self.wildcard, self.names)
        answer = snapshot.answer(self.offered, key, lambda: self._own_answer(snapshot))
        if answer is None:
            self._advance(snapshot)
        return answer

    def _own_answer(self, snapshot: TypeSnapshot) -> Answer | None:
        difference = snapshot.since(self.offered)
        touched = self._wanted(difference.changed)
        gone = self._wanted(difference.removed)
        due = self._due_names(snapshot)
        retried = self._refused_and_changed(snapshot)
        answer = None
        if touched or gone or due or retried or self._all_due:
            answer = self._answer(snapshot, touched, gone, due | retried)
        if answer is None:
            self._advance(snapshot)
            if self.resumed and not self.sent_version:
                self._has(snapshot)
        return answer

    def _answer(
        self, snapshot: TypeSnapshot, touched: Collection[str], gone: Collection[str], due: frozenset[str]
    ) -> Answer | None:
        raise NotImplementedError

    def _version(self, snapshot: TypeSnapshot) -> str:
        """The version of what this client sees of a snapshot, whichever part of it an answer carries."""
        return snapshot.version if self.wildcard else snapshot.version_of(self.names)

    def _compose(
        self,
        snapshot: TypeSnapshot,
        names: Iterable[str],
        removed: Iterable[str],
        changed: frozenset[str],
        due: frozenset[str],
    ) -> Answer:
        offered, held = self.offered.resources, snapshot.resources
        asked = due if self._asked else frozenset[str]()
        return Answer(
            version=self._version(snapshot),
            resources=tuple(held[name] for name in sorted(names)),
            removed=tuple(sorted(removed)),
            changed=changed,
            added=frozenset(n for n in changed if n not in offered or n in asked or n in self._untaken),
            asked=self._asked,
        )

    def on_sent(self, answer: Answer, snapshot: TypeSnapshot, nonce: str, now_ns: int) -> None:
        """The answer, made from ``snapshot``, is being written under ``nonce``."""
        self.on_part_sent(answer, nonce, now_ns)
        self.sent_version, self.sent_at_ns = answer.version, now_ns
        self._advance(snapshot)

    def on_part_sent(self, part: Answer, nonce: str, now_ns: int) -> None:
        """A part of an answer is going out under a nonce of its own; :meth:`on_sent` follows with the last part."""
        versions = part.versions
        self._expect(Sent(nonce, part.version, versions, part.added, now_ns))
        if self.refusals:
            self._still_refused(lambda _, name: name not in versions)

    def on_heartbeat(self, nonce: str, now_ns: int) -> None:
        """A response without content, which only renews lifetimes, is being written under ``nonce``."""
        self._expect(Sent(nonce, self.sent_version, _NO_VERSIONS, frozenset(), now_ns))

    def _expect(self, sent: Sent) -> None:
        kept = dict(self.unanswered)
        if len(kept) >= _UNANSWERED_KEPT:
            del kept[next(iter(kept))]
        kept[sent.nonce] = sent
        self.unanswered = kept
        self.nonce = sent.nonce

    def renew(self, names: Iterable[str]) -> None:
        """Send these again with the next answer, changed or not, as far as the client wants them."""
        self._due |= frozenset(self._wanted(tuple(names)))

    @property
    def standing(self) -> Standing:
        """How the node stands with this type."""
        if self.error is not None:
            return Standing.ERROR
        if self.unanswered:
            return Standing.STALE
        return Standing.SYNCED if self.sent_version or self.acked_version else Standing.NOT_SENT

    @property
    def asked(self) -> bool:
        """Whether a request waits for an answer, so that nothing may hold it back."""
        return self._asked

    def _has(self, snapshot: TypeSnapshot) -> None:
        """The client came with all this from an earlier stream: as good as sent and acknowledged on this one."""
        self.sent_version = self.acked_version = self._version(snapshot)

    def wants_any(self, names: Collection[str]) -> bool:
        """Whether the client wants one of these."""
        return bool(self._wanted(names))

    def _advance(self, snapshot: TypeSnapshot) -> None:
        self.offered = snapshot
        if self.refusals:
            now = snapshot.resources
            self._still_refused(lambda refusal, name: version_in(now, name) == refusal.versions[name])
            if not self.refusals and not self.unanswered:
                self.error = None
        self._due = frozenset()
        self._all_due = self._asked = False

    def _still_refused(self, holds: Callable[[Refusal, str], bool]) -> None:
        """Keep of the refusals the names that ``holds`` is true of."""
        left = (replace(one, names=frozenset(n for n in one.names if holds(one, n))) for one in self.refusals)
        self.refusals = tuple(one for one in left if one.names)

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

    def _refused_and_changed(self, snapshot: TypeSnapshot) -> frozenset[str]:
        """Refused names to try again: all that were refused together with one that is different now."""
        names: frozenset[str] = frozenset()
        for refusal in self.refusals:
            if refusal.is_outdated(snapshot.resources):
                names |= self.wanted(refusal.names)
        return names

    def _retry_refused(self) -> None:
        for refusal in self.refusals:
            self._ask(self._wanted(refusal.names))
        self.refusals = ()


def version_in(resources: Mapping[str, Resource], name: str) -> str:
    """The version of a resource; empty when it is not there."""
    found = resources.get(name)
    return "" if found is None else found.version
