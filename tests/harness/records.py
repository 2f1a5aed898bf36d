"""The records of a pool in etcd, as tests read and write them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.harness.waiting import until
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Leaving, Lost, Member, Owner, Table
from understudy.statesync.pool.spec import PoolSpec


@dataclass(frozen=True)
class SeenTable:
    """A slot table, and the revision at which it was written."""

    revision: int
    table: Table


@dataclass(frozen=True)
class SeenSyncSet:
    """The record of a slot's sync set, read by its layout in etcd. A process is a member and its boot."""

    epoch: int
    members: frozenset[tuple[str, str]]
    memory: bool
    former: frozenset[tuple[str, str]]
    losses: int

    @classmethod
    def read(cls, value: bytes) -> "SeenSyncSet":
        """Read a record as it is stored."""
        raw = json.loads(value)
        members, former = (frozenset((name, boot) for name, boot in raw.get(key, ())) for key in ("members", "former"))
        return cls(raw["epoch"], members, raw.get("memory", False), former, raw.get("losses", 0))

    @property
    def names(self) -> set[str]:
        """The members without their boots."""
        return {name for name, _ in self.members}


class PoolRecords:
    """What etcd has of the pool of ``spec``. The pools of the harness are this, and run processes besides."""

    def __init__(self, client: EtcdClient, spec: PoolSpec) -> None:
        self.client = client
        self.spec = spec
        self.keys = PoolKeys(spec.pool)
        self._generation = 0

    async def apply(self, spec: PoolSpec) -> None:
        """Write a spec."""
        self.spec = spec
        await self.client.put(self.keys.spec, spec.encode())

    async def record(self, name: str) -> Member | None:
        """The record of a member."""
        kv = await self.client.get(self.keys.member(name))
        return Member.decode(kv.value) if kv else None

    async def write_record(self, record: Member) -> None:
        """Register a member."""
        await self.client.put(self.keys.member(record.member), record.encode())

    async def delete_record(self, name: str) -> None:
        """What etcd does when a member's lease expires."""
        await self.client.delete(self.keys.member(name))

    async def owner(self, slot: int) -> Owner | None:
        """The owner record of a slot."""
        kv = await self.client.get(self.keys.owner(slot))
        return Owner.decode(kv.value) if kv else None

    async def owners(self) -> dict[int, Owner]:
        """All owner records."""
        page = await self.client.range(prefix_range(self.keys.owners))
        return {int(kv.key[-5:]): Owner.decode(kv.value) for kv in page.kvs}

    async def sync_sets(self) -> dict[int, SeenSyncSet]:
        """The records of all sync sets, also of those that belong to an earlier epoch of their slot."""
        page = await self.client.range(prefix_range(self.keys.sync_sets))
        return {int(kv.key[-5:]): SeenSyncSet.read(kv.value) for kv in page.kvs}

    async def valid_sync_sets(self) -> dict[int, SeenSyncSet]:
        """Those that belong to the epoch of their slot's owner record."""
        epochs = {slot: owner.epoch for slot, owner in (await self.owners()).items()}
        return {slot: one for slot, one in (await self.sync_sets()).items() if one.epoch == epochs.get(slot)}

    async def protected(self, copies: int) -> bool:
        """Whether every slot has so many processes in its sync set."""
        sets = await self.valid_sync_sets()
        return len(sets) == self.spec.slots and all(len(one.members) >= copies for one in sets.values())

    async def losses(self) -> dict[int, int]:
        """How many losses the sync set of each slot counts."""
        return {slot: one.losses for slot, one in (await self.sync_sets()).items()}

    async def stored_body(self, key: str) -> bytes | None:
        """What etcd has of a session, past its header line; None if it has nothing, or that the session was deleted."""
        kv = await self.client.get(self.keys.session(self.spec.slot_of_key(key), key))
        if kv is None:
            return None
        head, _, body = kv.value.partition(b"\n")
        return None if json.loads(head).get("deleted") else body

    async def owns_nothing(self, name: str) -> bool:
        """Whether a member is active for no slot."""
        return all(owner.active != name for owner in (await self.owners()).values())

    async def table(self) -> SeenTable | None:
        """The slot table."""
        kv = await self.client.get(self.keys.table)
        return SeenTable(kv.mod_revision, Table.decode(kv.value)) if kv else None

    async def table_with(self, condition: Any, what: str, timeout: float = 120) -> SeenTable:
        """Wait until there is a table that fulfils ``condition``."""

        async def found() -> SeenTable | None:
            seen = await self.table()
            return seen if seen is not None and condition(seen.table) else None

        return await until(found, timeout, what)

    async def write_table(
        self,
        orders: Sequence[Sequence[str]],
        lost: Mapping[str, str | Lost] | None = None,
        leaving: Mapping[str, Leaving] | None = None,
    ) -> Table:
        """Write a table; ``orders`` is repeated over all slots, ``lost`` maps dead members to their boot or record."""
        self._generation += 1
        slots = tuple(tuple(orders[slot % len(orders)]) for slot in range(self.spec.slots))
        dead = {name: _lost(one) for name, one in (lost or {}).items()}
        table = Table(self._generation, slots, dead, leaving=leaving or {})
        await self.client.put(self.keys.table, table.encode())
        return table

    async def await_owners(self, orders: Sequence[Sequence[str]]) -> None:
        """Wait until every slot is owned, stably, by the first of its order."""
        await until(lambda: self._owned_as(orders), timeout=120, what=f"slots are owned as in {orders}")

    async def _owned_as(self, orders: Sequence[Sequence[str]]) -> bool:
        owners = await self.owners()
        return len(owners) == self.spec.slots and all(
            owner.active == orders[slot % len(orders)][0] and owner.phase == "stable" for slot, owner in owners.items()
        )

    async def settle(self, *orders: Sequence[str]) -> None:
        """Write a table of these orders and wait until it is so.

        A handover that was taken back makes the owner record newer than the table, and members do nothing more about
        it. Then the table is written again, as a leader does.
        """
        await self.write_table(orders)

        async def settled() -> bool:
            if await self._owned_as(orders):
                return True
            table = await self.table()
            page = await self.client.range(prefix_range(self.keys.owners))
            for kv in page.kvs:
                owner, wanted = Owner.decode(kv.value), orders[int(kv.key[-5:]) % len(orders)][0]
                newer = table is None or kv.mod_revision > table.revision
                if newer and owner.phase == "stable" and owner.active != wanted:
                    await self.write_table(orders)
                    break
            return False

        await until(settled, timeout=120, what=f"slots are owned as in {orders}")


def _lost(one: str | Lost) -> Lost:
    return one if isinstance(one, Lost) else Lost(one, "said by the test", "", 0.0)
