"""The errors of calls to etcd, and what they mean for a write.

After a failure a writer needs to know whether the write was carried out. :func:`judge` decides that from the gRPC
status and etcd's text (the texts are etcd's public ``rpctypes`` errors). A write counts as not carried out only when
that is certain. In every other case its outcome is unknown, also after a text that is not known here.
"""

from enum import Enum

import grpc


class EtcdError(Exception):
    """A call to etcd failed: ``call`` names it, ``endpoint`` (may be empty) who was asked, ``detail`` why."""

    def __init__(self, call: str, endpoint: str, detail: str) -> None:
        super().__init__(f"etcd {call} at {endpoint or 'any endpoint'}: {detail}")
        self.call = call
        self.endpoint = endpoint
        self.detail = detail


class Unavailable(EtcdError):
    """Surely not carried out: no endpoint reachable, no leader, overload, or (a read) no answer in time."""


class Rejected(Unavailable):
    """Surely not carried out, and never will be: permission, credentials, an invalid or too large request."""


class LeaseNotFound(Rejected):
    """Surely not carried out: the lease named in the request does not exist any more."""


class OutcomeUnknown(EtcdError):
    """A write that may or may not have been carried out, or may still be: read it back."""


class NoSpace(OutcomeUnknown):
    """The database quota is used up.

    Not an :class:`Unavailable`: etcd checks the quota when a request arrives and again when it is applied,
    and the second check reports a write as out of space *after* having carried it out.
    """


class Compacted(EtcdError):
    """The revision asked for is gone. ``revision`` is the oldest still there, or 0 when etcd did not say.

    Also raised, with 0, by a watch that finds etcd at a lower revision than it has seen: restored or replaced.
    """

    def __init__(self, call: str, endpoint: str, revision: int) -> None:
        oldest = f", the oldest is {revision}" if revision else ""
        super().__init__(call, endpoint, f"revision is compacted{oldest}")
        self.revision = revision


class CompareFailed(EtcdError):
    """The compares of a transaction failed: a key had changed. Nothing of the success branch was done."""


DENIED = "etcdserver: permission denied"
NO_LEADER = "etcdserver: no leader"


class Verdict(Enum):
    """What a failed attempt says about the request."""

    NOT_DONE = "surely not carried out; another endpoint, or the same one later, may do it"
    REFUSED = "surely not carried out; it will be refused again"
    NO_LEASE = "surely not carried out; its lease is gone"
    LOG_IN = "surely not carried out; a new token is needed"
    NO_SPACE = "out of space; perhaps carried out"
    TOO_LARGE = "perhaps carried out; its answer is too large for us"
    COMPACTED = "a read of a revision that is gone"
    UNKNOWN = "perhaps carried out, or still on its way"


_BY_TEXT = {
    NO_LEADER: Verdict.NOT_DONE,
    "etcdserver: not capable": Verdict.NOT_DONE,
    "etcdserver: rpc not supported for learner": Verdict.NOT_DONE,
    "etcdserver: too many requests": Verdict.NOT_DONE,
    "raft proposal dropped": Verdict.NOT_DONE,
    "etcdserver: corrupt cluster": Verdict.REFUSED,
    "etcdserver: requested lease not found": Verdict.NO_LEASE,
    "etcdserver: mvcc: database space exceeded": Verdict.NO_SPACE,
    "etcdserver: mvcc: required revision has been compacted": Verdict.COMPACTED,
    "etcdserver: invalid auth token": Verdict.LOG_IN,
    "etcdserver: user name is empty": Verdict.LOG_IN,
    "etcdserver: revision of auth store is old": Verdict.LOG_IN,
    "auth: revision in header is old": Verdict.LOG_IN,
}

# Texts of gRPC itself: the first two come from the client before anything was sent, the third from etcd's gRPC server
# when it refuses to read a request.
_BY_START = (
    ("failed to connect to all addresses", Verdict.NOT_DONE),
    ("DNS resolution failed", Verdict.NOT_DONE),
    ("grpc: received message larger than max", Verdict.REFUSED),
)
_ANSWER_TOO_LARGE = "CLIENT: Received message larger than max"

# With these codes and a text of its own etcd reports what it checks before it changes anything.
_CHECKED_BEFORE = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)


def judge(code: grpc.StatusCode, detail: str) -> Verdict:
    """What a failed attempt with this gRPC status says about the request."""
    known = _BY_TEXT.get(detail)
    if known is not None:
        return known
    for start, verdict in _BY_START:
        if detail.startswith(start):
            return verdict
    if _ANSWER_TOO_LARGE in detail:
        return Verdict.TOO_LARGE
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Verdict.REFUSED
    if code in _CHECKED_BEFORE and detail.startswith("etcdserver: ") and detail != "etcdserver: not leader":
        return Verdict.REFUSED
    return Verdict.UNKNOWN


def error_of(verdict: Verdict, call: str, endpoint: str, detail: str, *, repeatable: bool) -> EtcdError:
    """The exception for a call given up with this verdict; a ``repeatable`` one is never of unknown outcome."""
    match verdict:
        case Verdict.COMPACTED:
            return Compacted(call, endpoint, 0)
        case Verdict.NO_LEASE:
            return LeaseNotFound(call, endpoint, detail)
        case Verdict.REFUSED | Verdict.LOG_IN:
            return Rejected(call, endpoint, detail)
        case Verdict.NO_SPACE:
            return NoSpace(call, endpoint, detail)
        case Verdict.UNKNOWN | Verdict.TOO_LARGE if not repeatable:
            return OutcomeUnknown(call, endpoint, detail)
        case Verdict.TOO_LARGE:
            return Rejected(call, endpoint, detail)
        case _:
            return Unavailable(call, endpoint, detail)
