"""A pool with a real etcd, real control servers and simulated members, as the tests of the controller use it."""

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from tests.harness.etcd import EtcdServer, running_etcd
from tests.harness.programs import Program
from tests.harness.records import PoolRecords, SeenTable
from tests.harness.waiting import free_port, until
from understudy.statesync.etcd.client import EtcdClient, Put
from understudy.statesync.etcd.key_range import KeyRange
from understudy.statesync.pool.records import Member, MemberState, Owner, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Liveness

POOL = "cart"
SLOTS = 32
PATIENT = Liveness(missed_beats=20, unanswered_ms=5000)
"""Nobody is lost because the machine is slow. A killed member is found all the same: its host refuses connections."""
QUICK = Liveness()
"""For tests that stop a member and wait until it is found."""
SPEC = PoolSpec(pool=POOL, slots=SLOTS, liveness=PATIENT)


class SimulatedMember(Program):
    """A member: its process, and its records in etcd, which the test writes for it."""

    def __init__(self, pool: "ControlPool", name: str) -> None:
        self.pool, self.boots = pool, 0
        self.record = Member(name, "", f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
        super().__init__(name, [], pool.home / f"{name}.log", piped=True)

    @property
    def boot(self) -> str:
        return f"boot-{self.boots}"

    async def join(self, state: MemberState = MemberState.READY) -> "SimulatedMember":
        """Start the process and register."""
        await self.begin(state)
        await self.register(state)
        return self

    def record_as(self, state: MemberState) -> Put:
        """The write that registers it."""
        self.record = replace(self.record, boot=self.boot, state=state)
        return Put(self.pool.keys.member(self.name), self.record.encode())

    async def begin(self, state: MemberState) -> None:
        """Start the process."""
        self.boots += 1
        settings = {
            "pool": self.pool.spec.pool,
            "member": self.name,
            "boot": self.boot,
            "peer": int(self.record.peer.rpartition(":")[2]),
            "controls": [control.grpc for control in self.pool.controls.values()],
            "state": state,
        }
        self.command = [sys.executable, "-m", "tests.xds.control.simulated_member", json.dumps(settings)]
        self.start()
        await self.answers("ready")

    async def register(self, state: MemberState) -> None:
        await self.pool.client.txn([], [self.record_as(state)])

    async def vanish(self) -> None:
        """What etcd does when the member's lease expires."""
        await self.pool.delete_record(self.name)

    def is_now(self, state: MemberState, reason: str = "") -> None:
        """From now on its beats tell this state; its record does not."""
        self.say(f"{state} {reason}")

    async def claim(self, *slots: int, table: Table | None = None) -> None:
        """Write itself into owner records, whoever they name; with the ``table`` that asked for it, in its trace.

        In one step: a takeover is measured only if it ends within seconds.
        """
        if not slots:
            return
        owners, puts = await self.pool.owners(), []
        won: Counter[str] = Counter()
        for slot in slots:
            before = owners.get(slot)
            lost = table.lost.get(before.active) if table and before else None
            trace = lost.traceparent if lost else table.traceparent if table else ""
            owner = Owner(self.name, self.boot, before.epoch + 1 if before else 1, cause="test", traceparent=trace)
            puts.append(Put(self.pool.keys.owner(slot), owner.encode()))
            won[trace] += bool(lost)
        await self.pool.client.txn([], puts)
        for trace, count in won.items():
            if count:
                await self.tell({"trace": trace.split("-")[1], "slots": count})

    async def has_answered(self, traceparent: str) -> None:
        """From now on its beats tell that it has answered this request; the first of them is on its way by then."""
        self.say(traceparent)
        await self.answers("told")

    async def tell(self, claim: dict[str, Any]) -> None:
        """From now on its beats tell of this claim, made and served just now; see ``ClaimReport`` for the fields."""
        self.say(json.dumps(claim))
        await self.answers("told")


class Control(Program):
    """A control server."""

    def __init__(self, pool: "ControlPool", name: str) -> None:
        self.grpc, self.http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.settings: dict[str, Any] = {
            "pools": [pool.spec.pool],
            "name": name,
            "etcd": pool.etcd.endpoints,
            "grpc": self.grpc,
            "http": self.http,
        }
        super().__init__(name, [], pool.home / f"{name}.log")

    def start(self, **environment: str) -> None:
        """Start it (again), with its settings as they are now."""
        self.command = self.command_line()
        super().start(**environment)

    def command_line(self) -> list[str]:
        return [sys.executable, "-m", "tests.xds.control.control_process", json.dumps(self.settings)]

    async def ask(self, path: str) -> Any:
        async with aiohttp.ClientSession() as session, session.get(f"http://{self.http}{path}") as answer:
            return await answer.json(content_type=None)

    async def member(self, name: str) -> Any:
        """What it says of a member."""
        members = (await self.ask("/v1/status"))["members"]
        return next((member for member in members if member["member"] == name), None)

    async def ready(self) -> None:
        async def is_ready() -> bool:
            return (await self.ask("/v1/status"))["ready"]

        await until(is_ready, 40, f"{self.name} is ready (log: {self.log})")

    async def leads(self) -> bool:
        return (await self.ask("/v1/status"))["leader"]["is_me"]

    async def hears(self, *members: SimulatedMember) -> None:
        """Return once it has beats of all these members."""

        async def all_heard() -> bool:
            standings = [await self.member(member.name) for member in members]
            return all(one is not None and one["standing"] == "alive" for one in standings)

        await until(all_heard, 40, f"{self.name} hears {[member.name for member in members]}")


class ControlPool(PoolRecords):
    """Control servers, simulated members and the records of their pool."""

    def __init__(self, etcd: EtcdServer, client: EtcdClient, home: Path, spec: PoolSpec = SPEC) -> None:
        super().__init__(client, spec)
        self.etcd, self.home = etcd, home
        self.controls: dict[str, Control] = {}
        self.members: dict[str, SimulatedMember] = {}

    async def control(self, name: str = "control-1", **settings: Any) -> Control:
        control = self.controls[name] = Control(self, name)
        control.settings |= settings
        control.start()
        return control

    def member(self, name: str) -> SimulatedMember:
        member = self.members[name] = SimulatedMember(self, name)
        return member

    async def join(self, *names: str) -> list[SimulatedMember]:
        """Start members and register them at the same moment."""
        members = [self.member(name) for name in names]
        await asyncio.gather(*(member.begin(MemberState.READY) for member in members))
        await self.client.txn([], [member.record_as(MemberState.READY) for member in members])
        return members

    async def tables_until(self, condition: Callable[[Table], Any], *, after: int) -> list[Table]:
        """Every table written after a revision, up to the first that fulfils ``condition``; none is missed."""
        tables: list[Table] = []
        only = KeyRange(self.keys.table, self.keys.table + "\0")
        async with asyncio.timeout(60), contextlib.aclosing(self.client.watch(only, after + 1)) as batches:
            async for batch in batches:
                for event in batch.events:
                    tables.append(Table.decode(event.kv.value))
                    if condition(tables[-1]):
                        return tables
        raise AssertionError("the watch has ended")

    async def claim_all(self, seen: SeenTable) -> None:
        """Every slot is claimed by the member that the table names."""
        for name, member in self.members.items():
            mine = [slot for slot, order in enumerate(seen.table.orders) if order[:1] == (name,)]
            await member.claim(*mine, table=seen.table)

    def close(self) -> None:
        for program in (*self.controls.values(), *self.members.values()):
            program.kill()


@contextlib.asynccontextmanager
async def control_pool(home: Path, spec: PoolSpec = SPEC) -> AsyncIterator[ControlPool]:
    """A pool with etcd and an applied spec, and nobody in it yet."""
    async with running_etcd() as etcd, EtcdClient(etcd.endpoints) as client:
        pool = ControlPool(etcd, client, home, spec)
        try:
            await pool.apply(pool.spec)
            yield pool
        finally:
            pool.close()
