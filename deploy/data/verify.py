"""``verify``: compares the copies in the memory of all members with etcd, slot by slot, and repairs them.

Sessions may be written meanwhile. The command asks every member for digests of its copies, and computes the digests of
what etcd has. They are the same for a slot that is at rest. If a digest differs, the command compares the slot session
by session, several times (``understudy.statesync.sessions.digests`` says which differences are proof), and reports only
differences that last. Nothing is written without ``--repair``.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from understudy.deploy.inspect.member_views import View, order_of, slots_of
from understudy.deploy.inspect.members import MemberError, PeerApiClient
from understudy.deploy.inspect.query import read_pool
from understudy.proxy.peers.peer_protocol import STATUS_PATH
from understudy.proxy.peers.sync_api import DIGEST_PATH
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.state import PoolState
from understudy.statesync.replication.history import as_text
from understudy.statesync.replication.sync_set import Process
from understudy.statesync.sessions.digests import (
    NOTHING,
    CopyProgress,
    Difference,
    DigestEntry,
    Findings,
    SlotDigest,
    Snapshot,
    compare,
    digest_of,
    read_set,
    read_slot,
)
from understudy.statesync.sessions.session_crypto import SessionCrypto

SLOTS_AT_ONCE = 32
READS_AT_ONCE = 4
COMPARISONS = 6
COMPARISON_INTERVAL = 0.7
"""Seconds between two comparisons of a copy, which is told what is saved every second or two."""
COMPARISONS_AFTER_REPAIR = 15
"""Copies follow an active that has read its slot again, which takes a moment."""
_ROLES = ("owner", "standby", "backup")


@dataclass(frozen=True, slots=True)
class SlotCopy:
    """The copy of a slot at a member."""

    slot: int
    member: str


@dataclass(frozen=True, slots=True)
class CopyFault:
    """A fault of a copy: the sessions that differ, or in ``why`` the reason why it cannot be compared, or repaired."""

    copy: SlotCopy
    role: str
    why: str = ""
    differences: tuple[Difference, ...] = ()


@dataclass(slots=True)
class VerifyReport:
    """The result of ``verify``. ``unasked`` has the errors of members that did not answer.

    ``one_site``: slots that have had current copies on one site only for more than 30 s, as their actives say.
    """

    pool: str
    slots: int
    copies: int = 0
    sessions: int = 0
    faults: list[CopyFault] = field(default_factory=list)
    repaired: list[SlotCopy] = field(default_factory=list)
    unasked: dict[str, str] = field(default_factory=dict)
    unreadable: dict[int, int] = field(default_factory=dict)
    one_site: list[int] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        """Whether every copy that the table assigns exists and is equal to etcd, and copies are on two sites."""
        return not (self.faults or self.unasked or self.unreadable or self.one_site)

    def view(self, named: int) -> View:
        """The report as JSON data, with at most ``named`` sessions for each copy that differs."""
        return {
            "pool": self.pool,
            "same": self.fine,
            "slots": self.slots,
            "copies": self.copies,
            "sessions": self.sessions,
            "different": [_fault_view(fault, named) for fault in self.faults],
            "repaired": [{"slot": copy.slot, "member": copy.member} for copy in self.repaired],
            "not_asked": self.unasked,
            "one_site": self.one_site,
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
        self.report = VerifyReport(state.keys.pool, slots_of(state))

    async def run(self, slots: Sequence[int], *, repair: bool) -> VerifyReport:
        """Compare the copies of ``slots``. With ``repair``, have those that differ made anew.

        Raises ``EtcdError`` if etcd cannot be read.
        """
        self.report.slots = len(slots)
        suspects: list[SlotCopy] = []
        for start in range(0, len(slots), SLOTS_AT_ONCE):
            part = slots[start : start + SLOTS_AT_ONCE]
            suspects += await self._digests(part)
            self._progress(len(part))
        self.report.faults = await self._lasting(suspects)
        self.report.one_site = await self._on_one_site(frozenset(slots))
        if repair and self.report.faults:
            await self._repair()
        return self.report

    # -- digests --

    async def _digests(self, slots: Sequence[int]) -> list[SlotCopy]:
        """The copies of ``slots`` whose digest differs from that of etcd."""
        held = await self._members_digests(slots)
        gate = asyncio.Semaphore(READS_AT_ONCE)

        async def digest_in_etcd(slot: int) -> SlotDigest:
            async with gate:
                reading = await read_slot(self._client, self._state.keys, slot, codec=self._codec)
            if reading.unreadable:
                self.report.unreadable[slot] = len(reading.unreadable)
            return digest_of(reading.entries)

        truths = dict(zip(slots, await asyncio.gather(*(digest_in_etcd(slot) for slot in slots)), strict=True))
        self.report.sessions += sum(one.count for one in truths.values())
        self.report.copies += len(held)
        return [copy for copy, digest in held.items() if digest != truths[copy.slot]]

    async def _members_digests(self, slots: Sequence[int]) -> dict[SlotCopy, SlotDigest | None]:
        """The digests of the members' copies; None: no copy. Members that do not answer go into the report."""
        wanted: dict[str, list[int]] = defaultdict(list)
        for slot in slots:
            for member in order_of(self._state, slot):
                if member in self._members.addresses:
                    wanted[member].append(slot)
                else:
                    self.report.unasked[member] = "not registered: its sidecar does not run, or cannot reach etcd"
        asked = [member for member in wanted if member not in self.report.unasked]
        answers = await asyncio.gather(*(self._ask_digests(member, wanted[member]) for member in asked))
        return {copy: digest for answer in answers for copy, digest in answer.items()}

    async def _ask_digests(self, member: str, slots: list[int]) -> dict[SlotCopy, SlotDigest | None]:
        try:
            found = (await self._members.post(member, DIGEST_PATH, {"slots": slots}))["slots"]
            return {SlotCopy(slot, member): _digest_in(found[str(slot)]) for slot in slots}
        except MemberError as error:
            self.report.unasked[member] = error.detail
        except (KeyError, TypeError, ValueError) as error:
            self.report.unasked[member] = f"its answer cannot be read: {error!r}"
        return {}

    async def _on_one_site(self, slots: frozenset[int]) -> list[int]:
        """The slots that their actives have seen with copies on one site for too long."""

        async def ask(member: str) -> list[int]:
            try:
                said = (await self._members.get(member, STATUS_PATH))["replication"]
                return [int(slot) for slot in said.get("one_site", {}).get("late", ())]  # 0.1.0 does not say
            except (MemberError, KeyError, TypeError, ValueError, AttributeError):
                return []

        asked = [member for member in self._members.addresses if member not in self.report.unasked]
        found = await asyncio.gather(*map(ask, asked))
        return sorted(slots & {slot for late in found for slot in late})

    # -- session by session --

    async def _lasting(self, suspects: Iterable[SlotCopy], *, repaired: bool = False) -> list[CopyFault]:
        """Compare suspects until each has a fault that is proved, or none, but not too often.

        After a repair they are compared until they have none.
        """
        before: dict[SlotCopy, Findings | str] = {}
        left = list(suspects)
        faults: dict[SlotCopy, CopyFault] = {}
        for number in range(COMPARISONS_AFTER_REPAIR if repaired else COMPARISONS):
            if not left:
                break
            if number:
                await asyncio.sleep(COMPARISON_INTERVAL)
                self._state, _ = await read_pool(self._client, self._state.keys.pool)
            before = {copy: await self._compare(copy, before.get(copy)) for copy in left}
            for copy, found in before.items():
                faults[copy] = self._fault(copy, found)
            left = [
                copy
                for copy, found in before.items()
                if isinstance(found, str) or (found.any if repaired else found.open)
            ]
        placed = {copy for copy in faults if copy.member in order_of(self._state, copy.slot)}
        return [fault for copy, fault in faults.items() if copy in placed and (fault.why or fault.differences)]

    def _fault(self, copy: SlotCopy, now: Findings | str) -> CopyFault:
        order = order_of(self._state, copy.slot)
        role = _ROLES[min(order.index(copy.member), 2)] if copy.member in order else ""
        if isinstance(now, str):
            return CopyFault(copy, role, why=now)
        return CopyFault(copy, role, differences=now.proved)

    async def _compare(self, copy: SlotCopy, before: Findings | str | None) -> Findings | str:
        """Compare one copy session by session. Returns an error text if there is no copy."""
        keys, slot = self._state.keys, copy.slot
        at = self._state.members.get(copy.member)
        known = await read_set(self._client, keys, slot)
        try:
            answer = await self._members.get(copy.member, f"/peer/v1/slots/{slot}/entries")
            entries, progress = _entries_in(answer), _progress_in(answer)
        except MemberError as error:
            return error.detail
        except (KeyError, TypeError, ValueError) as error:
            return f"its answer cannot be read: {error!r}"
        stood = await read_set(self._client, keys, slot)
        in_set = at is not None and known.stood(stood, Process(copy.member, at.record.boot))
        stored = await read_slot(self._client, keys, slot, codec=self._codec)
        return compare(Snapshot(entries, progress, in_set), stored, before if isinstance(before, Findings) else NOTHING)

    # -- repair --

    async def _repair(self) -> None:
        """Have the faulty copies made anew, and compare them again.

        The active of a slot comes first: the other copies of the slot are made from its copy, and follow it anyway.
        """
        faulty = [fault.copy for fault in self.report.faults]
        owners = [fault.copy for fault in self.report.faults if fault.role == _ROLES[0]]
        refused = await self._make_anew(owners)
        begun = {copy.slot for copy in owners if copy not in refused}
        refused |= await self._make_anew([copy for copy in faulty if copy not in owners and copy.slot not in begun])
        left = [
            replace(fault, why=f"not repaired: {refused[fault.copy]}")
            for fault in self.report.faults
            if fault.copy in refused
        ]
        left += await self._lasting((copy for copy in faulty if copy not in refused), repaired=True)
        self.report.faults = left
        still = {fault.copy for fault in left}
        self.report.repaired = [copy for copy in faulty if copy not in still]

    async def _make_anew(self, copies: Sequence[SlotCopy]) -> dict[SlotCopy, str]:
        """Have members make copies anew; returns why some have refused."""
        refused: dict[SlotCopy, str] = {}
        for copy in copies:
            try:
                await self._members.post(copy.member, f"/peer/v1/slots/{copy.slot}/resync", {})
            except MemberError as error:
                refused[copy] = error.detail
        return refused


def _entries_in(answer: View) -> dict[str, DigestEntry]:
    return {key: DigestEntry(int(version), int(digest, 16)) for key, version, digest in answer["entries"]}


def _progress_in(answer: View) -> CopyProgress:
    return CopyProgress(int(answer["shown"]), int(answer["saved"]), int(answer["last"]))


def _digest_in(answer: Mapping[str, object] | None) -> SlotDigest | None:
    return SlotDigest(int(str(answer["count"])), int(str(answer["digest"]), 16)) if answer is not None else None


def addresses_of(state: PoolState) -> dict[str, str]:
    """The addresses of the registered members' peer APIs."""
    return {name: at.record.peer for name, at in state.members.items()}
