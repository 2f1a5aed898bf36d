"""Whether etcd has a leader, by the word of its members: what calls that wait for one have in common.

When etcd's leader dies, a member that has not noticed yet passes writes on to nobody: they hang until their deadline,
although a new leader is there sooner. And a member that has noticed refuses at once, so whoever asks again and again
only keeps the processor from the election. So while a call is late, or somebody waits for a leader, the members are
asked who leads (``Status``, which each answers by itself). As soon as one names a leader of a later term, calls that
are late and were sent under an earlier one are given up, and everybody who waits for a leader is woken, once.

:class:`Terms` is the pure part. Whether a call that was given up had an effect stays open, as after a timeout.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from understudy.statesync.etcd.errors import EtcdError
from understudy.statesync.etcd.model import Message

_log = logging.getLogger(__name__)

LATE = 0.25
"""Seconds after which a call is late: many times what etcd takes when it is well, and far below an election."""
LOOK = 0.05
LOOK_CALMLY = 0.25
"""Seconds between two looks at a member: in the first :data:`SOON` seconds, when an election is likely; and after."""
SOON = 5.0
PATIENCE = 0.5
"""Seconds after which a call that was refused for want of a leader tries again although no new one was seen: the member
that refused it may have been cut off for a moment only."""


class GivenUp(Exception):
    """A call was sent under a leader that etcd has no more, and was late; it may have been carried out."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What one member of etcd says: its raft term, and the id of its leader (0: it knows none)."""

    term: int
    leader: int


class Terms:
    """The latest raft term in which etcd was seen to work."""

    def __init__(self) -> None:
        self.latest = 0

    def answered(self, term: int) -> None:
        """A call was answered in ``term``."""
        self.latest = max(self.latest, term)

    def saw(self, sight: Sight) -> None:
        """A member has spoken; only one that knows a leader counts."""
        if sight.leader:
            self.latest = max(self.latest, sight.term)

    def replaced(self, sight: Sight, since: int) -> bool:
        """Whether ``sight`` proves that the leader of term ``since`` (0: not known) has a successor.

        A word under the same term proves nothing: a follower may not have noticed yet that its leader is gone.
        """
        return bool(sight.leader) and 0 < since < sight.term == self.latest


@dataclass(slots=True, eq=False)
class _Sent:
    """A call on its way: since when (monotonic), and under which term (0: of none that this client has heard)."""

    call: Message
    at: float
    term: int
    given_up: bool = False


class LeaderWatch:
    """Keeps an eye on the calls that one client has under way; see the module. Belongs to one event loop.

    ``look`` asks the member of an index what it sees and raises ``EtcdError`` if it does not say; ``on_leader`` hears
    from which one a leader was learned.
    """

    def __init__(self, members: int, look: Callable[[int], Awaitable[Sight]], on_leader: Callable[[int], None]) -> None:
        self._members = members
        self._look = look
        self._on_leader = on_leader
        self._terms = Terms()
        self._sent: dict[_Sent, None] = {}
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._seeking: dict[int, asyncio.Task[None]] = {}
        self.wanting_at = float("-inf")
        """When (monotonic) etcd was last seen to keep callers waiting for a leader, while this process was not late."""

    async def close(self) -> None:
        """Ask no more."""
        self._members = 0
        if self._timer is not None:
            self._timer.cancel()
        for task in self._seeking.values():
            task.cancel()
        await asyncio.gather(*self._seeking.values(), return_exceptions=True)

    async def answer(self, call: Message, *, led: bool) -> Message:
        """The answer of a gRPC call that was just made; raises what it raises, and :class:`GivenUp`.

        ``led``: only a member that has a leader answers it, so the term that it names is one in which etcd works.
        """
        sent = _Sent(call, time.monotonic(), self._terms.latest)
        self._sent[sent] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LATE, self._watch)
        try:
            answer = await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if sent.given_up and not (task is not None and task.cancelling()):
                raise GivenUp from None
            raise
        finally:
            del self._sent[sent]
        if led:
            self._terms.answered(answer.header.raft_term)
        return answer

    @property
    def term(self) -> int:
        """The latest raft term in which etcd was seen to work."""
        return self._terms.latest

    async def pause(self, seconds: float, since: int | None = None) -> None:
        """Return when there is a leader of a later term than ``since`` (None: the latest), or after ``seconds``."""
        leader: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[leader] = self._terms.latest if since is None else since
        self._seek()
        try:
            await asyncio.wait((leader,), timeout=seconds)
        finally:
            self._waiting.pop(leader, None)

    def _late(self) -> Sequence[_Sent]:
        """The calls that are late; the oldest come first."""
        before = time.monotonic() - LATE
        late = []
        for sent in self._sent:
            if sent.at > before:
                break
            late.append(sent)
        return late

    def _watch(self) -> None:
        """Look whether the oldest call is late; runs while any are under way."""
        self._timer = None
        if self._late():
            self._seek()
        if self._sent:
            self._timer = asyncio.get_running_loop().call_later(LATE / 2, self._watch)

    def _seek(self) -> None:
        for member in range(self._members):
            if member not in self._seeking or self._seeking[member].done():
                self._seeking[member] = asyncio.create_task(self._ask(member), name=f"etcd leader/{member}")

    async def _ask(self, member: int) -> None:
        """Ask one member again and again, while anybody wants to know."""
        soon = time.monotonic() + SOON
        while self._waiting or self._late():
            try:
                sight = await self._look(member)
            except EtcdError as error:
                _log.debug("etcd member %d does not say who leads: %s", member, error)
            else:
                self._saw(member, sight)
            await asyncio.sleep(LOOK if time.monotonic() < soon else LOOK_CALMLY)

    def _saw(self, member: int, sight: Sight) -> None:
        late = self._late()
        if late or not sight.leader:
            self.wanting_at = time.monotonic()
        self._terms.saw(sight)
        woken = [
            leader
            for leader, since in self._waiting.items()
            if self._terms.replaced(sight, since) or (sight.leader and not since)
        ]
        stranded = [sent for sent in late if self._terms.replaced(sight, sent.term)]
        for sent in late:
            # What a new client sends first is taken to go to the leader that is heard of first.
            sent.term = sent.term or self._terms.latest
        if woken or stranded:
            self._on_leader(member)
        for leader in woken:
            if not leader.done():
                leader.set_result(None)
        for sent in stranded:
            sent.given_up = True
            sent.call.cancel()
