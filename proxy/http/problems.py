"""Errors as clients see them: ``application/problem+json`` (RFC 9457) with stable types.

A problem says what happened and what to do. It never contains a stack trace or a session's content.
"""

import json
from collections.abc import Mapping

import msgspec

PROBLEM_TYPE = "application/problem+json"
RESP_TYPE = "application/vnd.understudy.resp"
"""The type of an answer to commands of the Redis port."""
TYPE_PREFIX = "https://understudy.dev/problems/"

TITLES = {
    "bad-key": "The session key cannot be used",
    "bad-request": "The request cannot be understood",
    "no-such-session": "There is no such session",
    "session-unreadable": "The session cannot be read here",
    "precondition-failed": "A precondition does not hold",
    "session-too-large": "The session would be too large",
    "overloaded": "This member is overloaded",
    "too-many-sessions": "The pool is full",
    "too-many-bytes": "The pool is full",
    "too-many-writes": "The pool is written to too fast",
    "unsupported-patch": "This kind of patch is not supported",
    "not-json": "The content is not JSON",
    "session-not-json": "The session's content is not JSON",
    "request-expired": "The request began too long ago",
    "request-refused": "The application refused this request before",
    "idempotency-key-reused": "The idempotency key belongs to another request",
    "unauthorized": "The session API wants a token",
    "admin-header-missing": "This call is for applications and operators",
    "not-a-peer": "Only members and control servers of the pool may ask this",
    "not-owner": "This member does not own the slot",
    "no-owner": "No owner of the slot can be reached",
    "not-committed": "The write was not carried out",
    "outcome-unknown": "Nobody knows yet whether the write was carried out",
    "not-at-home": "The pool is at home on another site",
    "not-ready": "This member is not ready",
    "overwrite": "The value has changed since it was read",
    "not-held": "This member holds no complete copy of the slot",
    "replicated": "The slot replicates between members, and etcd has only its checkpoint",
    "no-such-check": "There is no such check",
    "check-taken": "The check cannot be registered",
    "not-found": "There is nothing here",
    "method-not-allowed": "The method is not allowed here",
    "internal": "The sidecar failed",
}


class Reply(msgspec.Struct, frozen=True, gc=False):
    """An HTTP answer of the session API, by this sidecar or by a peer."""

    status: int
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    body: bytes = b""


def problem(status: int, kind: str, detail: str, *, retry_after: int | None = None, **members: object) -> Reply:
    """A problem answer.

    Args:
        status: HTTP status.
        kind: a key of :data:`TITLES`; the last part of the problem's ``type``.
        detail: what happened here, and what to do.
        retry_after: seconds for the ``Retry-After`` header.
        members: extension members (RFC 9457, section 3.2).
    """
    document = {
        "type": TYPE_PREFIX + kind,
        "title": TITLES[kind],
        "status": status,
        "detail": detail,
        **members,
    }
    headers = {"Content-Type": PROBLEM_TYPE}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return Reply(status, headers, json.dumps(document, separators=(",", ":")).encode())
