"""This member's presence in the pool: its record in etcd on its one lease, and its heartbeats.

The record says what the member is and how it is; it is written anew at each change and after a lost lease. The beats
tell every control server the same at once, and their closed socket tells of a killed process.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from understudy.proxy.ownership.context import MemberContext
from understudy.proxy.sidecar.heartbeat_client import HeartbeatClient
from understudy.proxy.sidecar.name_holder import NameHolder, NameTaken
from understudy.statesync.etcd.client import EtcdError, LeaseNotFound
from understudy.statesync.heartbeat.adaptive_timeout import stall_step
from understudy.statesync.heartbeat.heartbeat import Answer, Beat
from understudy.statesync.pool.records import Member, MemberState
from understudy.statesync.tls.pem_files import PemFiles

logger = logging.getLogger(__name__)

LEASE_SECONDS = 10
RETRY = 0.3
STATE_INTERVAL = 0.5


def state_of(
    *,
    draining: str,
    fault: str,
    synced: bool,
    has_roles: bool,
    others: bool = True,
    starting: str = "",
    failed: bool = False,
    no_pool: str = "",
) -> tuple[MemberState, str]:
    """The member's state and, unless it is well, the reason; ``draining`` and ``fault`` say why it is not.

    ``others``: whether there is anybody else who could serve. Without them a member with a fault serves on: worse than
    a well one, better than none. ``starting``: what a member without a part in the pool is to wait for.
    ``failed``: it was well since it started, and the fault is its own; it stays DOWN when its slots are gone.
    ``no_pool`` says that there is no such pool, if that is known.
    """
    if draining:
        return MemberState.DRAINING, draining
    if not synced:
        return MemberState.INIT, no_pool or "reading the pool from etcd"
    if fault and has_roles:
        return (MemberState.DOWN, fault) if others else (MemberState.ATTENTION, f"nobody else can serve: {fault}")
    if not has_roles and (fault or starting):
        return (MemberState.DOWN if fault and failed else MemberState.INIT), fault or starting
    return (MemberState.UP if has_roles else MemberState.READY), ""


def refusal_of(state: MemberState, reason: str, *, fault: str, owns: bool) -> str:
    """Why front Envoys had better not send requests here, '' if they may.

    ``fault`` is what is wrong in this member itself. That etcd cannot be reached is none of that: it is seen by all
    members at once when etcd is away, and only the control servers can tell that from one member that is cut off.
    """
    match state:
        case MemberState.INIT:
            return reason
        case MemberState.DOWN:
            return fault
        case MemberState.DRAINING:
            return fault or ("" if owns else reason)
        case _:
            return ""


def fit_others(context: MemberContext) -> list[str]:
    """Who else could serve, by what their records say."""
    members = context.state.members.items()
    return [member for member, at in members if member != context.me and at.record.state.may_hold_slots]


def lasting_others(context: MemberContext) -> list[str]:
    """Who else may be able to serve before long: those who start or have a fault too, but none who is leaving."""
    members = context.state.members.items()
    return [member for member, at in members if member != context.me and at.record.state is not MemberState.DRAINING]


class Presence:
    """Keeps the member's record and its heartbeats going."""

    def __init__(
        self,
        context: MemberContext,
        record: Member,
        state: Callable[[], tuple[MemberState, str]],
        tls: PemFiles | None = None,
    ) -> None:
        """``record`` is the member as it does not change; ``state`` tells how it is now; ``tls`` is for heartbeats."""
        self._context = context
        self._state = state
        self._heartbeats = HeartbeatClient(self._controls, self._beat, self._answered, tls)
        self.record = record
        self.name = NameHolder(context)
        self.displaced = asyncio.Event()
        """Another process has taken this member's name, and lives: this one has to end."""
        self._stirred = asyncio.Event()

    def stir(self) -> None:
        """Something may have changed: write the record and send a beat if it has."""
        if self.name.replaced:
            self._stirred.set()
        state, reason = self._state()
        stall, clock = stall_step(self._context.stall.worst), self._context.clock.fault
        if (state, reason) == (self.record.state, self.record.reason):
            if (stall, clock) != (self.record.stall, self.record.clock):
                self.record = replace(self.record, stall=stall, clock=clock)
                self._stirred.set()
            return
        logger.info("%s: %s%s", self.record.member, state, f" ({reason})" if reason else "")
        self.record = replace(self.record, state=state, reason=reason, since=time.time(), stall=stall, clock=clock)
        self._stirred.set()
        self.beat_at_once()

    def beat_at_once(self) -> None:
        """Something happened that control servers should hear of before the next beat is due."""
        self._heartbeats.beat_at_once()

    async def watch_state(self) -> None:
        """Look every half second whether time alone has changed what the record says: an intent that ended, a delay."""
        while True:
            if self._context.lives.settle(time.monotonic()):
                self.record = replace(self.record, life=self._context.lives.count)
                self._stirred.set()
            self.stir()
            await asyncio.sleep(STATE_INTERVAL)

    async def run(self) -> None:
        """Be present until cancelled, or until :attr:`displaced`; the record goes when this ends."""
        while True:
            try:
                async with self._context.etcd.lease(LEASE_SECONDS) as lease:
                    await self._stay(lease.id, lease.lost)
                logger.warning("the member's lease was lost: registering again")
            except NameTaken as error:
                logger.error("%s", error)  # noqa: TRY400 - the text is for the operator
                self.displaced.set()
                return
            except EtcdError as error:
                logger.warning("the member's record cannot be written: %s", error)
            await asyncio.sleep(RETRY)

    async def _stay(self, lease_id: int, lost: asyncio.Event) -> None:
        ended = asyncio.create_task(lost.wait())
        try:
            while not lost.is_set():
                self._stirred.clear()
                if not await self._write_record(lease_id):
                    await asyncio.sleep(RETRY)
                    continue
                stirred = asyncio.create_task(self._stirred.wait())
                try:
                    await asyncio.wait((stirred, ended), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    stirred.cancel()
        finally:
            ended.cancel()

    async def _write_record(self, lease_id: int) -> bool:
        """Whether the record stands as it is now; trouble with etcd is no reason to give the lease up."""
        try:
            return await self.name.write(self.record, lease_id)
        except LeaseNotFound:
            raise
        except EtcdError as error:
            logger.warning("the member's record cannot be written: %s", error)
            return False

    # -- heartbeats --

    async def beat(self) -> None:
        """Hold a heartbeat stream to every control server there is, until cancelled."""
        await self._heartbeats.run()

    def _controls(self) -> set[str]:
        return {at.record.grpc for at in self._context.state.controls.values()}

    def _answered(self, address: str, answer: Answer) -> None:
        """A control server's answer tells its clock: it was read between the beat that it answers and now."""
        context = self._context
        now = context.clock.passed()
        asked = now - max(context.telemetry.now_ns() - answer.sent, 0) / 1e9
        context.clock.heard(address, answer.clock, asked, now)

    def _lacking(self) -> int:
        """How many slots the table gives this member that it does not hold in full."""
        context = self._context
        return len(context.view().table.slots_held_by(context.me) - context.replica.synced)

    def _beat(self) -> Beat:
        record, context = self.record, self._context
        return Beat(
            pool=context.keys.pool,
            member=record.member,
            boot=record.boot,
            state=record.state,
            applied=context.mirror.revision,
            reason=record.reason,
            stall=round(self._context.stall.worst, 3),
            lacking=self._lacking(),
            sent=context.telemetry.now_ns(),
            claims=context.first_answers.told(),
            request=context.first_answers.last_request,
            pulses=[(*who, runs) for who, runs in context.seen().items()],
            answers=True,
            stood=context.stall.standstills(),
        )
