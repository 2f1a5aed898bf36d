"""A TCP pool under load: clients that reconnect when their connection breaks, and what they find then."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness.forkserver import forked
from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.waiting import until
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec_parts import Liveness, Objectives
from understudy.statesync.pool.spec_reader import load_spec
from understudy.statesync.pool.state import PoolState

ROOT = Path(__file__).parents[2]
_SHIPPED = load_spec(ROOT / "deploy/examples/tcp.yaml")
SPEC = _SHIPPED.model_copy(
    update={
        "slots": 64,
        "objectives": Objectives.model_validate({"rto": {"p99": "30s"}, "failed_requests": "1%"}),
        # A sidecar that stands still for a moment is to be no fault: all others' connections live.
        "liveness": Liveness(missed_beats=30),
    }
)
CLIENTS = 40
REST = 0.4
"""Seconds between two notes of a client."""
CALM = 1.2
"""The same where others' clients are judged: these ones only have their connections, and some notes to lose."""


@dataclass
class Conversation:
    """A client's connection, line by line. Raises ``EOFError`` when the service has closed it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hear(self) -> str:
        async with asyncio.timeout(15):
            said = await self.reader.readline()
        if not said:
            raise EOFError
        return said.decode().strip()

    async def say(self, line: str) -> str:
        """The first line of the answer."""
        self.writer.write(f"{line}\n".encode())
        return await self.hear()


@dataclass(eq=False)
class Client:
    """Writes notes one after the other, each until it is acknowledged; ``members`` served its connections in turn."""

    source: str
    front: str
    rest: float = REST
    acknowledged: list[str] = field(default_factory=list)
    members: list[str] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                async with self.connected() as service:
                    self.members.append((await service.say("WHO")).split()[1])
                    await self.write(service)
            await asyncio.sleep(self.rest)

    async def write(self, service: Conversation) -> None:
        while True:
            name = f"{len(self.acknowledged)}"
            if (await service.say(f"ADD {name} of {self.source}")).startswith("OK "):
                self.acknowledged.append(name)
            await asyncio.sleep(self.rest)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Conversation]:
        host, port = self.front.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=(self.source, 0))
        try:
            yield Conversation(reader, writer)
        finally:
            writer.close()

    async def served_by(self) -> str:
        """Who takes a connection of this client now."""
        async with self.connected() as service:
            return (await service.say("WHO")).split()[1]

    async def notes(self) -> list[str]:
        """The ids of the notes that the service has, asked on a connection of its own."""
        async with self.connected() as service:
            count = int((await service.say("LIST")).split()[1])
            return [(await service.hear()).split()[0] for _ in range(count)]


@dataclass
class Scene:
    """A pool and its clients."""

    pool: LocalPool
    etcd: EtcdClient
    clients: list[Client]

    async def state(self) -> PoolState:
        return (await read_pool(self.etcd, SPEC.pool))[0]

    async def settled(self) -> None:
        await settled(self.pool.layout, self.etcd)

    async def routed(self) -> bool:
        """Whether the front leads every client to the owner of its slot: it hears of owners a moment after etcd."""
        owners = (await self.state()).owners
        wanted = [owners[slot_of(client.source, SPEC.slots)].record.active for client in self.clients]
        return [await client.served_by() for client in self.clients] == wanted

    async def progress(self, notes: int = 3) -> None:
        """Wait until every client has got so many more notes acknowledged."""
        goals = [len(client.acknowledged) + notes for client in self.clients]
        await until(
            lambda: all(len(one.acknowledged) >= goal for one, goal in zip(self.clients, goals, strict=True)),
            40,
            "every client's notes are acknowledged",
        )

    async def clients_of(self, member: str) -> list[Client]:
        owners = (await self.state()).owners
        return [one for one in self.clients if owners[slot_of(one.source, SPEC.slots)].record.active == member]


@asynccontextmanager
async def under_load(directory: Path, rest: float = REST) -> AsyncIterator[Scene]:
    async with (
        LocalPool(LocalSettings(directory=directory, spec=SPEC)) as pool,
        EtcdClient(pool.etcd_endpoints) as etcd,
        killed_at_the_end(pool),
    ):
        clients = [Client(f"127.0.9.{number}", pool.layout.front.listen, rest) for number in range(1, CLIENTS + 1)]
        scene = Scene(pool, etcd, clients)
        await scene.settled()
        await until(scene.routed, 40, "connections go to the owners of their slots")
        running = [asyncio.create_task(client.run()) for client in clients]
        try:
            await scene.progress()
            yield scene
            await scene.progress()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        for client in clients:
            there = await client.notes()
            # What was acknowledged is there, once and in order; so may be the note whose answer was under way.
            assert there[: len(client.acknowledged)] == client.acknowledged
            assert len(there) <= len(client.acknowledged) + 1


async def understudy(*arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """A command as an operator gives it: its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *forked([sys.executable, "-m", "understudy.deploy.cli", *arguments]),
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


async def test_a_killed_members_clients_find_their_notes_at_the_standby_and_nobody_else_notices(tmp_path: Path) -> None:
    async with under_load(tmp_path) as scene:
        victim = "notes-1"
        touched = await scene.clients_of(victim)
        table = (await scene.state()).table
        assert table is not None
        standbys = [table.record.orders[slot_of(client.source, SPEC.slots)][1] for client in touched]
        assert touched
        assert {client.members[-1] for client in touched} == {victim}
        others = {client: len(client.members) for client in scene.clients if client not in touched}
        scene.pool.processes.kill(*scene.pool.member_processes(victim))
        await scene.progress(10)

        assert [client.members[-1] for client in touched] == standbys
        assert {client: len(client.members) for client in others} == others, "their connections live"


async def test_a_drained_members_clients_go_on_elsewhere_and_its_return_breaks_no_connection(tmp_path: Path) -> None:
    async with under_load(tmp_path) as scene:
        drained = "notes-2"
        place = ("--etcd", ",".join(scene.pool.etcd_endpoints), "--pool", SPEC.pool)
        touched = await scene.clients_of(drained)
        others = {client: len(client.members) for client in scene.clients if client not in touched}
        code, said = await understudy("drain", drained, *place)
        assert code == 0, said
        await until(lambda: all(client.members[-1] != drained for client in touched), 30, "its clients were sent away")
        await scene.progress()
        assert {client: len(client.members) for client in others} == others, "their connections live"

        connections = [len(client.members) for client in scene.clients]
        code, said = await understudy("undrain", drained, *place)
        assert code == 0, said
        await scene.settled()
        await scene.progress()
        assert [len(client.members) for client in scene.clients] == connections, "slots came back, connections stayed"
        assert await scene.clients_of(drained)

        code, said = await understudy("explain", touched[0].source, *place)
        assert (code, drained in said) == (0, True)


@pytest.mark.nightly
async def test_drills_bring_clients_of_their_own_and_judge_what_those_saw(tmp_path: Path) -> None:
    async with under_load(tmp_path, CALM) as scene:
        front = scene.pool.layout.front.listen
        place = ("--etcd", ",".join(scene.pool.etcd_endpoints), "--pool", SPEC.pool, "--command", "true {name}")
        for given, why in (
            (("--admin", front), "use own clients (--load N)"),
            (("--load", "1", "--url", "192.0.2.1:80"), "run the drill on the machine of the front"),
            (("--load", "1", "--url", "tcp://front"), "is not HOST:PORT with an IP address"),
        ):
            code, said = await understudy("drill", "kill", *given, *place)
            assert (code, why in said) == (2, True), said

        home = {"UNDERSTUDY_DIR": str(tmp_path)}
        for kind in ("kill", "rolling"):
            code, said = await understudy("drill", kind, "--load", "30", "--for", "1s", "-o", "json", env=home)
            assert code == 0, said
            (row,) = json.loads(said[said.index("{") :])["drills"]
            assert (row["lost_writes"], row["missed"]) == (0, []), row
            if kind == "kill":
                assert row["failed_requests"] == 0, row
                assert row["sessions_touched"] > 0
                assert row["moved_needlessly"] == 0
            marks = {at.record.drill for at in (await scene.state()).failovers.values()}
            assert kind in marks


async def test_a_frozen_application_is_found_by_the_question_that_the_spec_names(tmp_path: Path) -> None:
    async with under_load(tmp_path) as scene:
        frozen = "notes-3"
        touched = await scene.clients_of(frozen)
        os.kill(scene.pool.processes[f"{frozen}/app"].pid, signal.SIGSTOP)
        await until(lambda: all(client.members[-1] != frozen for client in touched), 30, "its clients were sent away")
        await scene.progress()
        scene.pool.processes.kill(f"{frozen}/app")  # it would not end by itself
