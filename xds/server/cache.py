"""The cache: the resources of every node group, encoded once, and how far every connected node is with them.

Set resources, give the cache to ``understudy.xds.server.ads.AdsServer`` and wait for acknowledgement. Versions are
hashes of content, so caches with equal content answer alike in any process. Invalid content is refused as a whole, and
the last good snapshot stays. Not thread-safe: use it on the event loop of its server. It knows nothing of etcd, pools
or gRPC.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from understudy.xds.server.consistency import new_problems
from understudy.xds.server.events import (
    AckEvent,
    CacheError,
    ConfigRejected,
    InvalidResources,
    NotAcknowledged,
    PushEvent,
    ServerCounters,
    TypeStatus,
)
from understudy.xds.server.references import UnreadableResource
from understudy.xds.server.responses import RequestOutcome
from understudy.xds.server.snapshot import EMPTY, Resource, Snapshot, TypeSnapshot, encode, merge_groups
from understudy.xds.server.stream import StreamState
from understudy.xds.server.wire import Node

__all__ = [
    "AckEvent",
    "CacheError",
    "ConfigRejected",
    "InvalidResources",
    "NotAcknowledged",
    "PushEvent",
    "ResourceCache",
    "ServerCounters",
    "Subscriber",
    "TypeStatus",
]


class Serializable(Protocol):
    """A message that ``bytes()`` turns into its wire form, as betterproto2's do."""

    def __bytes__(self) -> bytes: ...


logger = logging.getLogger(__name__)

_Event = TypeVar("_Event")

Content = bytes | Message | Serializable | Resource
Resources = Mapping[str, Content]


@dataclass(slots=True, eq=False)
class Subscriber:
    """One open stream as the cache knows it. ``wake`` is called when the stream may have something to send."""

    stream_state: StreamState
    group: str
    peer: str
    wake: Callable[[], None]

    @property
    def node(self) -> str:
        """The id of the stream's node, or the stream's own name where the node has none."""
        return self.stream_state.identity


class ResourceCache:
    """Resources by type and name, for all nodes (group ``""``) and for single groups beside or over them.

    Args:
        node_group: the group of a node. A node sees the resources of group ``""`` and those of its own group. If both
            have a name, it sees its own group's.
        on_group: awaited with a group's name when its first node connects, before that node is answered. Set the
            resources of groups here that are not known before.
        known: names that nodes have from elsewhere (static clusters) and that resources may point at.
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
        self.counters = ServerCounters()
        self.refused: dict[str, str] = {}
        self._known = known
        self._own: dict[str, dict[str, TypeSnapshot]] = {"": {}}
        self._snapshots: dict[str, Snapshot] = {"": Snapshot()}
        self._revision = 0
        self._ready = False
        self._clients: dict[Subscriber, None] = {}
        self._of_node: dict[str, list[Subscriber]] = {}
        self._unsettled: dict[Subscriber, None] = {}
        self._refusing: dict[Subscriber, None] = {}
        self._waiters: set[asyncio.Future[None]] = set()

    # Content

    def ready(self) -> None:
        """Declare the content complete: from now on streams are served, and resources that are not set do not exist."""
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
        """Remove a group's own resources; its nodes see those of group ``""``."""
        if group and self._own.pop(group, None) is not None:
            self._snapshots.pop(group, None)
            self._refresh((group,))
        await asyncio.sleep(0)

    def resource_counts(self) -> dict[str, int]:
        """Number of resources by type, of all groups together."""
        counts: dict[str, int] = {}
        for own in self._own.values():
            for kind, one in own.items():
                counts[kind] = counts.get(kind, 0) + len(one.resources)
        return counts

    def snapshot(self, group: str = "") -> Snapshot:
        """The resources that the nodes of a group see now."""
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
            except UnreadableResource as fault:
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
            name: merge_groups(base, own if name == group else self._own.get(name, {}), self.snapshot(name), now_ns)
            for name in affected
        }
        problems: dict[tuple[str, str], str] = {}
        for name, snapshot in merged.items():
            problems |= new_problems(snapshot, self.snapshot(name), known)
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
                client.stream_state.offer(self.snapshot(client.group))
                self._unsettled[client] = None
                client.wake()

    # Clients: used by understudy.xds.server.ads

    async def join(self, client: Subscriber) -> None:
        """A stream has named its node: give it its group's snapshot."""
        first = client.group not in self._own and all(other.group != client.group for other in self._clients)
        self._clients[client] = None
        self._of_node.setdefault(client.node, []).append(client)
        self._unsettled[client] = None
        if first and client.group and self.on_group is not None:
            await self.on_group(client.group)
        client.stream_state.offer(self.snapshot(client.group))

    def leave(self, client: Subscriber) -> None:
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

    def on_request(self, client: Subscriber, type_url: str, outcome: RequestOutcome, now_ns: int) -> None:
        """A client's request was taken in."""
        self._unsettled[client] = None
        for sibling in self._of_node[client.node]:
            if sibling is not client:
                sibling.wake()
        if outcome.sent is None:
            return
        if outcome.error is None:
            self.counters.acks += 1
        else:
            self.counters.nacks += 1
            self._refusing[client] = None
        if self.on_ack is not None:
            sent = outcome.sent
            event = AckEvent(client.node, type_url, sent.version, sent.at_ns, now_ns, outcome.error, sent.versions)
            _tell(self.on_ack, event)

    def siblings(self, stream_state: StreamState) -> tuple[StreamState, ...]:
        """The other open streams of a stream's node."""
        beside = self._of_node.get(stream_state.identity, ())
        return tuple(other.stream_state for other in beside if other.stream_state is not stream_state)

    def on_response_written(self, event: PushEvent) -> None:
        """A response was written."""
        self.counters.pushes += 1
        self.counters.pushed_resources += event.resources
        self.counters.pushed_bytes += event.size
        if self.on_push is not None:
            _tell(self.on_push, event)

    def on_idle(self, client: Subscriber) -> None:
        """There is nothing to send to a client now."""
        if client.stream_state.settled:
            self._unsettled.pop(client, None)
        if self._waiters and (
            not self._unsettled or (client in self._refusing and any(client.stream_state.rejecting()))
        ):
            self._tell_waiters()

    # How far everybody is

    async def acknowledged(self, timeout: float = 10.0) -> None:
        """Wait until every connected node has acknowledged the content as it is now, or newer.

        Removals that still wait do not count. Raises :class:`ConfigRejected` when a node refuses
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
            for one in client.stream_state.rejecting():
                raise ConfigRejected(client.node, one.type_url, one.sent_version, one.error or "")

    def _tell_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def status(self) -> tuple[TypeStatus, ...]:
        """How far every connected node is with every type that it asked for, by node and in the order of sending."""
        return tuple(
            TypeStatus(
                node=client.node,
                group=client.group,
                peer=client.peer,
                type_url=one.type_url,
                sent=one.sent_version,
                acked=one.acked_version,
                state=client.stream_state.status(one),
                error=one.error or "",
                nonce=one.nonce,
                sent_at_ns=one.sent_at_ns,
                acked_at_ns=one.acked_at_ns,
            )
            for client in sorted(self._clients, key=lambda client: client.node)
            for one in client.stream_state.subscriptions
        )


def _tell(hook: Callable[[_Event], None], event: _Event) -> None:
    try:
        hook(event)
    except Exception:
        logger.exception("a hook failed on %s", event)
