"""The one etcd client: reads, guarded writes, watches and leases with clear answers to "was it done?".

Every call has a deadline and every failure is one of the errors in :mod:`understudy.statesync.etcd.errors`. Reads are
repeated on other endpoints inside their deadline, writes only when the first attempt surely changed nothing.
Safe for many tasks on one event loop. Attempts are made in ``transport``; ``leader`` handles times without a leader,
``watch`` watches, and ``lease`` leases.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Self

from understudy.statesync.etcd import etcd_pb2 as rpc
from understudy.statesync.etcd.errors import (
    Compacted,
    CompareFailed,
    EtcdError,
    LeaseNotFound,
    NoSpace,
    OutcomeUnknown,
    Rejected,
    Unavailable,
)
from understudy.statesync.etcd.key_range import KeyRange
from understudy.statesync.etcd.lease import Lease
from understudy.statesync.etcd.model import (
    Compare,
    CreateRevision,
    Delete,
    EndpointStatus,
    Event,
    Get,
    Kv,
    Message,
    ModRevision,
    Operation,
    Put,
    RangePage,
    TxnResult,
    WatchBatch,
    bounds,
    key_bytes,
    kv_of,
    put_request,
    txn_request,
    txn_result,
)
from understudy.statesync.etcd.shared_watch import SharedWatch
from understudy.statesync.etcd.transport import FORMER, EtcdEndpoint, Transport
from understudy.statesync.etcd.watch import Watch
from understudy.statesync.tls.pem_files import PemFiles

__all__ = [
    "Compacted",
    "Compare",
    "CompareFailed",
    "CreateRevision",
    "Delete",
    "EndpointStatus",
    "EtcdClient",
    "EtcdError",
    "Event",
    "Get",
    "Kv",
    "Lease",
    "LeaseNotFound",
    "ModRevision",
    "NoSpace",
    "Operation",
    "OutcomeUnknown",
    "Put",
    "RangePage",
    "Rejected",
    "TxnResult",
    "Unavailable",
    "WatchBatch",
]


class EtcdClient:
    """Client of one etcd cluster; make it inside the event loop that uses it, and close it.

    ``endpoints`` are ``host:port`` (a scheme in front is ignored; ``tls`` decides). ``timeout`` is the
    deadline in seconds of every call that names none. With ``username`` calls carry a token, renewed when
    etcd forgets it. With ``share_watches`` all watches share one stream.

    All methods raise :class:`Unavailable` when the call surely had no effect. Those that write raise
    :class:`OutcomeUnknown` when it may have had one.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout: float = 1.5,
        tls: PemFiles | None = None,
        username: str | None = None,
        password: str | None = None,
        share_watches: bool = False,
    ) -> None:
        self._transport = Transport(endpoints, timeout=timeout, tls=tls, username=username, password=password)
        self._shared = SharedWatch(self._transport) if share_watches else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; watches and calls still under way end with an error."""
        await self._transport.close()

    async def get(self, key: str, *, serializable: bool = False, timeout: float | None = None) -> Kv | None:
        """The key, or ``None``. ``serializable`` lets one member answer alone: quick, perhaps old."""
        request = rpc.RangeRequest(key=key_bytes(key), serializable=serializable)
        answer = await self._read(request, timeout)
        return kv_of(answer.kvs[0]) if answer.kvs else None

    async def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        """Set the key; returns the revision. Raises :class:`LeaseNotFound` when ``lease`` is gone."""
        request = put_request(Put(key, value, lease))
        answer = await self._transport.call("put", request, repeatable=False, timeout=timeout)
        return int(answer.header.revision)

    async def delete(self, key: str | KeyRange, *, timeout: float | None = None) -> int:
        """Delete a key or a range; returns how many there were."""
        start, end = bounds(key)
        request = rpc.DeleteRangeRequest(key=start, range_end=end)
        answer = await self._transport.call("delete", request, repeatable=False, timeout=timeout)
        return int(answer.deleted)

    async def range(
        self,
        key_range: KeyRange,
        *,
        limit: int = 0,
        revision: int = 0,
        min_mod_revision: int = 0,
        keys_only: bool = False,
        serializable: bool = False,
        timeout: float | None = None,
    ) -> RangePage:
        """Keys of a range in order, at ``revision`` (0: now). Raises :class:`Compacted` when that is gone.

        With ``min_mod_revision`` only keys changed since; ``count`` still counts all keys of the range.
        """
        start, end = bounds(key_range)
        request = rpc.RangeRequest(
            key=start,
            range_end=end,
            limit=limit,
            revision=revision,
            min_mod_revision=min_mod_revision,
            keys_only=keys_only,
            serializable=serializable,
        )
        answer = await self._read(request, timeout)
        kvs = tuple(kv_of(kv) for kv in answer.kvs)
        return RangePage(kvs, revision or answer.header.revision, answer.more, answer.count)

    async def pages(
        self, key_range: KeyRange, *, page: int = 500, revision: int = 0, timeout: float | None = None
    ) -> AsyncGenerator[RangePage, None]:
        """The whole range in pages of at most ``page`` keys, all at one revision: that of the first page.

        ``timeout`` is for each page. At least one page comes, if an empty one. Raises :class:`Compacted` when
        the revision goes away meanwhile.
        """
        rest = key_range
        while True:
            part = await self.range(rest, limit=page, revision=revision, timeout=timeout)
            yield part
            if not part.more:
                return
            revision = part.revision
            rest = KeyRange(part.kvs[-1].key + "\x00", key_range.end)

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """If all compares hold do ``success``, else ``failure``, in one step.

        etcd takes at most 128 compares and 128 operations a branch, and changes a key only once. Failed
        compares are an answer (``succeeded`` is false), not an error. Without a put or delete it is a read.
        """
        reads_only = all(isinstance(operation, Get) for operation in (*success, *failure))
        request = txn_request(compares, success, failure)
        return txn_result(await self._transport.call("txn", request, repeatable=reads_only, timeout=timeout))

    def watch(self, ranges: Sequence[KeyRange] | KeyRange, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Every change of the ranges from ``start_revision`` on, once, in order of revision, without end.

        Resumes by itself, on any endpoint, after disconnects and restarts of etcd. While nothing changes, a batch
        without events arrives about every second: the watch is alive. Raises :class:`Compacted` when changes
        since the last batch are gone (read again, and watch from there), and :class:`Rejected` when etcd
        denies the watch. Use ``contextlib.aclosing`` around a loop that may end early.
        """
        several = [ranges] if isinstance(ranges, KeyRange) else list(ranges)
        if self._shared is not None:
            return self._shared.watch(several, start_revision)
        return Watch(self._transport, several, start_revision).batches()

    def lease(self, ttl: int) -> Lease:
        """A lease of ``ttl`` seconds (5 or more), as an async context manager."""
        return Lease(self._transport, ttl)

    async def pause(self, seconds: float) -> None:
        """Wait before another try; shorter if etcd had no leader and has one again."""
        await self._transport.pause(seconds)

    @property
    def no_leader_at(self) -> float:
        """When (monotonic) callers last waited because etcd had no leader; -inf for never.

        etcd was slow then, and not this process: a member of etcd was asked meanwhile, and it answered.
        """
        return self._transport.no_leader_at

    async def compact(self, revision: int) -> None:
        """Drop all history before ``revision``."""
        request = rpc.CompactionRequest(revision=revision, physical=True)
        await self._transport.call("compact", request, repeatable=False)

    async def status(self) -> tuple[EndpointStatus, ...]:
        """What each endpoint reports of itself, in the order given; one that does not answer has only ``errors``."""
        return tuple(await asyncio.gather(*(self._status(endpoint) for endpoint in self._transport.endpoints)))

    async def move_leader(self, leader: EndpointStatus, to: EndpointStatus) -> None:
        """Let the present leader hand over to another member; both are as :meth:`status` has them."""
        endpoint = next(one for one in self._transport.endpoints if one.address == leader.endpoint)
        await self._transport.ask(endpoint, "move leader", rpc.MoveLeaderRequest(targetID=to.member_id))

    def refuse(self, members: Iterable[int]) -> None:
        """From now on the answers of these members of etcd (their ids) count for nothing, and other endpoints are used.

        They are those of an etcd that was given up (``site take-over``). A write that one of them carried out is not
        in the etcd that counts, so it counts as not done.
        """
        self._transport.refused |= set(members)

    async def _read(self, request: Message, timeout: float | None) -> Message:
        # A serializable read is answered by a member without a leader, too, so it does not require one.
        leader = not request.serializable
        return await self._transport.call("range", request, repeatable=True, timeout=timeout, leader=leader)

    async def _status(self, endpoint: EtcdEndpoint) -> EndpointStatus:
        try:
            answer = await self._transport.ask(endpoint, "status", rpc.StatusRequest())
        except EtcdError as error:
            return EndpointStatus(endpoint.address, "", leader=False, db_size=0, errors=(error.detail,))
        if answer.header.member_id in self._transport.refused:
            return EndpointStatus(endpoint.address, "", leader=False, db_size=0, errors=(FORMER,))
        me, errors = answer.header.member_id, tuple(answer.errors)
        return EndpointStatus(
            *(endpoint.address, answer.version, answer.leader == me, answer.dbSize, errors),
            member_id=me,
            raft_index=answer.raftIndex,
            learner=answer.isLearner,
        )
