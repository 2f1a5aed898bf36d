"""The cache: what every node group is to see, encoded once, and how far every connected node is with it.

Usable by anyone who wants a Python xDS server: set resources, give the cache to
``understudy.xds.server.ads.AdsServer``, wait for acknowledgement. Versions are hashes of content, so caches with equal
content answer alike in any process. What does not hold together is refused as a whole, and the last good snapshot
stays. Single-threaded: to be used from the event loop that its server runs on. Knows nothing of etcd, of pools or of
gRPC.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from understudy.xds.server import types
from understudy.xds.server.events import (
    AckEvent,
    CacheError,
    ConfigRejected,
    Counters,
    InvalidResources,
    NotAcknowledged,
    PushEvent,
    TypeStatus,
)
from understudy.xds.server.references import Unreadable
from understudy.xds.server.snapshot import EMPTY, Resource, Snapshot, TypeSnapshot, dangling, encode
from understudy.xds.server.stream import Conversation
from understudy.xds.server.subscription import Facts
from understudy.xds.server.wire import Node

__all__ = [
    "AckEvent",
    "CacheError",
    "Client",
    "ConfigRejected",
    "Counters",
    "InvalidResources",
    "NotAcknowledged",
    "PushEvent",
    "ResourceCache",
    "TypeStatus",
]


class Serialisable(Protocol):
    """A message that ``bytes()`` turns into its wire form, as betterproto2's do."""

    def __bytes__(self) -> bytes: ...


log = logging.getLogger(__name__)

_Event = TypeVar("_Event")

Content = bytes | Message | Serialisable | Resource
Resources = Mapping[str, Content]


@dataclass(slots=True, eq=False)
class Client:
    """One open stream as the cache knows it. ``wake`` is called when the stream may have something to send."""

    conversation: Conversation
    group: str
    peer: str
    wake: Callable[[], None]

    @property
    def node(self) -> str:
        """The id of the stream's node, or the stream's own name where the node has none."""
        return self.conversation.identity


class ResourceCache:
    """Resources by type and name, for all nodes (group ``""``) and for single groups beside or over them.

    Args:
        node_group: which group a node belongs to. A node sees the resources of group ``""`` and those of its own
            group; of two with one name its group's.
        on_group: awaited with a group's name when its first node connects, before that node is answered; the place
            to set the resources of groups that cannot be known beforehand.
        known: names that nodes have from elsewhere (static clusters), which resources may point at.
        on_push: called for every response that was written.
        on_ack: called for every ACK and NACK.
    """

    def __init__(
        self,
        node_group: Callable[[Node], str] = lambda _: "",
        *,
        on_group: Callable[[str], Awaitable[None]] | None = None,
        known: frozenset[str] = frozenset(),
        on_push: Callable[[PushEvent], None] | None = None,
        on_ack: Callable[[AckEvent], None] | None = None,
    ) -> None:
        self.node_group = node_group
        self.on_group = on_group
        self.on_push = on_push
        self.on_ack = on_ack
        self.counters = Counters()
        self.refused: dict[str, str] = {}
        self._known = known
        self._own: dict[str, dict[str, TypeSnapshot]] = {"": {}}
        self._snapshots: dict[str, Snapshot] = {"": Snapshot()}
        self._revision = 0
        self._ready = False
        self._clients: dict[Client, None] = {}
        self._of_node: dict[str, list[Client]] = {}
        self._unsettled: dict[Client, None] = {}
        self._refusing: dict[Client, None] = {}
        self._waiters: set[asyncio.Future[None]] = set()

    # Content

    def ready(self) -> None:
        """Declare the content complete: from now on streams are served, and what is not set does not exist."""
        self._ready = True

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`ready` was called."""
        return self._ready

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that have resources of their own or a connected node."""
        return tuple(dict.fromkeys((*self._own, *(client.group for client in self._clients))))

    async def set(self, type_url: str, resources: Resources, group: str = "", *, ttl: float | None = None) -> str:
        """Replace all resources of one type in a group; returns the type's version as the group sees it.

        A value is a message, its bytes, or a :class:`Resource` that was encoded before. With ``ttl`` (seconds)
        clients that support it drop the resources that long after they last heard from this server; they are
        renewed at half of it. Raises :class:`InvalidResources`, and then nothing has changed.
        """
        encoded = self._encode(type_url, resources, group, ttl)
        self._apply(group, {**self._own.get(group, {}), type_url: TypeSnapshot(encoded)})
        return await self._give_way(type_url, group)

    async def update(self, type_url: str, resources: Resources, group: str = "", *, ttl: float | None = None) -> str:
        """Add or replace some resources of a type and leave its others; otherwise like :meth:`set`."""
        own = self._own.get(group, {})
        encoded = self._encode(type_url, resources, group, ttl)
        merged = {**own.get(type_url, EMPTY).resources, **encoded}
        self._apply(group, {**own, type_url: TypeSnapshot(merged)})
        return await self._give_way(type_url, group)

    async def remove(self, type_url: str, *names: str, group: str = "") -> str:
        """Remove resources by name; names that are not there are ignored. Otherwise like :meth:`set`."""
        own = self._own.get(group, {})
        left = {name: one for name, one in own.get(type_url, EMPTY).resources.items() if name not in names}
        self._apply(group, {**own, type_url: TypeSnapshot(left)})
        return await self._give_way(type_url, group)

    async def set_all(
        self,
        resources: Mapping[str, Resources],
        group: str = "",
        *,
        revision: int = 0,
        known: frozenset[str] | None = None,
    ) -> bool:
        """Swap everything that a group has, type by type, for one consistent snapshot.

        Types that are not named become empty. With ``revision`` (an etcd revision) an older snapshot than the last
        one applied is left aside, and False is returned. ``known``, if given, replaces the names that nodes have from
        elsewhere. Raises :class:`InvalidResources` when a resource is not valid or points at one that is not there;
        then nothing has changed.
        """
        if revision and revision < self._revision:
            return False
        encoded = {kind: TypeSnapshot(self._encode(kind, named, group)) for kind, named in resources.items()}
        emptied = {kind: EMPTY for kind in self._own.get(group, {}) if kind not in encoded}
        self._apply(group, {**emptied, **encoded}, known)
        self._revision = max(revision, self._revision)
        await asyncio.sleep(0)
        return True

    async def drop_group(self, group: str) -> None:
        """Forget what a group has of its own; its nodes see what all see."""
        if group and self._own.pop(group, None) is not None:
            self._snapshots.pop(group, None)
            self._refresh((group,))
        await asyncio.sleep(0)

    def resource_counts(self) -> dict[str, int]:
        """How many resources there are by type; those of groups are counted beside those of all."""
        counts: dict[str, int] = {}
        for own in self._own.values():
            for kind, one in own.items():
                counts[kind] = counts.get(kind, 0) + len(one.resources)
        return counts

    def snapshot(self, group: str = "") -> Snapshot:
        """What the nodes of a group see now."""
        return self._snapshots.get(group, self._snapshots[""])

    async def _give_way(self, type_url: str, group: str) -> str:
        version = self.snapshot(group).of(type_url).version
        await asyncio.sleep(0)
        return version

    def _encode(self, type_url: str, resources: Resources, group: str, ttl: float | None = None) -> dict[str, Resource]:
        before = self._own.get(group, {}).get(type_url, EMPTY).resources
        encoded: dict[str, Resource] = {}
        problems: dict[tuple[str, str], str] = {}
        for name, content in resources.items():
            try:
                encoded[name] = self._one(type_url, name, content, before.get(name), ttl)
            except Unreadable as fault:
                problems[type_url, name] = str(fault)
        if problems:
            self._refuse(group, problems)
        return encoded

    def _one(self, type_url: str, name: str, content: Content, before: Resource | None, ttl: float | None) -> Resource:
        if isinstance(content, Resource):
            return content
        if isinstance(content, bytes):
            value = content
        else:
            self.counters.encodings += 1
            value = content.SerializeToString(deterministic=True) if isinstance(content, Message) else bytes(content)
        if before is not None and before.ttl == ttl and before.value_equals(value):
            return before
        self.counters.encoded[type_url] = self.counters.encoded.get(type_url, 0) + 1
        return encode(type_url, name, value, ttl)

    def _refuse(self, group: str, problems: Mapping[tuple[str, str], str]) -> None:
        error = InvalidResources(problems)
        self.refused[group] = str(error)
        self.counters.refused_snapshots += 1
        raise error

    def _apply(self, group: str, own: dict[str, TypeSnapshot], known: frozenset[str] | None = None) -> None:
        known = self._known if known is None else known
        before = self._own.get(group, {})
        own = {
            kind: before[kind] if kind in before and not one.since(before[kind]) else one for kind, one in own.items()
        }
        affected = (group,) if group else tuple(self._own)
        now_ns = time.monotonic_ns()
        base = own if not group else self._own[""]
        merged = {
            name: _merge(base, own if name == group else self._own.get(name, {}), self.snapshot(name), now_ns)
            for name in affected
        }
        problems: dict[tuple[str, str], str] = {}
        for name, snapshot in merged.items():
            problems |= _new_problems(snapshot, self.snapshot(name), known)
        if problems:
            self._refuse(group, problems)
        self.refused.pop(group, None)
        self._known = known
        self._own[group] = own
        self._snapshots.update(merged)
        self._refresh(None if not group else (group,))

    def _refresh(self, groups: tuple[str, ...] | None) -> None:
        for client in self._clients:
            if groups is None or client.group in groups:
                client.conversation.offer(self.snapshot(client.group))
                self._unsettled[client] = None
                client.wake()

    # Clients: used by understudy.xds.server.ads

    async def join(self, client: Client) -> None:
        """A stream has told its node: let it see its group's snapshot."""
        first = client.group not in self._own and all(other.group != client.group for other in self._clients)
        self._clients[client] = None
        self._of_node.setdefault(client.node, []).append(client)
        self._unsettled[client] = None
        if first and client.group and self.on_group is not None:
            await self.on_group(client.group)
        client.conversation.offer(self.snapshot(client.group))

    def leave(self, client: Client) -> None:
        """A stream has ended."""
        self._clients.pop(client, None)
        beside = self._of_node.get(client.node, [])
        if client in beside:
            beside.remove(client)
            if not beside:
                del self._of_node[client.node]
        self._unsettled.pop(client, None)
        self._refusing.pop(client, None)
        self._tell_waiters()

    def heard(self, client: Client, type_url: str, facts: Facts, now_ns: int) -> None:
        """A client's request was taken in."""
        self._unsettled[client] = None
        for sibling in self._of_node[client.node]:
            if sibling is not client:
                sibling.wake()
        if facts.sent is None:
            return
        if facts.error is None:
            self.counters.acks += 1
        else:
            self.counters.nacks += 1
            self._refusing[client] = None
        if self.on_ack is not None:
            sent = facts.sent
            _tell(self.on_ack, AckEvent(client.node, type_url, sent.version, sent.at_ns, now_ns, facts.error))

    def siblings(self, conversation: Conversation) -> tuple[Conversation, ...]:
        """The other open streams of a stream's node."""
        beside = self._of_node.get(conversation.identity, ())
        return tuple(other.conversation for other in beside if other.conversation is not conversation)

    def pushed(self, event: PushEvent) -> None:
        """A response was written."""
        self.counters.pushes += 1
        self.counters.pushed_resources += event.resources
        self.counters.pushed_bytes += event.size
        if self.on_push is not None:
            _tell(self.on_push, event)

    def rested(self, client: Client) -> None:
        """A client has nothing to be sent now."""
        if client.conversation.settled:
            self._unsettled.pop(client, None)
        if self._waiters and (
            not self._unsettled or (client in self._refusing and any(client.conversation.rejections()))
        ):
            self._tell_waiters()

    # How far everybody is

    async def acknowledged(self, timeout: float = 10.0) -> None:
        """Wait until every connected node has acknowledged the content as it is now, or newer.

        Removals that still wait for their time don't count. Raises :class:`ConfigRejected` when a node refuses
        something, :class:`NotAcknowledged` (a ``TimeoutError``) after ``timeout`` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._acknowledged()
        except TimeoutError:
            nodes = tuple(sorted({client.node for client in self._unsettled}))
            raise NotAcknowledged(nodes, timeout) from None

    async def _acknowledged(self) -> None:
        while True:
            self._raise_rejection()
            if not self._unsettled:
                return
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def _raise_rejection(self) -> None:
        for client in self._refusing:
            for one in client.conversation.rejections():
                raise ConfigRejected(client.node, one.type_url, one.sent_version, one.error or "")

    def _tell_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def status(self) -> tuple[TypeStatus, ...]:
        """How every connected node stands with every type that it asked for, by node and in the order of sending."""
        return tuple(
            TypeStatus(
                node=client.node,
                group=client.group,
                peer=client.peer,
                type_url=one.type_url,
                sent=one.sent_version,
                acked=one.acked_version,
                state=client.conversation.standing(one),
                error=one.error or "",
                nonce=one.nonce,
                sent_at_ns=one.sent_at_ns,
                acked_at_ns=one.acked_at_ns,
            )
            for client in sorted(self._clients, key=lambda client: client.node)
            for one in client.conversation.subscriptions
        )


def _tell(hook: Callable[[_Event], None], event: _Event) -> None:
    try:
        hook(event)
    except Exception:
        log.exception("a hook failed on %s", event)


def _merge(
    base: Mapping[str, TypeSnapshot], own: Mapping[str, TypeSnapshot], before: Snapshot, now_ns: int
) -> Snapshot:
    """What a group sees: ``base`` under ``own``. Types that did not change stay the same object, and so stay shared."""
    seen: dict[str, TypeSnapshot] = {}
    for kind in {**base, **own}:
        under, over = base.get(kind, EMPTY), own.get(kind, EMPTY)
        if over is under or not over.resources:
            seen[kind] = under
        elif not under.resources:
            seen[kind] = over
        else:
            both = TypeSnapshot({**under.resources, **over.resources})
            seen[kind] = before.of(kind) if not both.since(before.of(kind)) else both
    return Snapshot(seen, now_ns)


def _new_problems(snapshot: Snapshot, before: Snapshot, known: frozenset[str]) -> dict[tuple[str, str], str]:
    """What leads nowhere in a snapshot and did not before. Endpoints point at nothing, so they need no look."""
    kinds = snapshot.types.keys() | before.types.keys()
    if all(kind == types.ENDPOINTS or snapshot.of(kind) is before.of(kind) for kind in kinds):
        gone = snapshot.of(types.ENDPOINTS).since(before.of(types.ENDPOINTS)).removed
        if not gone:
            return {}
    found = dangling(snapshot, known)
    if not found:
        return {}
    old = dangling(Snapshot({kind: before.of(kind) for kind in snapshot.types}), known)
    return {where: why for where, why in found.items() if where not in old}
