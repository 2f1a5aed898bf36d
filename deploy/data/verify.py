"""``verify``: whether owners, standbys and backups hold in memory, slot by slot, what etcd holds; and mends it.

Writes go on meanwhile, so nothing is called different lightly. First every member digests its copies at the revision
of a probe, a key that is written for this and that every copy must have applied; etcd is read at that revision. Where
the digests are not the same, the slot is looked at session by session, several times over
(``understudy.statesync.sessions.digests`` tells which differences prove something), and only what lasts is reported.
The probe hangs on a lease, and so leaves nothing.
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
from understudy.statesync.sessions.digests import Difference, Entry, Findings, SlotDigest, compare, digest_of, read_slot
from understudy.statesync.sessions.session_crypto import SessionCrypto

SLOTS_AT_ONCE = 32
READS_AT_ONCE = 4
LOOKS = 4
PAUSE = 0.4
_PROBE_TTL = 10
_ROLES = ("owner", "standby", "backup")


@dataclass(frozen=True, slots=True)
class Place:
    """One copy of a slot: who holds it."""

    slot: int
    member: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a copy: the sessions that differ, or (``why``) that there is no copy to compare."""

    place: Place
    role: str
    why: str = ""
    differences: tuple[Difference, ...] = ()


@dataclass(slots=True)
class Report:
    """What ``verify`` found. ``unasked`` are members that could not be asked, and why."""

    pool: str
    slots: int
    copies: int = 0
    sessions: int = 0
    troubles: list[Trouble] = field(default_factory=list)
    repaired: list[Place] = field(default_factory=list)
    unasked: dict[str, str] = field(default_factory=dict)
    unreadable: dict[int, int] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether every copy that the table asks for is there and is what etcd holds."""
        return not (self.troubles or self.unasked or self.unreadable)

    def view(self, named: int) -> View:
        """The report as JSON data, with at most ``named`` sessions of each copy that differs."""
        return {
            "pool": self.pool,
            "same": self.fine,
            "slots": self.slots,
            "copies": self.copies,
            "sessions": self.sessions,
            "different": [_trouble_view(trouble, named) for trouble in self.troubles],
            "repaired": [{"slot": place.slot, "member": place.member} for place in self.repaired],
            "not_asked": self.unasked,
            "unreadable": [{"slot": slot, "values": count} for slot, count in sorted(self.unreadable.items())],
        }


def _trouble_view(trouble: Trouble, named: int) -> View:
    return {
        "slot": trouble.place.slot,
        "member": trouble.place.member,
        "role": trouble.role,
        "reason": trouble.why,
        "count": len(trouble.differences),
        "sessions": [
            {"key": one.key, "fault": str(one.fault), "held_revision": one.held, "etcd_revision": one.in_etcd}
            for one in trouble.differences[:named]
        ],
    }


class Verifier:
    """Compares a pool's copies. ``progress`` hears how many more slots have been compared."""

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
        self.report = Report(state.keys.pool, slots_of(state))

    async def run(self, slots: Sequence[int], *, repair: bool) -> Report:
        """Compare the copies of ``slots`` and, with ``repair``, have those made anew that differ.

        Raises ``EtcdError`` when etcd cannot be read, or denies the probe.
        """
        self.report.slots = len(slots)
        async with self._probing():
            suspects: list[Place] = []
            for start in range(0, len(slots), SLOTS_AT_ONCE):
                part = slots[start : start + SLOTS_AT_ONCE]
                suspects += await self._digests(part)
                self._progress(len(part))
            self.report.troubles = await self._lasting(suspects)
            if repair and self.report.troubles:
                await self._repair()
        return self.report

    @contextlib.asynccontextmanager
    async def _probing(self) -> AsyncIterator[None]:
        async with self._client.lease(_PROBE_TTL) as lease:
            self._lease = lease.id
            yield

    async def _new_revision(self) -> int:
        """A revision that every sidecar of the pool will see, and so can say whether it has applied it."""
        return await self._client.put(self._probe, b"", lease=self._lease)

    # -- digests --

    async def _digests(self, slots: Sequence[int]) -> list[Place]:
        """The copies of ``slots`` whose digest is not that of etcd."""
        revision = await self._new_revision()
        held = await self._members_digests(slots, revision)
        gate = asyncio.Semaphore(READS_AT_ONCE)

        async def truth(slot: int) -> SlotDigest:
            async with gate:
                reading = await read_slot(self._client, self._state.keys, slot, revision=revision, codec=self._codec)
            if reading.unreadable:
                self.report.unreadable[slot] = len(reading.unreadable)
            return digest_of(reading.entries, revision)

        truths = dict(zip(slots, await asyncio.gather(*(truth(slot) for slot in slots)), strict=True))
        self.report.sessions += sum(one.count for one in truths.values())
        self.report.copies += len(held)
        return [place for place, digest in held.items() if digest != truths[place.slot]]

    async def _members_digests(self, slots: Sequence[int], revision: int) -> dict[Place, SlotDigest | None]:
        """What the members say of their copies; None: they have none. Those that cannot be asked are noted."""
        wanted: dict[str, list[int]] = defaultdict(list)
        for slot in slots:
            for member in order_of(self._state, slot):
                if member in self._members.addresses:
                    wanted[member].append(slot)
                else:
                    self.report.unasked[member] = "not registered: its sidecar does not run, or cannot reach etcd"
        asked = [member for member in wanted if member not in self.report.unasked]
        answers = await asyncio.gather(*(self._ask_digests(member, wanted[member], revision) for member in asked))
        return {place: digest for answer in answers for place, digest in answer.items()}

    async def _ask_digests(self, member: str, slots: list[int], revision: int) -> dict[Place, SlotDigest | None]:
        try:
            answer = await self._members.post(member, DIGEST_PATH, {"slots": slots, "revision": revision})
            found = answer["slots"]
            return {Place(slot, member): _digest_in(found[str(slot)]) for slot in slots}
        except MemberError as error:
            self.report.unasked[member] = error.detail
        except (KeyError, TypeError, ValueError) as error:
            self.report.unasked[member] = f"its answer cannot be understood: {error!r}"
        return {}

    # -- session by session --

    async def _lasting(self, suspects: Iterable[Place]) -> list[Trouble]:
        """Look at suspects again and again; those that differ in the same way at the end are in trouble."""
        before: dict[Place, Findings | str] = {}
        left = list(suspects)
        lasting: list[Trouble] = []
        for look in range(LOOKS):
            if not left:
                break
            if look:
                await asyncio.sleep(PAUSE)
                self._state, _ = await read_pool(self._client, self._state.keys.pool)
            left = [place for place in left if place.member in order_of(self._state, place.slot)]
            now = {place: await self._look_at(place) for place in left}
            lasting = [self._trouble(place, now[place], before.get(place)) for place in left]
            left = [place for place, found in now.items() if isinstance(found, str) or found.all]
            before = now
        return [trouble for trouble in lasting if trouble.why or trouble.differences]

    def _trouble(self, place: Place, now: Findings | str, before: Findings | str | None) -> Trouble:
        """What of ``now`` is proved, given what the look before it had found."""
        role = _ROLES[min(order_of(self._state, place.slot).index(place.member), 2)]
        if isinstance(now, str):
            return Trouble(place, role, why=now)
        # An entry that etcd lacked in the look before must be gone by now, where that revision is applied.
        still = before.open if isinstance(before, Findings) else ()
        proved = set(now.proved) | (set(now.open) & set(still))
        return Trouble(place, role, differences=tuple(sorted(proved)))

    async def _look_at(self, place: Place) -> Findings | str:
        """Compare one copy session by session; a text if there is no copy."""
        revision = await self._new_revision()
        try:
            answer = await self._members.get(place.member, f"/peer/v1/slots/{place.slot}/entries", revision=revision)
            held = {key: Entry(written, int(digest, 16)) for key, written, digest in answer["entries"]}
            applied = int(answer["applied"])
        except MemberError as error:
            return error.detail
        except (KeyError, TypeError, ValueError) as error:
            return f"its answer cannot be understood: {error!r}"
        return compare(held, applied, await read_slot(self._client, self._state.keys, place.slot, codec=self._codec))

    # -- repair --

    async def _repair(self) -> None:
        """Have the copies in trouble made anew, and look at them once more."""
        places = [trouble.place for trouble in self.report.troubles]
        for place in places:
            # A member that says no is in trouble still, and the look below says why.
            with contextlib.suppress(MemberError):
                await self._members.post(place.member, f"/peer/v1/slots/{place.slot}/resync", {})
        self.report.troubles = await self._lasting(places)
        still = {trouble.place for trouble in self.report.troubles}
        self.report.repaired = [place for place in places if place not in still]


def _digest_in(answer: Mapping[str, object] | None) -> SlotDigest | None:
    return SlotDigest(int(str(answer["count"])), int(str(answer["digest"]), 16)) if answer is not None else None


def addresses_of(state: PoolState) -> dict[str, str]:
    """Where the registered members' peer APIs are."""
    return {name: at.record.peer for name, at in state.members.items()}
