"""Keys, events, compares and operations, and their conversion into etcd's messages.

Frozen data and pure functions. Keys are text here and bytes in etcd. A foreign key that is not UTF-8 is kept (surrogate
escapes) instead of breaking a watch.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from understudy.statesync.etcd import etcd_pb2 as rpc
from understudy.statesync.etcd.errors import CompareFailed
from understudy.statesync.etcd.key_range import KeyRange

# etcd's generated messages and stubs come without types.
Message: TypeAlias = Any


class Kv(msgspec.Struct, frozen=True, gc=False):
    """A key with its value; ``lease`` 0: it has none. A deleted key has only its ``mod_revision``."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease: int


class ModRevision(msgspec.Struct, frozen=True, gc=False):
    """Compare: the key's last change was exactly at ``revision`` (0: the key does not exist)."""

    key: str
    revision: int


class CreateRevision(msgspec.Struct, frozen=True, gc=False):
    """Compare: the key was created exactly at ``revision`` (0: the key does not exist)."""

    key: str
    revision: int


class Put(msgspec.Struct, frozen=True, gc=False):
    """Operation: set a key; ``lease`` 0 takes it off any lease."""

    key: str
    value: bytes
    lease: int = 0


class Get(msgspec.Struct, frozen=True, gc=False):
    """Operation: read a key, or the keys of a range, in order: all, or ``limit`` of them; with or without values."""

    key: str | KeyRange
    limit: int = 0
    keys_only: bool = False


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Operation: delete a key, or all keys of a range."""

    key: str | KeyRange


Compare = ModRevision | CreateRevision
Operation = Put | Get | Delete


class TxnResult(msgspec.Struct, frozen=True, gc=False):
    """What a transaction did.

    ``succeeded`` tells which branch ran, ``revision`` is the store's revision after it, and ``answers`` has
    one tuple per operation of that branch: the keys found by a :class:`Get`, empty for the others.
    """

    succeeded: bool
    revision: int
    answers: tuple[tuple[Kv, ...], ...]

    def or_conflict(self, what: str) -> "TxnResult":
        """This result; raises :class:`CompareFailed`, naming ``what`` was tried, when the compares failed."""
        if not self.succeeded:
            raise CompareFailed("txn", "", f"{what}: a compared key has changed")
        return self


class RangePage(msgspec.Struct, frozen=True):
    """Keys in order, as they were at ``revision``; ``more``: the limit left some out; ``count``: how many there are."""

    kvs: tuple[Kv, ...]
    revision: int
    more: bool
    count: int


class Event(msgspec.Struct, frozen=True, gc=False):
    """One change of one key."""

    kind: Literal["put", "delete"]
    kv: Kv


class WatchBatch(msgspec.Struct, frozen=True, gc=False):
    """Events of one or more whole revisions of one watched range, in order; without events, a sign of life.

    With events, ``revision`` is that of the last one, and every earlier event of the same range has been delivered: the
    receiver may note it as applied. Without events, ``revision`` is only the store's revision and must not be noted as
    applied: many versions of etcd report it while older events are still on their way (etcd issue 15220).
    """

    revision: int
    events: tuple[Event, ...]


class EndpointStatus(msgspec.Struct, frozen=True):
    """One endpoint's report of itself; ``db_size`` in bytes; ``errors``: its alarms, or why it does not answer.

    ``member_id`` is 0 if it does not answer. ``raft_index`` is the newest entry of its log. A ``learner`` has no vote.
    """

    endpoint: str
    version: str
    leader: bool
    db_size: int
    errors: tuple[str, ...]
    member_id: int = 0
    raft_index: int = 0
    learner: bool = False

    @property
    def at_risk(self) -> str:
        """Why this version must not be used in production, '' if it may be.

        etcd 3.5.0 to 3.5.2: the notice of March 2022 to all users, "v3.5.[0-2] ... not recommended for production".
        """
        if self.version not in ("3.5.0", "3.5.1", "3.5.2"):
            return ""
        return (
            f"etcd {self.version} at {self.endpoint} can lose consistency when it is killed under load: "
            "fine for development; in production use 3.5.3 or newer, or 3.4"
        )


def key_bytes(key: str) -> bytes:
    """A key as etcd stores it."""
    return key.encode("utf-8", "surrogateescape")


def bounds(where: str | KeyRange) -> tuple[bytes, bytes]:
    """``key`` and ``range_end`` of a request for one key (empty end) or a range."""
    if isinstance(where, str):
        return key_bytes(where), b""
    return key_bytes(where.start), key_bytes(where.end)


def kv_of(message: Message) -> Kv:
    """An etcd ``KeyValue`` message as :class:`Kv`."""
    key = message.key.decode("utf-8", "surrogateescape")
    return Kv(key, message.value, message.mod_revision, message.create_revision, message.lease)


def event_of(message: Message) -> Event:
    """An etcd ``Event`` message as :class:`Event`."""
    return Event("delete" if message.type else "put", kv_of(message.kv))


def put_request(put: Put) -> Message:
    """The ``PutRequest`` message."""
    return rpc.PutRequest(key=key_bytes(put.key), value=put.value, lease=put.lease)


def _compare_message(compare: Compare) -> Message:
    message = rpc.Compare(key=key_bytes(compare.key), result=rpc.Compare.EQUAL)
    if isinstance(compare, ModRevision):
        message.target = rpc.Compare.MOD
        message.mod_revision = compare.revision
    else:
        message.target = rpc.Compare.CREATE
        message.create_revision = compare.revision
    return message


def _operation_message(operation: Operation) -> Message:
    if isinstance(operation, Put):
        return rpc.RequestOp(request_put=put_request(operation))
    key, end = bounds(operation.key)
    if isinstance(operation, Get):
        wanted = rpc.RangeRequest(key=key, range_end=end, limit=operation.limit, keys_only=operation.keys_only)
        return rpc.RequestOp(request_range=wanted)
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=end))


def txn_request(compares: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation]) -> Message:
    """The ``TxnRequest`` message."""
    request = rpc.TxnRequest(compare=[_compare_message(compare) for compare in compares])
    for branch, operations in ((request.success, success), (request.failure, failure)):
        for operation in operations:
            if isinstance(operation, Put):
                # Filled in place: a group commit has a hundred of them, and copying one would double its cost.
                put = branch.add().request_put
                put.key, put.value, put.lease = key_bytes(operation.key), operation.value, operation.lease
            else:
                branch.append(_operation_message(operation))
    return request


def txn_result(message: Message) -> TxnResult:
    """A ``TxnResponse`` message as :class:`TxnResult`."""
    answers = tuple(
        tuple(map(kv_of, answer.response_range.kvs)) if answer.HasField("response_range") else ()
        for answer in message.responses
    )
    return TxnResult(message.succeeded, message.header.revision, answers)
