"""The copies' end: takes the frames of actives into this process's copies, and answers them."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from aiohttp import web

from understudy.proxy.replication.wire import (
    FRAME_MOST,
    PING_SECONDS,
    REPLICATION_PATH,
    ConnectionEnded,
    greeting,
    receive,
    send,
)
from understudy.statesync.replication.messages import (
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

    def take(self, messages: Sequence[Message]) -> list[FromCopy]:
        """Take in a frame; the answers, of confirmations only the last of each slot."""
        answers: list[FromCopy] = []
        confirmed: dict[int, Have] = {}
        for message in messages:
            if not isinstance(message, Lead | Writes | Part):
                raise ConnectionEnded(f"an active does not say {type(message).__name__}")
            answer = self._take(message)
            if isinstance(answer, Have):
                confirmed[answer.slot] = answer
            elif answer is not None:
                answers.append(answer)
        return [*answers, *confirmed.values()]

    def _take(self, message: Lead | Writes | Part) -> FromCopy | None:
        slot = message.slot
        known = self._refuses(slot, message.epoch)
        if known:
            return Refused(slot, message.epoch, known)
        copy = self.copies.get(slot)
        if copy is None:
            copy = self.copies[slot] = SlotCopy(slot)
        if isinstance(message, Lead):
            return copy.lead(message)
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
        socket = web.WebSocketResponse(
            compress=False, max_msg_size=FRAME_MOST, heartbeat=PING_SECONDS, writer_limit=1_000_000
        )
        await socket.prepare(request)
        who = str(request.remote)
        try:
            who = (await greeting(socket, self._hello.pool)).member
            await send(socket, [self._hello])
            while True:
                answers = self.take(await receive(socket))
                if answers:
                    await send(socket, answers)
        except ConnectionEnded as ended:
            logger.info("the replication connection of %s has ended: %s", who, ended)
            await socket.close(message=str(ended).encode()[:120])
        return socket

    def add_to(self, app: web.Application) -> None:
        """Serve connections of actives at the peer API."""
        app.router.add_get(REPLICATION_PATH, self.serve)
