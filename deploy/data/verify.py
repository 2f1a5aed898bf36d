"""``verify``: compares the copies in the memory of all members with etcd, slot by slot, and repairs them.

Sessions may be written meanwhile. So the command writes a probe key, and every member computes digests of its copies at
the revision of the probe. The command computes the digests of the sessions in etcd at the same revision. If a digest
differs, it compares the slot session by session, several times (``understudy.statesync.sessions.digests`` says which
differences are proof), and reports only differences that last. The probe key has a lease, so it disappears.

A slot that replicates between members is not compared: its copies may be ahead of etcd, which has a checkpoint of it.
"""

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from understudy.deploy.inspect.member_views import View, order_of, slots_of
from understudy.deploy.inspect.members import MemberError, PeerApiClient
from understudy.deploy.inspect.query import read_pool
from understudy.proxy.peers.sync_api import DIGEST_PATH
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.state import PoolState
from understudy.statesync.replication.history import as_text
from understudy.statesync.sessions.digests import (
    Difference,
    DigestEntry,
    Findings,
    SlotDigest,
    compare,
    digest_of,
    read_slot,
)
from understudy.statesync.sessions.session_crypto import SessionCrypto

SLOTS_AT_ONCE = 32
READS_AT_ONCE = 4
COMPARISONS = 4
COMPARISON_INTERVAL = 0.4
_PROBE_TTL = 10
_ROLES = ("owner", "standby", "backup")


@dataclass(frozen=True, slots=True)
class SlotCopy:
    """The copy of a slot at a member."""

    slot: int
    member: str


@dataclass(frozen=True, slots=True)
class CopyFault:
    """A fault of a copy: the sessions that differ, or in ``why`` the reason why it cannot be compared."""

    copy: SlotCopy
    role: str
    why: str = ""
    differences: tuple[Difference, ...] = ()


@dataclass(slots=True)
class VerifyReport:
    """The result of ``verify``. ``unasked`` has the errors of members that did not answer.

    ``replicated`` are the slots with copies that were not compared, because they replicate between members.
    """

    pool: str
    slots: int
    copies: int = 0
    sessions: int = 0
    faults: list[CopyFault] = field(default_factory=list)
    repaired: list[SlotCopy] = field(default_factory=list)
    unasked: dict[str, str] = field(default_factory=dict)
    unreadable: dict[int, int] = field(default_factory=dict)
    replicated: set[int] = field(default_factory=set)

    @property
    def fine(self) -> bool:
        """Whether every copy that the table assigns, and that is compared, exists and is equal to etcd."""
        return not (self.faults or self.unasked or self.unreadable)

    def view(self, named: int) -> View:
        """The report as JSON data, with at most ``named`` sessions for each copy that differs."""
        return {
            "pool": self.pool,
            "same": self.fine,
            "slots": self.slots,
            "copies": self.copies,
            "sessions": self.sessions,
            "replicated": len(self.replicated),
            "different": [_fault_view(fault, named) for fault in self.faults],
            "repaired": [{"slot": copy.slot, "member": copy.member} for copy in self.repaired],
            "not_asked": self.unasked,
            "unreadable": [{"slot": slot, "values": count} for slot, count in sorted(self.unreadable.items())],
        }


def _fault_view(fault: CopyFault, named: int) -> View:
    return {
        "slot": fault.copy.slot,
        "member": fault.copy.member,
        "role": fault.role,
        "reason": fault.why,
        "count": len(fault.differences),
        "sessions": [
            {
                "key": one.key,
                "fault": str(one.fault),
                "held_version": _shown(one.held),
                "etcd_version": _shown(one.in_etcd),
            }
            for one in fault.differences[:named]
        ],
    }


def _shown(version: int) -> str | None:
    return as_text(version) if version else None


class Verifier:
    """Compares the copies of a pool. ``progress`` is called with the number of slots that were compared."""

    def __init__(
        self,
        client: EtcdClient,
        state: PoolState,
        members: PeerApiClient,
        *,
        codec: SessionCrypto,
        progress: Callable[[int], None],
    ) -> None:
        self._client = client
        self._state = state
        self._members = members
        self._codec = codec
        self._progress = progress
        self._probe = state.keys.probe(f"verify-{secrets.token_hex(4)}")
        self._lease = 0
        self.report = VerifyReport(state.keys.pool, slots_of(state))

    async def run(self, slots: Sequence[int], *, repair: bool) -> VerifyReport:
        """Compare the copies of ``slots``. With ``repair``, rebuild those that differ.

        Raises ``EtcdError`` if etcd cannot be read, or refuses the probe key.
        """
        self.report.slots = len(slots)
        async with self._probing():
            suspects: list[SlotCopy] = []
            for start in range(0, len(slots), SLOTS_AT_ONCE):
                part = slots[start : start + SLOTS_AT_ONCE]
                suspects += await self._digests(part)
                self._progress(len(part))
            self.report.faults = await self._lasting(suspects)
            if repair and self.report.faults:
                await self._repair()
        return self.report

    @contextlib.asynccontextmanager
    async def _probing(self) -> AsyncIterator[None]:
        async with self._client.lease(_PROBE_TTL) as lease:
            self._lease = lease.id
            yield

    async def _new_revision(self) -> int:
        """A new revision, which every sidecar of the pool will apply."""
        return await self._client.put(self._probe, b"", lease=self._lease)

    # -- digests --

    async def _digests(self, slots: Sequence[int]) -> list[SlotCopy]:
        """The copies of ``slots`` whose digest differs from that of etcd."""
        revision = await self._new_revision()
        held = await self._members_digests(slots, revision)
        gate = asyncio.Semaphore(READS_AT_ONCE)

        async def digest_in_etcd(slot: int) -> SlotDigest:
            async with gate:
                reading = await read_slot(self._client, self._state.keys, slot, revision=revision, codec=self._codec)
            if reading.unreadable:
                self.report.unreadable[slot] = len(reading.unreadable)
            return digest_of(reading.entries, revision)

        truths = dict(zip(slots, await asyncio.gather(*(digest_in_etcd(slot) for slot in slots)), strict=True))
        self.report.sessions += sum(one.count for one in truths.values())
        self.report.copies += len(held)
        return [copy for copy, digest in held.items() if digest != truths[copy.slot]]

    async def _members_digests(self, slots: Sequence[int], revision: int) -> dict[SlotCopy, SlotDigest | None]:
        """The digests of the members' copies; None: no copy. Members that do not answer go into the report."""
        wanted: dict[str, list[int]] = defaultdict(list)
        for slot in slots:
            for member in order_of(self._state, slot):
                if member in self._members.addresses:
                    wanted[member].append(slot)
                else:
                    self.report.unasked[member] = "not registered: its sidecar does not run, or cannot reach etcd"
        asked = [member for member in wanted if member not in self.report.unasked]
        answers = await asyncio.gather(*(self._ask_digests(member, wanted[member], revision) for member in asked))
        return {copy: digest for answer in answers for copy, digest in answer.items()}

    async def _ask_digests(self, member: str, slots: list[int], revision: int) -> dict[SlotCopy, SlotDigest | None]:
        try:
            answer = await self._members.post(member, DIGEST_PATH, {"slots": slots, "revision": revision})
            found = answer["slots"]
            left_out = frozenset(answer.get("replicated", ())).intersection(slots)
            compared = [slot for slot in slots if slot not in left_out]
            digests = {SlotCopy(slot, member): _digest_in(found[str(slot)]) for slot in compared}
        except MemberError as error:
            self.report.unasked[member] = error.detail
        except (KeyError, TypeError, ValueError) as error:
            self.report.unasked[member] = f"its answer cannot be read: {error!r}"
        else:
            self.report.replicated |= left_out
            return digests
        return {}

    # -- session by session --

    async def _lasting(self, suspects: Iterable[SlotCopy]) -> list[CopyFault]:
        """Compare suspects several times. Those that differ in the same way at the end are faulty."""
        before: dict[SlotCopy, Findings | str] = {}
        left = list(suspects)
        lasting: list[CopyFault] = []
        for number in range(COMPARISONS):
            if not left:
                break
            if number:
                await asyncio.sleep(COMPARISON_INTERVAL)
                self._state, _ = await read_pool(self._client, self._state.keys.pool)
            left = [copy for copy in left if copy.member in order_of(self._state, copy.slot)]
            now = {copy: await self._compare(copy) for copy in left}
            lasting = [self._fault(copy, now[copy], before.get(copy)) for copy in left]
            left = [copy for copy, found in now.items() if isinstance(found, str) or found.all]
            before = now
        return [fault for fault in lasting if fault.why or fault.differences]

    def _fault(self, copy: SlotCopy, now: Findings | str, before: Findings | str | None) -> CopyFault:
        """The proved differences of ``now``, given those of the comparison before."""
        role = _ROLES[min(order_of(self._state, copy.slot).index(copy.member), 2)]
        if isinstance(now, str):
            return CopyFault(copy, role, why=now)
        # If etcd lacked an entry in the comparison before, the member must have removed it by now.
        still = before.open if isinstance(before, Findings) else ()
        proved = set(now.proved) | (set(now.open) & set(still))
        return CopyFault(copy, role, differences=tuple(sorted(proved)))

    async def _compare(self, copy: SlotCopy) -> Findings | str:
        """Compare one copy session by session. Returns an error text if there is no copy."""
        revision = await self._new_revision()
        try:
            answer = await self._members.get(copy.member, f"/peer/v1/slots/{copy.slot}/entries", revision=revision)
            held = _entries_in(answer)
            applied = int(answer["applied"])
        except MemberError as error:
            return error.detail
        except (KeyError, TypeError, ValueError) as error:
            return f"its answer cannot be read: {error!r}"
        return compare(held, applied, await read_slot(self._client, self._state.keys, copy.slot, codec=self._codec))

    # -- repair --

    async def _repair(self) -> None:
        """Rebuild the faulty copies, and compare them again."""
        faulty = [fault.copy for fault in self.report.faults]
        for copy in faulty:
            # If a member refuses, the comparison below reports its copy again.
            with contextlib.suppress(MemberError):
                await self._members.post(copy.member, f"/peer/v1/slots/{copy.slot}/resync", {})
        self.report.faults = await self._lasting(faulty)
        still = {fault.copy for fault in self.report.faults}
        self.report.repaired = [copy for copy in faulty if copy not in still]


def _entries_in(answer: View) -> dict[str, DigestEntry]:
    """The entries of a member. One of a release without versions names none: there the version is the revision."""
    entries = answer["entries"]
    versions = answer.get("versions") or [written for _, written, _ in entries]
    return {
        key: DigestEntry(written, int(digest, 16), int(version))
        for (key, written, digest), version in zip(entries, versions, strict=True)
    }


def _digest_in(answer: Mapping[str, object] | None) -> SlotDigest | None:
    return SlotDigest(int(str(answer["count"])), int(str(answer["digest"]), 16)) if answer is not None else None


def addresses_of(state: PoolState) -> dict[str, str]:
    """The addresses of the registered members' peer APIs."""
    return {name: at.record.peer for name, at in state.members.items()}
