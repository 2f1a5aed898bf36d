"""Which calls for a new session are repeats of one another, and the session key that all of them find. Pure.

A repeat gets the session that the first call made, so nobody else's call may pass for one. Clients choose their
idempotency keys, and two clients may choose the same. So the idempotency key alone decides nothing here. It counts
together with one of these:

* the caller, whom the application names in ``Understudy-Caller``. Then the client's own repeats are found as well.
* the request, which the front Envoy names in ``Understudy-Request``. Then Envoy's copies of that one request are found.

Without either there are no repeats: every call makes a session of its own.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping

from understudy.statesync.http.headers import CALLER_HEADER
from understudy.statesync.sessions.request_log import REQUEST_HEADER

KEY_BYTES = 18
"""Random bytes in a session key that a sidecar makes."""
CALLER_LENGTH_MOST = 255


def fault_of(headers: Mapping[str, str]) -> str:
    """What is wrong with the caller that a creation names; '' if nothing is."""
    caller = headers.get(CALLER_HEADER)
    if caller is None or 1 <= len(caller) <= CALLER_LENGTH_MOST:
        return ""
    return f"Understudy-Caller takes 1 to {CALLER_LENGTH_MOST} characters"


def identity_of(headers: Mapping[str, str]) -> tuple[str, str, str] | None:
    """What all repeats of a creation have in common and no other creation has; None if it has no repeats."""
    once = headers.get("idempotency-key")
    if once is None:
        return None
    for kind in (CALLER_HEADER, REQUEST_HEADER):
        if kind in headers:
            return kind, headers[kind], once
    return None


def derived_key(secret: bytes, identity: tuple[str, str, str]) -> str:
    """The session key of a creation; only holders of the pool's ``secret`` can tell it."""
    # No header has a NUL in it, so different identities are different texts.
    text = "\0".join(identity).encode(errors="surrogateescape")
    return base64.urlsafe_b64encode(hmac.digest(secret, text, hashlib.sha256)[:KEY_BYTES]).decode()
