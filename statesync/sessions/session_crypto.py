"""The form of sessions in etcd: in plain text, or sealed with AES-256-GCM.

A sealed session is a JSON header line (key id, epoch, index, expiry) and then nonce and ciphertext of everything else:
content type, body, and the answers to idempotent writes. The header and the session's etcd key are authenticated along
with it, so a value cannot be moved to another session or get another expiry. Each session has an encryption key of its
own, derived from the file's key and its etcd key, so random nonces are good for 2**32 writes of one session (NIST SP
800-38D, section 8.3) rather than of the pool. A value that cannot be opened is an error, never an empty session.

Encryption does not protect against somebody who can write to etcd and deletes a session, or restores an older or an
unsealed value of it. Unsealed sessions are read, so that encryption can be switched on in a running pool.
"""

import base64
import hmac
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from understudy.statesync.etcd.client import EtcdClient, Get, Kv, ModRevision, Put
from understudy.statesync.parsing.stored import brief, read_object, typed
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_header import version_in
from understudy.statesync.tls.secret_files import fault_of, read_secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

logger = logging.getLogger(__name__)

KEY_BYTES = 32
NONCE_BYTES = 12
PLAIN_LINE = "plain"
_KEY_ID = re.compile(r"[0-9a-f]{12}")
_SEALED = b'{"sealed":"'
_ID_CONTEXT = b"understudy key id"
_SESSION_CONTEXT = b"understudy session\n"


class BadKeyFile(Exception):
    """A key file that cannot be used; the text names the file and the fault, in one line."""


class UnreadableSession(ValueError):
    """A stored session that cannot be opened here; the text says why, without the content."""


class KeyMissing(UnreadableSession):
    """A session was sealed with a key that this process does not have; ``key_id`` names the key."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"it is encrypted with key {key_id}, which this process does not have")
        self.key_id = key_id


class SessionCrypto(Protocol):
    """Turns sessions into values of etcd and back; ``key`` is the full etcd key."""

    def encode(self, key: str, session: Session) -> bytes:
        """The value to store."""

    def decode(self, key: str, value: bytes, revision: int) -> Session:
        """The session in a value as of ``revision``. Raises :class:`UnreadableSession`, whatever the value is."""


def _session(value: bytes, revision: int) -> Session:
    try:
        return Session.decode(value, revision)
    except ValueError as error:
        raise _no_session(error) from None


def _no_session(error: ValueError) -> UnreadableSession:
    """The fault of a value, without the value, which the error's own text may contain."""
    return UnreadableSession(f"its value in etcd is no session ({type(error).__name__})")


class PlainSessions:
    """Sessions in plain text."""

    def encode(self, key: str, session: Session) -> bytes:  # noqa: ARG002 - the protocol's signature
        """See :class:`SessionCrypto`."""
        return session.encode()

    def decode(self, key: str, value: bytes, revision: int) -> Session:  # noqa: ARG002 - the protocol's signature
        """See :class:`SessionCrypto`."""
        if value.startswith(_SEALED):
            raise KeyMissing(_key_id_of(_header_of(value)))
        return _session(value, revision)


PLAIN = PlainSessions()


@dataclass(frozen=True, slots=True)
class EncryptionKey:
    """One key of a key file; ``id`` is derived from the key, so a wrong key has another id."""

    id: str
    secret: bytes

    @classmethod
    def of(cls, secret: bytes) -> "EncryptionKey":
        """The key of these 32 bytes."""
        return cls(hmac.digest(secret, _ID_CONTEXT, "sha256")[:6].hex(), secret)

    def cipher(self, key: str) -> "AESGCM":
        """The cipher of one session."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(hmac.digest(self.secret, _SESSION_CONTEXT + key.encode("utf-8", "surrogateescape"), "sha256"))

    def __repr__(self) -> str:
        return f"EncryptionKey({self.id})"


class SealedSessions:
    """Sessions sealed with the first of ``keys``; the others open what was sealed with them before.

    With ``plain`` sessions are only opened and never sealed, for the time before and after encryption.
    """

    def __init__(self, keys: tuple[EncryptionKey, ...], *, plain: bool = False) -> None:
        self.first = keys[0]
        self.plain = plain
        self.keys = {key.id: key for key in keys}

    def encode(self, key: str, session: Session) -> bytes:
        """See :class:`SessionCrypto`."""
        if self.plain:
            return session.encode()
        header: dict[str, Any] = {"sealed": self.first.id, "epoch": session.epoch, "expires": session.expires}
        if session.index:
            header["index"] = session.index
        if session.deleted:
            header["deleted"] = True
        head = json.dumps(header, separators=(",", ":")).encode()
        nonce = os.urandom(NONCE_BYTES)
        sealed = self.first.cipher(key).encrypt(nonce, session.encode(), _associated(key, head))
        return head + b"\n" + nonce + sealed

    def decode(self, key: str, value: bytes, revision: int) -> Session:
        """See :class:`SessionCrypto`. Sessions from before encryption was switched on are read as they are."""
        if not value.startswith(_SEALED):
            return _session(value, revision)
        from cryptography.exceptions import InvalidTag

        head, _, rest = value.partition(b"\n")
        key_id = _key_id_of(_header_of(value))
        if key_id not in self.keys:
            raise KeyMissing(key_id)
        nonce, sealed = rest[:NONCE_BYTES], rest[NONCE_BYTES:]
        try:
            opened = self.keys[key_id].cipher(key).decrypt(nonce, sealed, _associated(key, head))
        except (InvalidTag, ValueError):
            raise UnreadableSession("it was changed in etcd after it was encrypted") from None
        return _session(opened, revision)


def load_session_crypto(path: Path | None) -> SessionCrypto:
    """The codec of a key file; without one sessions are stored as they are. Raises :class:`BadKeyFile`.

    The file has one key a line: 32 random bytes in base64. The first one encrypts, unless the line ``plain`` stands
    before it; ``#`` starts a comment.
    """
    if path is None:
        return PLAIN
    try:
        import cryptography  # noqa: F401 - only whether it is there
    except ImportError:
        raise BadKeyFile("encryption needs the package 'cryptography': pip install 'understudy[encryption]'") from None
    try:
        lines = [line.partition("#")[0].strip() for line in read_secret(path).decode().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        fault = fault_of(error) if isinstance(error, OSError) else f"{path}: cannot be read: it is no text"
        raise BadKeyFile(fault) from None
    given = [(number, line) for number, line in enumerate(lines, start=1) if line]
    plain = bool(given) and given[0][1] == PLAIN_LINE
    keys = tuple(_session_key(path, number, line) for number, line in given[plain:])
    if not keys:
        raise BadKeyFile(f"{path}: holds no key; make one with 'openssl rand -base64 32'")
    return SealedSessions(keys, plain=plain)


def _session_key(path: Path, number: int, line: str) -> EncryptionKey:
    try:
        secret = base64.b64decode(line, validate=True)
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise BadKeyFile(f"{path}, line {number}: a key is 32 bytes in base64, like 'openssl rand -base64 32' makes")
    return EncryptionKey.of(secret)


async def agree(client: EtcdClient, keys: PoolKeys, codec: SessionCrypto) -> str:
    """Check that this process can open what other members of the pool seal; returns the fault, '' for none.

    The first sidecar with a key writes the key's id into etcd. A sidecar with another first key that also has the old
    key replaces the id: this is a rotation. Raises ``EtcdError``.
    """
    mine = codec if isinstance(codec, SealedSessions) else None
    while True:
        kv = await client.get(keys.encryption)
        in_use = _key_id_in(kv) if kv else ""
        if in_use and mine is None:
            return f"the sessions of pool {keys.pool} are encrypted (key {in_use}): give --session-keys"
        if mine is None:
            return ""
        if in_use and in_use not in mine.keys:
            ids = ", ".join(mine.keys)
            return f"the sessions of pool {keys.pool} are encrypted with key {in_use}; --session-keys has {ids} only"
        if mine.plain or in_use == mine.first.id:
            return ""
        compare = ModRevision(keys.encryption, kv.mod_revision if kv else 0)
        result = await client.txn([compare], [Put(keys.encryption, mine.first.id.encode())], [Get(keys.encryption)])
        if result.succeeded:
            return ""


def _key_id_in(kv: Kv) -> str:
    """The id of a key in etcd; '' for a value that is not an id."""
    key_id = kv.value.decode("ascii", "replace")
    if _KEY_ID.fullmatch(key_id):
        return key_id
    logger.error("the value at %s is not the id of a key; it is ignored", brief(kv.key))
    return ""


def outline(value: bytes, revision: int) -> Session:
    """What can be read of a stored session without a key; the body of a sealed one is its ciphertext.

    Raises :class:`UnreadableSession` if the value is not a session.
    """
    if not value.startswith(_SEALED):
        return _session(value, revision)
    header = _header_of(value)
    try:
        epoch = typed("epoch", int, header.get("epoch"))
        return Session(
            content_type=f"encrypted (key {_key_id_of(header)})",
            body=value.partition(b"\n")[2][NONCE_BYTES:],
            expires=typed("expires", int, header.get("expires")),
            epoch=epoch,
            revision=revision,
            deleted=typed("deleted", bool, header.get("deleted", False)),
            version=version_in(header, epoch, revision),
        )
    except ValueError as error:
        raise _no_session(error) from None


def _header_of(value: bytes) -> dict[str, Any]:
    """The readable part of a sealed value. Raises :class:`UnreadableSession`."""
    try:
        return read_object(value.partition(b"\n")[0])
    except ValueError as error:
        raise _no_session(error) from None


def _key_id_of(header: dict[str, Any]) -> str:
    """The id of the key that a value was sealed with. Raises :class:`UnreadableSession`."""
    key_id = header.get("sealed")
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        raise UnreadableSession("its value in etcd is no session: it names no key")
    return key_id


def _associated(key: str, head: bytes) -> bytes:
    return key.encode("utf-8", "surrogateescape") + b"\n" + head
