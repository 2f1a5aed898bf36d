"""The copies' end: takes the frames of actives into this process's copies, and answers them."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from aiohttp import web

from understudy.proxy.replication import wire
from understudy.proxy.replication.wire import ConnectionEnded
from understudy.statesync.replication.messages import (
    Behind,
    FromCopy,
    Have,
    Hello,
    Lead,
    Message,
    Part,
    Refused,
    Stored,
    Writes,
)
from understudy.statesync.replication.slot_copy import Entry, SlotCopy
from understudy.statesync.replication.sync_set import Process

logger = logging.getLogger(__name__)


class CopyStore(Protocol):
    """Where a process keeps the sessions of its copies, as readers may see them."""

    def clear(self, slot: int) -> None:
        """Forget a slot's sessions: a copy of all of it begins."""

    def keep(self, slot: int, sessions: Iterable[Stored]) -> None:
        """Keep sessions of a part of a copy, unless a newer version is here."""

    def show(self, slot: int, writes: Iterable[Entry]) -> None:
        """Carry out writes that are acknowledged."""


class CopyKeeper:
    """The copies of one process, by slot.

    ``refuses`` is asked before anything of an active is taken in: the epoch in which this process itself is active in
    the slot, if the sender's is no later; else 0.
    """

    def __init__(
        self, me: Process, pool: str, store: CopyStore, refuses: Callable[[int, int], int] = lambda _slot, _epoch: 0
    ) -> None:
        self._hello = Hello(pool, me.member, me.boot)
        self._store = store
        self._refuses = refuses
        self.copies: dict[int, SlotCopy] = {}
        self._led_by: dict[int, object] = {}

    def take(self, connection: object, messages: Sequence[Message]) -> list[FromCopy]:
        """Take in a frame; the answers, of confirmations only the last of each slot.

        A slot follows the connection on which it was led last. What is left of an earlier one must not mix with it: the
        last part of a copy that was broken off would make the next one look whole.
        """
        answers: list[FromCopy] = []
        confirmed: dict[int, Have] = {}
        for message in messages:
            if not isinstance(message, Lead | Writes | Part):
                raise ConnectionEnded(f"an active does not say {type(message).__name__}")
            answer = self._take(connection, message)
            if isinstance(answer, Have):
                confirmed[answer.slot] = answer
            elif answer is not None:
                answers.append(answer)
        return [*answers, *confirmed.values()]

    def _take(self, connection: object, message: Lead | Writes | Part) -> FromCopy | None:
        slot = message.slot
        known = self._refuses(slot, message.epoch)
        if known:
            return Refused(slot, message.epoch, known)
        copy = self.copies.get(slot)
        if copy is None:
            copy = self.copies[slot] = SlotCopy(slot)
        if isinstance(message, Lead):
            self._led_by[slot] = connection
            return copy.lead(message)
        if self._led_by.get(slot) is not connection:
            return Behind(slot, message.epoch)
        if isinstance(message, Writes):
            answer, visible = copy.writes(message)
            if visible:
                self._store.show(slot, visible)
            return answer
        return self._take_part(copy, message)

    def _take_part(self, copy: SlotCopy, part: Part) -> FromCopy | None:
        if not copy.accepts(part.epoch):
            return copy.part(part)
        if part.first:
            self._store.clear(copy.slot)
        self._store.keep(copy.slot, part.sessions)
        return copy.part(part)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer an active's connection until it ends."""
        socket = web.WebSocketResponse(compress=False, max_msg_size=wire.FRAME_MOST, heartbeat=wire.PING_SECONDS)
        await socket.prepare(request)
        who = str(request.remote)
        try:
            who = (await wire.greeting(socket, self._hello.pool)).member
            await wire.send(socket, [self._hello])
            while True:
                answers = self.take(socket, await wire.receive(socket))
                if answers:
                    await wire.send(socket, answers)
        except ConnectionEnded as ended:
            logger.info("the replication connection of %s has ended: %s", who, ended)
            await socket.close(message=str(ended).encode()[:120])
        return socket

    def add_to(self, app: web.Application) -> None:
        """Serve connections of actives at the peer API."""
        app.router.add_get(wire.REPLICATION_PATH, self.serve)
