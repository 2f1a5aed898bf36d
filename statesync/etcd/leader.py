"""Finds out whether etcd has a leader, for all calls that wait for one.

When etcd's leader dies, a member that has not noticed it yet forwards writes to nobody. They hang until their deadline,
although a new leader is elected sooner. A member that has noticed it refuses at once, and repeated calls only slow down
the election. So while a call is late, or a caller waits for a leader, the members are asked who leads (``Status``,
which each member answers by itself). As soon as one names a leader of a later term, the late calls of earlier terms are
cancelled, and every caller that waits for a leader is woken once.

:class:`RaftTerms` and :class:`AnswerTimes` are the pure part. A cancelled call may have had an effect, as after a
timeout.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from understudy.statesync.etcd.errors import EtcdError
from understudy.statesync.etcd.model import Message

logger = logging.getLogger(__name__)

LATE_LEAST, LATE_MOST = 0.1, 0.25
"""The bounds of the seconds after which a call is late: many times what a healthy etcd takes, and less than a short
election takes. Between them it is :data:`LATE_RATIO` times what calls take: between distant members they take long."""
LATE_RATIO = 4
TYPICAL_OVER = 16
"""Calls over which the time that a call takes is smoothed."""
FAST_POLL_INTERVAL = 0.05
POLL_INTERVAL = 0.25
"""Seconds between two questions to a member: in the first :data:`FAST_POLLING` seconds, and after that."""
FAST_POLLING = 5.0
NO_LEADER_PAUSE = 0.5
"""Seconds after which a call is tried again that was refused because there is no leader, although no new leader was
found: the member that refused it may have been cut off for only a moment."""


class GivenUp(Exception):
    """A late call was cancelled, since its leader has a successor; it may have been carried out."""


class LeaderReport(msgspec.Struct, frozen=True):
    """What one member of etcd reports: its Raft term, and the id of its leader (0: it knows none)."""

    term: int
    leader: int


class RaftTerms:
    """The latest Raft term in which etcd worked."""

    def __init__(self) -> None:
        self.latest = 0

    def answered(self, term: int) -> None:
        """A call was answered in ``term``."""
        self.latest = max(self.latest, term)

    def reported(self, report: LeaderReport) -> None:
        """Take in a member's report; it counts only if the member knows a leader."""
        if report.leader:
            self.latest = max(self.latest, report.term)

    def replaced(self, report: LeaderReport, since: int) -> bool:
        """Whether ``report`` proves that the leader of term ``since`` (0: not known) has a successor.

        A report of the same term proves nothing: a follower may not have noticed yet that its leader is gone.
        """
        return bool(report.leader) and 0 < since < report.term == self.latest

    def passed(self, since: int) -> bool:
        """Whether etcd has worked in a later term than ``since`` (0: not known)."""
        return 0 < since < self.latest


class AnswerTimes:
    """How long calls take, in seconds, and after how long one is late."""

    def __init__(self) -> None:
        self.typical = 0.0

    def took(self, seconds: float) -> None:
        """A call was answered; a late one counts as :data:`LATE_MOST`, since an election is not typical."""
        self.typical += (min(seconds, LATE_MOST) - self.typical) / TYPICAL_OVER

    @property
    def late(self) -> float:
        """Seconds after which a call is late."""
        return min(max(LATE_RATIO * self.typical, LATE_LEAST), LATE_MOST)


@dataclass(slots=True, eq=False)
class _Sent:
    """A call on its way: since when (monotonic), and under which term (0: of none that this client has heard)."""

    call: Message
    at: float
    term: int
    given_up: bool = False


class LeaderWatch:
    """Watches the calls that one client has under way; see the module. Belongs to one event loop.

    ``ask`` asks the member of an index for its report and raises ``EtcdError`` if it does not answer; ``on_leader`` is
    called with the index of the member that named a new leader.
    """

    def __init__(
        self, members: int, ask: Callable[[int], Awaitable[LeaderReport]], on_leader: Callable[[int], None]
    ) -> None:
        self._members = members
        self._ask = ask
        self._on_leader = on_leader
        self._terms = RaftTerms()
        self._times = AnswerTimes()
        self._sent: dict[_Sent, None] = {}
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._seeking: dict[int, asyncio.Task[None]] = {}
        self.no_leader_at = float("-inf")
        """When (monotonic) callers last waited because etcd had no leader, while this process itself was not late."""

    async def close(self) -> None:
        """Stop asking."""
        self._members = 0
        if self._timer is not None:
            self._timer.cancel()
        for task in self._seeking.values():
            task.cancel()
        await asyncio.gather(*self._seeking.values(), return_exceptions=True)

    async def answer(self, call: Message, *, led: bool) -> Message:
        """The answer of a gRPC call that was just made; raises what the call raises, and :class:`GivenUp`.

        ``led``: only a member that has a leader answers this call, so etcd works in the term that the answer names.
        """
        sent = _Sent(call, time.monotonic(), self._terms.latest)
        self._sent[sent] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._times.late, self._watch)
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
            self._times.took(time.monotonic() - sent.at)
            self._terms.answered(answer.header.raft_term)
            if self._terms.passed(sent.term):
                self._give_up(self._late())
        return answer

    @property
    def term(self) -> int:
        """The latest Raft term in which etcd worked."""
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

    def _late(self, after: float | None = None) -> Sequence[_Sent]:
        """The calls that are late, or have taken longer than ``after`` seconds; the oldest first."""
        before = time.monotonic() - (self._times.late if after is None else after)
        late = []
        for sent in self._sent:
            if sent.at > before:
                break
            late.append(sent)
        return late

    def _watch(self) -> None:
        """Check whether the oldest call is late, now and when it will be; runs while any are under way."""
        self._timer = None
        if late := self._late():
            self._give_up(late)
            self._seek()
        if self._sent:
            after = self._times.late
            due = next(iter(self._sent)).at + after - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(due if due > 0 else after / 2, self._watch)

    def _seek(self) -> None:
        for member in range(self._members):
            if member not in self._seeking or self._seeking[member].done():
                self._seeking[member] = asyncio.create_task(self._poll(member), name=f"etcd leader/{member}")

    async def _poll(self, member: int) -> None:
        """Ask one member repeatedly, while a call is late or a caller waits."""
        fast_until = time.monotonic() + FAST_POLLING
        while self._waiting or self._late():
            try:
                report = await self._ask(member)
            except EtcdError as error:
                logger.debug("etcd member %d does not report its leader: %s", member, error)
            else:
                self._reported(member, report)
            await asyncio.sleep(FAST_POLL_INTERVAL if time.monotonic() < fast_until else POLL_INTERVAL)

    def _reported(self, member: int, report: LeaderReport) -> None:
        late = self._late()
        if not report.leader or self._late(LATE_MOST):
            self.no_leader_at = time.monotonic()
        self._terms.reported(report)
        woken = [
            leader
            for leader, since in self._waiting.items()
            if self._terms.replaced(report, since) or (report.leader and not since)
        ]
        stranded = any(self._terms.replaced(report, sent.term) for sent in late)
        self._give_up(late)
        for sent in late:
            # The first calls of a new client are attributed to the first leader that is reported.
            sent.term = sent.term or self._terms.latest
        if woken or stranded:
            self._on_leader(member)
        for leader in woken:
            if not leader.done():
                leader.set_result(None)

    def _give_up(self, late: Sequence[_Sent]) -> None:
        """Cancel the late calls of earlier terms than that in which etcd works."""
        for sent in late:
            if self._terms.passed(sent.term):
                sent.given_up = True
                sent.call.cancel()
