"""The copies' end: takes the frames of actives into this process's copies, and answers them."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from understudy.proxy.peers.peer_protocol import REPLICATION_PATH
from understudy.proxy.replication import wire
from understudy.proxy.replication.wire import ConnectionEnded
from understudy.statesync.replication.messages import (
    Ask,
    At,
    Behind,
    FromCopy,
    Have,
    Hello,
    Lead,
    Message,
    Part,
    Refused,
    Stored,
    Told,
    Writes,
)
from understudy.statesync.replication.slot_copy import Entry, SlotCopy
from understudy.statesync.replication.sync_set import Process
from understudy.statesync.sessions.request_log import RequestLog, decode_entry

logger = logging.getLogger(__name__)


class CopyStore(Protocol):
    """Where a process keeps the sessions of its copies, as readers may see them."""

    def clear(self, slot: int) -> None:
        """Forget a slot's sessions: a copy of all of it begins."""

    def keep(self, slot: int, sessions: Iterable[Stored]) -> None:
        """Keep sessions of a part of a copy, unless a newer version is here."""

    def show(self, slot: int, writes: Iterable[Entry]) -> None:
        """Carry out writes that are acknowledged."""

    def whole(self, slot: int) -> None:
        """All parts of a copy are here."""

    def drop(self, slot: int) -> None:
        """Forget a slot."""


@dataclass(eq=False, slots=True)
class _Connection:
    """A connection of an active: when its last frame came (monotonic), and the epochs in which it leads slots."""

    heard: float
    leads: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Wish:
    """A copy that is to be made anew: who was told so, and whether it was."""

    told: _Connection | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    made: bool = False


class CopyKeeper:
    """The copies of one process, by slot.

    ``refuses`` is asked before anything of an active is taken in: the epoch in which this process itself is active in
    the slot, if the sender's is no later; else 0. Where the sender's is later, this process has lost the slot: the
    callee must :meth:`give` what it has, before it returns. ``requests`` gets the outcomes of the requests whose writes
    are acknowledged, those in copies of whole slots included.
    """

    def __init__(
        self,
        me: Process,
        pool: str,
        store: CopyStore,
        requests: RequestLog,
        refuses: Callable[[int, int], int] = lambda _slot, _epoch: 0,
    ) -> None:
        self._hello = Hello(pool, me.member, me.boot)
        self._store = store
        self._requests = requests
        self._refuses = refuses
        self.copies: dict[int, SlotCopy] = {}
        self._known: dict[int, int] = {}
        self._connections: dict[object, _Connection] = {}
        self._led_by: dict[int, _Connection] = {}
        self._wishes: dict[int, _Wish] = {}

    def is_whole(self, slot: int) -> bool:
        """Whether everything of the slot is here that its active has confirmed of this process."""
        copy = self.copies.get(slot)
        return copy is not None and copy.whole

    def take_over(self, slot: int) -> SlotCopy | None:
        """Give the copy away to this process as the active of the slot; None if there is none.

        The store keeps the sessions. Tell the epoch of the new owner record by :meth:`heard_of` before.
        """
        self._led_by.pop(slot, None)
        self._end_wish(slot, made=False)
        copy = self.copies.pop(slot, None)
        if copy is not None:
            self.heard_of(slot, copy.known)
        return copy

    def give(self, slot: int, copy: SlotCopy) -> None:
        """Keep what this process had as the active of a slot, which it has lost. The store has its sessions."""
        if slot in self.copies:
            return  # the next active was here first, and has begun another copy
        copy.heard_of(self._known.get(slot, 0))
        self.copies[slot] = copy
        self.heard_of(slot, copy.known)

    def drop(self, slot: int) -> None:
        """Forget a slot's copy, its sessions and the outcomes of its requests.

        An active whose epoch is not refused leads the slot again, and then there is another copy.
        """
        self.take_over(slot)
        self._store.drop(slot)
        self._requests.drop(slot)

    async def made_anew(self, slot: int) -> bool:
        """Have the active send a slot again, and wait until all of it is here; False if this process has no copy.

        Until the first part comes, the copy stays as it is: the active first takes this process out of the sync set.
        """
        if slot not in self.copies:
            return False
        wish = self._wishes.setdefault(slot, _Wish())
        await wish.ended.wait()
        return wish.made

    def _end_wish(self, slot: int, *, made: bool) -> None:
        wish = self._wishes.pop(slot, None)
        if wish is not None:
            wish.made = made
            wish.ended.set()

    def heard_of(self, slot: int, epoch: int) -> None:
        """An owner record of ``epoch`` was seen: actives of earlier epochs are refused, with a copy here or without."""
        if epoch > self._known.get(slot, 0):
            self._known[slot] = epoch
            if slot in self.copies:
                self.copies[slot].heard_of(epoch)

    def silence(self, slot: int, now: float) -> float:
        """Seconds since the active of the slot was last heard of, on whatever slot; infinite if it never was."""
        leader = self._led_by.get(slot)
        return now - leader.heard if leader is not None else math.inf

    def take(self, connection: object, messages: Sequence[Message], now: float) -> list[FromCopy]:
        """Take in a frame at ``now`` (monotonic); the answers, of confirmations only the last of each slot.

        A slot follows the connection on which it was led last. What is left of an earlier one must not mix with it: the
        last part of a copy that was broken off would make the next one look whole.
        """
        heard = self._connections.get(connection)
        if heard is None:
            heard = self._connections[connection] = _Connection(now)
        heard.heard = now
        answers: list[FromCopy] = []
        confirmed: dict[int, Have] = {}
        for message in messages:
            if isinstance(message, Ask):
                answers += [*self._refusals(heard), Told(message.number)]
                continue
            if not isinstance(message, Lead | Writes | Part):
                raise ConnectionEnded(f"an active does not say {type(message).__name__}")
            answer = self._take(heard, message)
            if isinstance(answer, Have):
                confirmed[answer.slot] = answer
            elif answer is not None:
                answers.append(answer)
        return [*answers, *confirmed.values(), *self._told_wishes(heard)]

    def _told_wishes(self, connection: _Connection) -> list[FromCopy]:
        """What an active has not heard yet of copies that it is to send again."""
        told: list[FromCopy] = []
        for slot, wish in self._wishes.items():
            if wish.told is not connection and self._led_by.get(slot) is connection:
                wish.told = connection
                told.append(At(slot, self.copies[slot].follows, 0, whole=False))
        return told

    def _refusals(self, connection: _Connection) -> list[FromCopy]:
        """A refusal of each slot that a connection leads in an epoch which is over."""
        over = {slot: epoch for slot, epoch in connection.leads.items() if epoch < self._known.get(slot, 0)}
        for slot in over:
            del connection.leads[slot]
        return [Refused(slot, epoch, self._known[slot]) for slot, epoch in over.items()]

    def _take(self, connection: _Connection, message: Lead | Writes | Part) -> FromCopy | None:
        slot = message.slot
        known = self._refuses(slot, message.epoch)
        if known:
            return Refused(slot, message.epoch, known)
        copy = self.copies.get(slot)
        if copy is None:
            copy = SlotCopy(slot, known=self._known.get(slot, 0))
        if isinstance(message, Lead):
            return self._take_lead(connection, copy, message)
        if self._led_by.get(slot) is not connection:
            return Behind(slot, message.epoch)
        if isinstance(message, Writes):
            answer, visible = copy.writes(message)
            if visible:
                self._store.show(slot, visible)
                for entry in visible:
                    self._note_outcome(slot, entry.write.outcome, connection.heard)
            return answer
        return self._take_part(connection, copy, message)

    def _take_lead(self, connection: _Connection, copy: SlotCopy, lead: Lead) -> FromCopy:
        answer = copy.lead(lead)
        if not isinstance(answer, Refused):
            self.copies[copy.slot] = copy
            self._led_by[copy.slot] = connection
            connection.leads[copy.slot] = lead.epoch
            self.heard_of(copy.slot, lead.epoch)
            if isinstance(answer, At) and copy.slot in self._wishes:
                self._wishes[copy.slot].told = connection
                answer = At(copy.slot, lead.epoch, answer.version, whole=False)
        return answer

    def _take_part(self, connection: _Connection, copy: SlotCopy, part: Part) -> FromCopy | None:
        if not copy.accepts(part.epoch):
            return copy.part(part)
        if part.first:
            self._store.clear(copy.slot)
            self._requests.drop(copy.slot)
        self._store.keep(copy.slot, part.sessions)
        for outcome in part.outcomes:
            self._note_outcome(None, outcome, connection.heard)
        answer = copy.part(part)
        if part.last:
            self._store.whole(copy.slot)
            self._end_wish(copy.slot, made=True)
        return answer

    def _note_outcome(self, slot: int | None, outcome: bytes, now: float) -> None:
        """Keep an outcome of a slot; None: the outcome itself names its slot, if that is known."""
        if not outcome:
            return
        try:
            entry = decode_entry(outcome)
        except ValueError as error:
            logger.warning("an active sends an outcome of a request that cannot be read: %s", error)
        else:
            self._requests.note(entry.slot if slot is None else slot, entry, now)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer an active's connection until it ends."""
        socket = web.WebSocketResponse(compress=False, max_msg_size=wire.FRAME_MOST, heartbeat=wire.PING_SECONDS)
        await socket.prepare(request)
        who = str(request.remote)
        try:
            who = (await wire.greeting(socket, self._hello.pool)).member
            await wire.send(socket, [self._hello])
            while True:
                messages = await wire.receive(socket)
                answers = self.take(socket, messages, time.monotonic())
                if answers or not messages:
                    await wire.send(socket, answers)
        except ConnectionEnded as ended:
            logger.info("the replication connection of %s has ended: %s", who, ended)
            await socket.close(message=str(ended).encode()[:120])
        finally:
            self._connections.pop(socket, None)
        return socket

    def add_to(self, app: web.Application) -> None:
        """Serve connections of actives at the peer API."""
        app.router.add_get(REPLICATION_PATH, self.serve)
