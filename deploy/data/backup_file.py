"""The file format of ``backup``: JSON lines, which ordinary tools can read and which are checked line by line.

The first line is the header: the pool, the etcd revision, and the numbers of records. Then come the pool spec, the
pool's secret, the id of the key that encrypts sessions (if any), one line per owner record and one per session. Values
are those in etcd, in base64. The last line has the SHA-256 of all bytes before it. A name that ends in ``.gz`` means
gzip.

The file is written under a temporary name and renamed when it is complete and on disk. A restore reads it twice: first
to check every line, then for its content. Sessions are not decoded, so encrypted ones stay encrypted.
"""

import base64
import contextlib
import gzip
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from understudy.deploy.common.errors import DeployError
from understudy.statesync.parsing.stored import brief, made_of, read_object, typed
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_reader import decode_spec

FORMAT = 1
_LINE_MOST = 4_000_000


class BackupError(DeployError):
    """The backup file at ``path`` cannot be written or used. The text says why."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path


class DamagedError(BackupError):
    """The backup file was changed or truncated. The pool was not changed."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(path, f"{detail}; nothing was changed")


@dataclass(frozen=True, slots=True)
class Header:
    """The first line. ``time`` is wall time in seconds; ``version`` is that of the program that wrote the file."""

    understudy_backup: int
    pool: str
    revision: int
    time: float
    version: str
    owners: int
    sessions: int


@dataclass(frozen=True, slots=True)
class OwnerLine:
    """The part of a slot's owner record that a restore needs."""

    slot: int
    active: str
    epoch: int


@dataclass(frozen=True, slots=True)
class SessionLine:
    """A session from etcd; ``revision`` is its ``mod_revision``."""

    slot: int
    key: str
    revision: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """A checked backup without its sessions, which :func:`sessions_in` reads."""

    path: Path
    header: Header
    spec: PoolSpec
    secret: bytes
    encryption: bytes
    owners: tuple[OwnerLine, ...]


@contextlib.contextmanager
def writing(path: Path, header: Header, *, force: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Write a backup. Yields a function that appends a line. There is no file at ``path`` if the block fails.

    Raises :class:`BackupError`, also if ``path`` exists and ``force`` is not set.
    """
    if path.exists() and not force:
        raise BackupError(path, "already exists: choose another name, or replace it with --force")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as raw:
            partial.chmod(0o600)
            with _packed(raw, path) as packed:
                digest = hashlib.sha256()

                def append(line: dict[str, Any]) -> None:
                    encoded = json.dumps(line, separators=(",", ":")).encode() + b"\n"
                    digest.update(encoded)
                    packed.write(encoded)

                append(asdict(header))
                yield append
                packed.write(json.dumps({"sha256": digest.hexdigest()}).encode() + b"\n")
            raw.flush()
            os.fsync(raw.fileno())
        _put_in_place(partial, path, force=force)
    except FileExistsError:
        raise BackupError(path, "was created by another process meanwhile; this backup was not saved") from None
    except OSError as error:
        raise BackupError(path, f"cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _packed(raw: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """``raw``, or a gzip stream into it if the name ends in ``.gz``."""
    if path.suffix != ".gz":
        yield raw
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6) as packed:
        yield packed  # type: ignore[misc]


def _put_in_place(partial: Path, path: Path, *, force: bool) -> None:
    if force:
        partial.replace(path)
    else:
        os.link(partial, path)
    directory = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def encoded(value: bytes) -> str:
    """Bytes as text for a line."""
    return base64.b64encode(value).decode()


def check(path: Path) -> Contents:
    """Read the whole file and check every line, the counts and the digest. Raises :class:`BackupError`."""
    lines = _lines(path)
    first = next(lines, b"")
    reader = _Reader(path, _header(path, first))
    digest = hashlib.sha256(first)
    expected = None
    for number, line in enumerate(lines, start=2):
        content = _object(path, number, line)
        if expected is not None:
            raise DamagedError(path, f"line {number} comes after the digest")
        if "sha256" in content:
            expected = content["sha256"]
        else:
            digest.update(line)
            reader.take(number, content)
    if expected is None:
        raise DamagedError(path, "it is truncated: the last line with the digest is missing")
    if expected != digest.hexdigest():
        raise DamagedError(path, "its content does not match its digest")
    return reader.contents()


def sessions_in(path: Path) -> Iterator[SessionLine]:
    """The sessions of a checked backup, in order of slot and key."""
    for line in _lines(path):
        content = read_object(line)
        if "session" in content:
            yield _session(content["session"])


class _Reader:
    """Reads the lines between header and digest, and checks that they are complete."""

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        self._header = header
        self._spec: PoolSpec | None = None
        self._secret = b""
        self._encryption = b""
        self._owners: list[OwnerLine] = []
        self._sessions = 0

    def take(self, number: int, line: dict[str, Any]) -> None:
        unknown = False
        try:
            match line:
                case {"spec": str(value)}:
                    self._spec = decode_spec(base64.b64decode(value, validate=True))
                case {"secret": str(value)}:
                    self._secret = base64.b64decode(value, validate=True)
                case {"encryption": str(value)}:
                    self._encryption = base64.b64decode(value, validate=True)
                case {"owner": dict(owner)}:
                    self._owners.append(made_of(OwnerLine, owner))
                case {"session": dict(session)}:
                    _session(session)
                    self._sessions += 1
                case _:
                    unknown = True
        except ValueError as error:
            raise DamagedError(self._path, f"line {number} cannot be used: {brief(str(error))}") from None
        if unknown:
            raise DamagedError(self._path, f"line {number} is not a spec, secret, encryption, owner or session")

    def contents(self) -> Contents:
        header = self._header
        if self._spec is None or self._spec.pool != header.pool:
            raise DamagedError(self._path, f"it has no spec of pool {header.pool!r}")
        for what, found, expected in (
            ("owner records", len(self._owners), header.owners),
            ("sessions", self._sessions, header.sessions),
        ):
            if found != expected:
                raise DamagedError(self._path, f"it has {found} {what}, but its header says {expected}")
        if any(not 0 <= owner.slot < self._spec.slots for owner in self._owners):
            raise DamagedError(self._path, "it has an owner record of a slot that is not in its spec")
        return Contents(self._path, header, self._spec, self._secret, self._encryption, tuple(self._owners))


def _session(line: dict[str, Any]) -> SessionLine:
    """Read a session. Raises ``ValueError`` if it is not one."""
    value = base64.b64decode(typed("value", str, line.get("value")), validate=True)
    return made_of(SessionLine, {**line, "value": value})


def _header(path: Path, line: bytes) -> Header:
    if not line:
        raise BackupError(path, "is empty")
    raw = _object(path, 1, line)
    if "understudy_backup" not in raw:
        raise BackupError(path, "is not a file of 'understudy backup'")
    if raw["understudy_backup"] != FORMAT:
        raise BackupError(path, f"has format {raw['understudy_backup']}; this version reads format {FORMAT}")
    try:
        return made_of(Header, raw)
    except ValueError:
        raise DamagedError(path, "its header cannot be read") from None


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        content = read_object(line)
    except ValueError:
        content = None
    if content is None or not line.endswith(b"\n"):
        raise DamagedError(path, f"line {number} is truncated, or is not a JSON object")
    return content


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file. Gzip is recognised by the content, not by the name."""
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            with gzip.open(raw) if packed else raw as reader:
                while line := reader.readline(_LINE_MOST):
                    yield line
    except EOFError:
        raise DamagedError(path, "it is truncated") from None
    except (OSError, zlib.error) as error:
        raise DamagedError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
