"""Members without processes: the real parts of a sidecar on a real etcd, with plain objects for the network."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
from aiohttp import web

from tests.harness.records import PoolRecords
from tests.harness.waiting import until
from understudy.proxy.events.incarnation import Incarnation
from understudy.proxy.events.recorder import Recorder
from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.http.problems import Reply
from understudy.proxy.member.home_watch import HomeWatch
from understudy.proxy.member.identity import MemberIdentity
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import Peer, PoolView
from understudy.proxy.ownership import handover
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.claims import Claimer
from understudy.proxy.ownership.drain_reason import DrainState
from understudy.proxy.ownership.etcd_contact import EtcdContact
from understudy.proxy.ownership.handover import Handover
from understudy.proxy.ownership.handover_pacing import HandoverPacing
from understudy.proxy.ownership.opening import SlotOpener
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.ownership.read_deadline import ReadDeadline
from understudy.proxy.ownership.read_proof import ReadProof
from understudy.proxy.ownership.set_changes import SetChanges
from understudy.proxy.ownership.slot_reconciler import SlotReconciler
from understudy.proxy.ownership.takeovers import Takeovers
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.peers.peer_probe import PeerProbe
from understudy.proxy.peers.peer_protocol import SESSIONS_PATH, NotTaken, PeerDeclined, PeerRefused, ProbeResult
from understudy.proxy.peers.predecessor_monitor import PredecessorMonitor
from understudy.proxy.replication.copy_connection import SlotSource
from understudy.proxy.replication.copy_connections import CopyConnections
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.proxy.sessions.async_writes import AsyncWrites
from understudy.proxy.sessions.call import Call
from understudy.proxy.sessions.creation import SessionKeys
from understudy.proxy.sessions.load_shedding import LoadShedder
from understudy.proxy.sessions.overwrite_log import OverwriteLog
from understudy.proxy.sessions.owner_reads import OwnerReads
from understudy.proxy.sessions.owner_writes import OwnerWrites
from understudy.proxy.sessions.routing import OwnerRouter
from understudy.proxy.sessions.service import SessionService
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.informer import Informer, InformerBatch
from understudy.statesync.heartbeat.challenge import cannot_ask
from understudy.statesync.heartbeat.pulse import Pulses
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.owner_records import FailoverLog
from understudy.statesync.pool.ownership import agreed_set
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.pool.records import Lost, Member, MemberState, Owner
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.replication.sync_set import Process, SyncSet
from understudy.statesync.sessions.commit import Committer
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.request_log import RequestLog
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.setup import start_telemetry

SLOTS = 4


def view_of(me: str, pool: str = "cart", boot: str = "") -> PoolView:
    """The pool as a member sees it that has not read it yet."""
    return PoolView(MemberIdentity(me, boot or f"{me}1", PoolKeys(pool)))


def probe_of(client: PeerClient, pool: PoolView | None = None) -> PeerProbe:
    """Probes of a member that sees no pulses."""
    pool = pool or view_of("a")
    monitor = PredecessorMonitor(pool, Pulses(), lambda: None)
    return PeerProbe(client, pool, LoopLag(), monitor, cannot_ask)


def recorder_of(me: str, pool: str = "cart") -> Recorder:
    """A recorder whose spans go nowhere."""
    telemetry = start_telemetry(names.SERVICE_SIDECAR, me)
    return Recorder(
        telemetry,
        pool,
        me,
        slowest=lambda _: 0.0,
        on_progress=lambda: None,
        going_down=lambda: False,
        takeover_before=lambda _: None,
    )


class Network:
    """The calls between members, made directly; only copies go over connections.

    Who is in ``dead`` refuses every connection.
    """

    def __init__(self) -> None:
        self.members: dict[str, InProcessMember] = {}
        self.dead: set[str] = set()

    def _reach(self, peer: Peer) -> "InProcessMember":
        if peer.member in self.dead:
            raise PeerRefused(peer.member, "connection refused")
        return self.members[peer.member]

    def dial(self, peer: Peer) -> tuple[str, bool]:
        return f"http://127.0.0.1:{0 if peer.member in self.dead else self.members[peer.member].port}", True

    async def activate(self, peer: Peer, slots: Sequence[int], revision: int) -> tuple[dict[int, Owner], int]:
        try:
            taken = await self._reach(peer).handover.take(slots, revision)
        except NotTaken as error:
            raise PeerDeclined(peer.member, str(error)) from None
        return {slot: at.record for slot, at in taken.items()}, taken[slots[0]].revision

    async def forward(self, peer: Peer, method: str, path: str, **call: Any) -> Reply:
        headers = {name.lower(): value for name, value in call["headers"].items()}
        return await self._reach(peer).service.handle(
            Call(method, path.removeprefix(SESSIONS_PATH), headers, call["body"], hop=True)
        )

    def patience(self, _member: str) -> float:
        return 0.5

    async def probe(self, peer: Peer, _boot: str | None = None, **_: object) -> ProbeResult:
        return ProbeResult.GONE if peer.member in self.dead else ProbeResult.ALIVE


class InProcessMember:
    """The parts of one member that own slots and answer session calls, put together as ``assembly`` does."""

    def __init__(self, etcd: EtcdClient, pool: str, me: str, network: Network) -> None:
        self.pool = view_of(me, pool)
        self.loop_lag = LoopLag()
        self.lag = 0.0
        """How late the event loop is, as far as the refusal of calls is concerned."""
        self.keys, boot = self.pool.identity.keys, self.pool.identity.boot
        self.owned, self.drain, contact = OwnedSlots(), DrainState(self.pool), EtcdContact()
        self.clock = clock = PoolClock()
        self.contact = contact
        replica, requests = Replica(etcd, self.keys), RequestLog(self.keys, me, boot)
        self.updates = PoolUpdates(self.pool, self.owned, self.drain, Incarnation())
        informer = Informer(etcd, self.keys.records, self.apply)
        self.home = HomeWatch(self.pool, informer)
        self.copies = LocalCopies(informer, replica, requests)
        self.recorder = recorder_of(me, pool)
        self.reads = ReadDeadline(self.keys, etcd, contact, self.updates.apply, lambda: None)
        client, probe = cast("PeerClient", network), cast("PeerProbe", network)
        failovers, claiming = FailoverLog(self.keys, me), asyncio.Lock()
        self.committer = Committer(etcd, self.keys, me, boot, requests)
        self.keeper = CopyKeeper(Process(me, boot), pool, replica, requests, self.owned.refuses)
        self.connections = CopyConnections(self.pool, client, SlotSource(replica, requests), self.recorder.rejoins)
        self.active = ActiveSlots(
            self.pool, replica, requests, self.committer, self.keeper, self.connections, self.updates
        )
        self.changes = SetChanges(
            self.pool, etcd, self.owned, self.active, self.connections, self.updates, self.loop_lag, self.home
        )
        self.owned.on_lose = self.active.lost
        self.active.on_blocked = self.changes.wake
        self.connections.on_progress = self.active.progress
        self.connections.on_refused = self.owned.refuses
        self.port = 0
        self.clock.look(alone=True)
        opener = SlotOpener(self.pool, self.copies, etcd, self.owned, self.active, self.keeper, self.clock)
        self.claimer = Claimer(
            self.pool, self.copies, etcd, self.owned, self.keeper, opener, failovers, self.recorder, contact, self.home
        )
        self.handover = Handover(
            self.pool,
            self.copies,
            etcd,
            client,
            self.owned,
            self.active,
            opener,
            self.changes,
            failovers,
            self.recorder,
        )
        self.takeovers = Takeovers(
            self.pool,
            self.copies,
            etcd,
            probe,
            self.claimer,
            claiming,
            contact,
            self.drain,
            self.updates,
            self.recorder,
        )
        self.fault = ""
        self.reconciler = SlotReconciler(
            self.pool,
            self.copies,
            self.owned,
            self.active,
            self.keeper,
            opener,
            self.updates,
            self.drain,
            contact,
            self.claimer,
            self.handover,
            self.takeovers,
            claiming,
            self.recorder,
            lambda: self.fault,
            HandoverPacing(0.0),
        )
        async_writes = AsyncWrites(lambda slot: self.recorder.audit.lost(self.pool.view().owner(slot)))
        proof = ReadProof(self.reads, self.active, self.connections)
        reads = OwnerReads(
            self.pool, self.copies, self.keeper, etcd, self.owned, proof, clock, self.updates, async_writes
        )
        writes = OwnerWrites(
            self.pool,
            self.copies,
            self.owned,
            self.committer,
            self.active,
            proof,
            clock,
            self.loop_lag,
            self.updates,
            self.recorder,
            async_writes,
            OverwriteLog(),
        )
        self.router = OwnerRouter(self.pool, client, probe, self.takeovers)
        self.answered: list[int] = []
        self.service = SessionService(
            self.pool,
            self.home,
            self.owned,
            self.updates,
            reads,
            writes,
            self.router,
            SessionKeys(self.pool, self.owned, etcd),
            clock,
            self.loop_lag,
            self.recorder,
            LoadShedder(lambda: self.lag),
            lambda _call, reply: self.answered.append(reply.status),
        )

    def apply(self, batch: InformerBatch) -> None:
        """Take in what the watch brings."""
        self.updates.apply(batch)
        self.home.apply(batch)

    async def serve_copies(self, stack: AsyncExitStack) -> None:
        """Take in the streams of other members."""
        app = web.Application()
        self.keeper.add_to(app)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]

    def sync_set(self, slot: int) -> SyncSet:
        """The sync set of a slot as this member sees it."""
        state = self.pool.state
        return agreed_set(state.owners[slot].record, state.sync_sets.get(slot))

    async def call(self, method: str, key: str, body: str = "", **headers: str) -> Reply:
        """A session call of this member's application."""
        given = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        return await self.service.handle(Call(method, key, given, body.encode()))


class InProcessPool(PoolRecords):
    """Members of one pool, each with its watch, its read deadline and its group commit running."""

    def __init__(self, client: EtcdClient, spec: PoolSpec, stack: AsyncExitStack) -> None:
        super().__init__(client, spec)
        self.network = Network()
        self._stack = stack

    def __getitem__(self, member: str) -> InProcessMember:
        return self.network.members[member]

    async def join(self, *members: str) -> None:
        """Have members in the pool; their reconcilers do not run."""
        await self.apply(self.spec)
        for name in members:
            await self.write_record(Member(name, f"{name}1", "127.0.0.1:1", "127.0.0.1:2", MemberState.UP))
            member = self.network.members[name] = InProcessMember(self.client, self.spec.pool, name, self.network)
            for service in (member.loop_lag, member.copies.informer, member.reads, member.committer):
                await self.run(service.run())
            await member.serve_copies(self._stack)
            for part in (
                member.connections.run(),
                member.active.run(),
                member.active.tell(),
                member.changes.run(),
            ):
                await self.run(part)
        for name in members:
            await self[name].copies.informer.synced.wait()
            await until(partial(self._sees, self[name], members), what=f"{name} sees the others")

    @staticmethod
    def _sees(member: InProcessMember, others: Sequence[str]) -> bool:
        return set(others) <= set(member.pool.state.members)

    async def run(self, part: Any) -> asyncio.Task[None]:
        """Run a part of a member until the pool ends."""
        task = asyncio.create_task(part)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(end)
        return task

    async def assign(self, *order: str, lost: Mapping[str, Lost] | None = None) -> None:
        """Write a table with this order for every slot, and wait until all members have it."""
        table = await self.write_table([order], lost)
        await self._everybody(lambda member: member.pool.view().table == table, "has the table")

    async def give(self, me: str, *order: str) -> InProcessMember:
        """Have a member own every slot, by its own claim, and the members of ``order`` hold them."""
        await self.assign(me, *order)
        member = self[me]
        await member.reconciler._claim_free()
        assert sorted(member.owned.open_slots()) == list(range(SLOTS))
        await self._everybody(lambda one: all(owner == me for owner in owners(one).values()), "knows the owners")
        having = {me, *order} - self.network.dead
        await self._everybody(
            lambda one: all({p.member for p in one.sync_set(slot).members} == having for slot in range(SLOTS)),
            "knows who has copies",
        )
        return member

    async def _everybody(self, condition: Any, what: str) -> None:
        for name, member in self.network.members.items():
            await until(partial(condition, member), what=f"{name} {what}")

    async def kill(self, name: str) -> None:
        """A member refuses connections from now on, and its record is gone."""
        self.network.dead.add(name)
        await self.delete_record(name)
        living = [m for n, m in self.network.members.items() if n != name]
        await until(lambda: all(name not in m.pool.state.members for m in living), what="its record is gone")


def owners(member: InProcessMember) -> dict[int, str]:
    """Who owns which slot, as a member sees it."""
    view = member.pool.view()
    found = {slot: view.owner(slot) for slot in range(SLOTS)}
    return {slot: owner.active if owner else "" for slot, owner in found.items()}


@asynccontextmanager
async def in_process_pool(client: EtcdClient, name: str, *members: str, **spec: Any) -> AsyncIterator[InProcessPool]:
    """A pool whose members run in this very process; a handover does not fail because this machine is slow."""
    async with AsyncExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(handover, "CONFIRM_TIMEOUT", 30.0)
        pool = InProcessPool(client, PoolSpec(pool=name, slots=SLOTS, **spec), stack)
        await pool.join(*members)
        yield pool


def headers_of(reply: Reply) -> dict[str, str]:
    """The headers of a reply, by lower-case name."""
    return {name.lower(): value for name, value in reply.headers.items()}
