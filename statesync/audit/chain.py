"""A chain of audit records: what is appended to it, and whether it is whole. Pure.

Beside its records a chain has two marks. The *end* names the number and the digest of its newest record; the *anchor*
those of the last record that retention removed. So the oldest kept record is checked too, and removed newest records
show.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Self

import msgspec

from understudy.statesync.audit.entry import Act, Actor, Chain, Entry, Sealed, read_struct, seal, unseal
from understudy.statesync.etcd.model import Kv, ModRevision, Put
from understudy.statesync.parsing.stored import brief, compact_json
from understudy.statesync.pool.keys import AuditKeys

NUMBER_MOST = 10**12 - 2
_DIGEST = re.compile("([0-9a-f]{64})?")
FAULTS_MOST = 100
"""The number of faults that :func:`verify` lists for one chain."""


class Mark(msgspec.Struct, frozen=True):
    """A place in a chain: the number of a record and its digest; 0 and '' before the first."""

    number: int = 0
    digest: str = ""

    def encode(self) -> bytes:
        """The mark as compact JSON."""
        return compact_json(self)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Read a mark. Raises ``ValueError`` on anything of which the next record could not be made."""
        mark = read_struct(cls, value)
        if not 0 <= mark.number <= NUMBER_MOST:
            raise ValueError("number: not that of a record")
        if not _DIGEST.fullmatch(mark.digest):
            raise ValueError("digest: not one of SHA-256")
        return mark


class ChainEnd(msgspec.Struct, frozen=True):
    """Where a chain ends, and the etcd revision at which its end was last written (0: there is no mark yet)."""

    mark: Mark
    revision: int


class Addition(msgspec.Struct, frozen=True):
    """One more record of a chain, to be written in the transaction of its act."""

    compare: ModRevision
    puts: tuple[Put, Put]
    mark: Mark

    def end(self, revision: int) -> ChainEnd:
        """The end of the chain after the transaction, which had this ``revision``."""
        return ChainEnd(self.mark, revision)


def addition(
    keys: AuditKeys, chain: Chain, end: ChainEnd, actor: Actor, act: Act, *, before: int, time_ms: int
) -> Addition:
    """The next record of ``chain``, which ends at ``end``. See :class:`Entry` for ``before``."""
    number = end.mark.number + 1
    entry = Entry.of_act(
        act,
        actor,
        pool=keys.subject,
        chain=chain,
        number=number,
        previous=end.mark.digest,
        before=before,
        time_ms=time_ms,
    )
    value, digest = seal(entry)
    mark = Mark(number, digest)
    key = keys.audit_end(chain)
    return Addition(
        ModRevision(key, end.revision), (Put(keys.audit_record(chain, number), value), Put(key, mark.encode())), mark
    )


class ChainReport(msgspec.Struct, frozen=True):
    """Whether a chain is whole: ``faults`` is empty then. ``first`` is the number of its oldest kept record."""

    chain: Chain
    first: int
    newest: Mark
    faults: tuple[str, ...]


def verify(keys: AuditKeys, chain: Chain, stored: Mapping[str, Kv]) -> ChainReport:
    """Check one chain in what etcd has under the audit prefix, all read at one revision."""
    faults: list[str] = []
    anchor = _mark(stored.get(keys.audit_anchor(chain)), "the anchor", faults) or Mark()
    end = _mark(stored.get(keys.audit_end(chain)), "the end mark", faults)
    prefix = keys.audit_records(chain)
    records = [stored[key] for key in sorted(stored) if key.startswith(prefix)]
    newest = anchor
    for fault, at in _walk(keys, chain, anchor, records):
        faults += [fault] if fault else []
        newest = at
    if end is None:
        if keys.audit_end(chain) not in stored and (records or anchor.number):
            faults.append("the end mark is missing")
    elif end.number > newest.number:
        faults.append(f"{_records(newest.number + 1, end.number)} missing at the end")
    elif end.number < newest.number:
        faults.append(f"the end mark names record {end.number}, but there is a record {newest.number}")
    elif newest.digest and end.digest != newest.digest:
        faults.append(f"the end mark has another digest than record {end.number}")
    listed = tuple(faults[:FAULTS_MOST])
    if len(faults) > FAULTS_MOST:
        listed += (f"and {len(faults) - FAULTS_MOST} more",)
    return ChainReport(chain, anchor.number + 1, newest, listed)


def _walk(keys: AuditKeys, chain: Chain, anchor: Mark, records: Sequence[Kv]) -> Iterator[tuple[str, Mark]]:
    """The records in order after ``anchor``: the fault of each ('' for none), and the mark up to it."""
    at: Mark | None = anchor  # None: unknown, since the record before could not be read
    number = anchor.number
    for kv, following in zip_longest(records, records[1:]):
        found = number_in(kv.key, keys.audit_records(chain))
        if found is None or found <= anchor.number:
            yield f"the key {brief(kv.key)} is not one of a record that is kept", Mark(number, at.digest if at else "")
            continue
        if found > number + 1:
            yield f"{_records(number + 1, found - 1)} missing", Mark(number, at.digest if at else "")
            at = None
        fault, sealed = _judged(keys, chain, found, kv, at)
        if not fault and following is not None and kv.create_revision >= following.create_revision:
            fault = "it was written after the record that follows it"
        number = found
        at = Mark(number, sealed.digest) if sealed else None
        yield f"record {number} was altered: {fault}" if fault else "", Mark(number, sealed.digest if sealed else "")


def _judged(keys: AuditKeys, chain: Chain, number: int, kv: Kv, before: Mark | None) -> tuple[str, Sealed | None]:
    """What is wrong with one record, '' if nothing is; and the record, if it can be read."""
    try:
        sealed = unseal(kv.value)
    except ValueError as error:
        return str(error), None
    entry = sealed.entry
    if (entry.pool, entry.chain, entry.number) != (keys.subject, chain, number):
        return f"it is record {entry.number} of {entry.chain} of {brief(entry.pool)}", sealed
    if before is not None and entry.previous != before.digest:
        return "it does not follow the record before it", sealed
    if kv.create_revision != kv.mod_revision:
        return "it was written more than once", sealed
    return "", sealed


def _mark(kv: Kv | None, name: str, faults: list[str]) -> Mark | None:
    if kv is None:
        return None
    try:
        return Mark.decode(kv.value)
    except ValueError as error:
        faults.append(f"{name} cannot be read: {error}")
        return None


def _records(first: int, last: int) -> str:
    return f"record {first} is" if first == last else f"records {first} to {last} are"


def number_in(key: str, prefix: str) -> int | None:
    """The number of the record with this key; None if it is not the key of a record."""
    digits = key.removeprefix(prefix)
    return int(digits) if len(digits) == 12 and digits.isascii() and digits.isdigit() else None
