"""The keys of new sessions, and which calls for a new session are repeats of one another.

A repeat gets the session that the first call made, so no other client's call may count as one. Clients choose their
idempotency keys, and two clients may choose the same one. So an idempotency key counts only together with one of these:

* the caller, whom the application names in ``Understudy-Caller``: then the client's own repeats are recognised.
* the request, which the front Envoy names in ``Understudy-Request``: then Envoy's copies of it are recognised.

Without either there are no repeats: every call makes a session of its own.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping

from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.statesync.etcd.client import CreateRevision, EtcdClient, Get, Put
from understudy.statesync.http.headers import CALLER_HEADER
from understudy.statesync.sessions.request_log import REQUEST_HEADER

KEY_BYTES = 18
"""Random bytes in a session key that a sidecar makes."""
MAX_CALLER_LENGTH = 255
OWN_SLOT_TRIES = 4096


def fault_of(headers: Mapping[str, str]) -> str:
    """What is wrong with the caller that a creation names; '' if nothing is."""
    caller = headers.get(CALLER_HEADER)
    if caller is None or 1 <= len(caller) <= MAX_CALLER_LENGTH:
        return ""
    return f"Understudy-Caller takes 1 to {MAX_CALLER_LENGTH} characters"


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


class SessionKeys:
    """Makes the keys of new sessions."""

    def __init__(self, pool: PoolView, owned: OwnedSlots, etcd: EtcdClient) -> None:
        self._pool = pool
        self._owned = owned
        self._etcd = etcd
        self._secret = b""

    async def key_for(self, headers: Mapping[str, str], slot_of: Callable[[str], int]) -> str:
        """The key of the session that a call with these headers makes. Raises ``EtcdError``.

        A call that may have repeats gets a derived key, so that a repeat finds the same session at any member; its slot
        may be another member's. All other keys are drawn, in a slot that this member is active for, or soon will be.
        """
        identity = identity_of(headers)
        return derived_key(await self._pool_secret(), identity) if identity else self._drawn_key(slot_of)

    def _drawn_key(self, slot_of: Callable[[str], int]) -> str:
        own = frozenset(self._owned.open_slots()) or self._assigned_slots()
        for _ in range(OWN_SLOT_TRIES):
            key = secrets.token_urlsafe(KEY_BYTES)
            if not own or slot_of(key) in own:
                return key
        return secrets.token_urlsafe(KEY_BYTES)

    def _assigned_slots(self) -> frozenset[int]:
        """The slots that the table makes this member active for: it serves them in a moment, if it does not yet."""
        table, me = self._pool.view().table, self._pool.identity.me
        return frozenset(slot for slot in range(table.slots) if table.active_of(slot) == me)

    async def _pool_secret(self) -> bytes:
        """The pool's secret; the first member that needs it makes it."""
        if not self._secret:
            key = self._pool.identity.keys.secret
            fresh = secrets.token_hex(32).encode()
            result = await self._etcd.txn([CreateRevision(key, 0)], [Put(key, fresh)], [Get(key)])
            self._secret = fresh if result.succeeded else result.answers[0][0].value
        return self._secret
