"""Pulses: small questions to other members' health ports, many a second, that tell a stopped process from a busy one.

A member's health port is answered by a thread that does nothing else (``understudy.proxy.health.health_port``). So a
member whose event loop is busy still answers within milliseconds, while one that is stopped answers nothing although
its kernel still takes the question. That makes a short silence here good evidence, where a late answer of an event loop
is none.

Questions go out from a thread as well, so that this process's own load is not mistaken for others' silence. Only a
member that has answered on a connection can fall silent on it: of any other nothing is said, and who wants to know has
to find out otherwise. A closed connection says nothing either.
"""

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from understudy.statesync.heartbeat.adaptive_timeout import Delays, adaptive_timeout
from understudy.statesync.heartbeat.challenge import STEADY_FOR
from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL
from understudy.statesync.pool.addresses import split_address

QUESTION = b"HEAD /live HTTP/1.1\r\nhost: understudy\r\n\r\n"
"""RFC 9110, 9.3.2: the answer to HEAD has no content, so it ends with its head."""
_END = b"\r\n\r\n"
KNOWN_FROM = 10
"""Answers on one connection from which on silence means something: a second, to know how late they may be."""
FACTOR = 10.0
"""How many times the slowest answer of late is granted on top. It takes 2 to 7 ms while a machine has a core to spare,
and much more when it has none: then a single one may take a third of a second."""
STOOD_STILL = 0.1
"""How late a round may be, in seconds, before it is this process that stood still."""
LINK_STANDS_AFTER = 0.15
"""Seconds after an unanswered question in which another process of the same site must have answered: then the link
carried packets both ways after that question. It is longer than a round trip between sites."""
GAP = 0.5
"""Seconds between two answers that are a gap: the link may have been cut meanwhile."""
CONNECT_AGAIN = 1.0
REDIAL = 2.0
"""Seconds of silence after which a new connection is tried: TCP may wait much longer before it sends again what was
lost. What the old connection has told counts until the new one is answered."""
_LARGEST = 4096

Identity = tuple[str, str]
"""A member and its boot id."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What one connection has told of one boot of a member. Seconds of one monotonic clock; ``asked`` 0: nothing open.

    ``asked`` is when the question was sent that waits for its answer, or when this process last stood still if that
    was later. ``worst`` is how long an answer took at the most within the last seconds. ``answered`` is when the last
    answer came, ``steady_from`` since when they come without a gap.
    """

    asked: float = 0.0
    answers: int = 0
    worst: float = 0.0
    answered: float = 0.0
    steady_from: float = 0.0

    def quiet(self, now: float) -> float:
        """For how long a question has gone unanswered."""
        return max(now - self.asked, 0.0) if self.asked else 0.0

    @property
    def known(self) -> bool:
        """Whether its silence would mean something."""
        return self.answers >= KNOWN_FROM

    def overdue(self, now: float, usual: float, cap: float) -> bool:
        """Whether it has been silent for longer than ``usual`` seconds, or more where answers were late of late."""
        return self.quiet(now) >= adaptive_timeout(usual, self.worst, cap, factor=FACTOR)


def is_running(pulse: Pulse | None, others: Iterable[Pulse], now: float, *, usual: float, cap: float) -> bool | None:
    """Whether the process of ``pulse`` runs; False: it answers no more while its connection stands, so it is stopped.

    None: nothing can be said. So it is while everybody else is silent too: then the fault is more likely on this side.
    ``usual`` and ``cap`` are as for :func:`understudy.statesync.heartbeat.adaptive_timeout`.
    """
    if pulse is None:
        return None
    if not pulse.overdue(now, usual, cap):
        return True
    apart = list(others)
    return None if apart and all(other.overdue(now, usual, cap) for other in apart) else False


def link_stands(silent: Pulse | None, others: Iterable[Pulse], since: float) -> bool:
    """Whether a process is silent, and not the link to its site: one of the ``others`` there has answered throughout.

    ``since`` is when the silence began at the latest; the unanswered question of ``silent`` may tell an earlier time.
    A link that has carried packets for less than :data:`STEADY_FOR` proves nothing: some connections recover seconds
    after others.
    """
    began = min(since, silent.asked) if silent is not None and silent.asked else since
    enough = began + LINK_STANDS_AFTER + (silent.worst if silent is not None else 0.0)
    return any(other.steady_from + STEADY_FOR <= began and other.answered >= enough for other in others)


@dataclass(slots=True)
class _Line:
    """A connection to one health port, since when it was ``dialled``, and what it and those before it have told."""

    address: str
    end: socket.socket | None = None
    dialled: float = 0.0
    ready: bool = False
    came: bytes = b""
    again: float = 0.0
    pulse: Pulse = Pulse()
    delays: Delays = field(default_factory=Delays)

    def silent(self, now: float) -> bool:
        """Whether this connection has been of no use for so long that another is to be tried."""
        waiting = not self.ready or bool(self.pulse.asked)
        return waiting and now - max(self.dialled, self.pulse.asked) >= REDIAL


class Pulses:
    """The pulses of some members, taken every ``BEAT_INTERVAL`` by a thread of its own. Use as a context manager.

    :meth:`watch` says whom to ask, from any thread; :meth:`pulse` and :meth:`others` tell what came of it.
    """

    def __init__(self) -> None:
        self._lines: dict[Identity, _Line] = {}
        self._wanted: Mapping[Identity, str] = {}
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._ending = False
        self._looked = float("-inf")
        self._thread = threading.Thread(target=self._run, name="pulses", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._wake.send(b"x")
        self._thread.join()
        self._wake.close()
        self._woken.close()

    def watch(self, wanted: Mapping[Identity, str]) -> None:
        """Ask these from now on, and nobody else: the health port (``host:port``) of each."""
        self._wanted = dict(wanted)

    def pulse(self, who: Identity) -> Pulse | None:
        """What is known of this boot of a member; None if its silence would mean nothing.

        So it is while the thread has not looked for two rounds: this process was frozen, or its thread is.
        """
        if time.monotonic() - self._looked > 2 * BEAT_INTERVAL:
            return None
        line = self._lines.get(who)
        pulse = line.pulse if line is not None else None
        return pulse if pulse is not None and pulse.known else None

    def others(self, who: Identity) -> list[Pulse]:
        """The pulses of all others whose silence would mean something."""
        return [line.pulse for other, line in list(self._lines.items()) if other != who and line.pulse.known]

    # -- the thread --

    def _run(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._woken, selectors.EVENT_READ)
            due = time.monotonic()
            while not self._ending:
                for key, _ in ready.select(max(due - time.monotonic(), 0.0)):
                    if isinstance(key.data, _Line):
                        self._hear(ready, key.data)
                now = time.monotonic()
                if now < due:
                    continue
                self._round(ready, now, stood_still=now - due > STOOD_STILL)
                self._looked = time.monotonic()
                due = max(due + BEAT_INTERVAL, now)
            for line in self._lines.values():
                _hang_up(ready, line)

    def _round(self, ready: selectors.BaseSelector, now: float, *, stood_still: bool) -> None:
        wanted = self._wanted
        for who in [who for who, line in self._lines.items() if wanted.get(who) != line.address]:
            _hang_up(ready, self._lines.pop(who))
        for who, address in wanted.items():
            line = self._lines.get(who)
            if line is None:
                line = self._lines[who] = _Line(address)
            if stood_still and line.pulse.asked:
                line.pulse = replace(line.pulse, asked=now)
            if line.end is not None and line.silent(now):
                _drop(ready, line)
            if line.end is None and now >= line.again:
                line.again = now + CONNECT_AGAIN
                line.dialled = now
                _connect(ready, line)
            elif line.ready and not line.pulse.asked:
                _ask(ready, line, now)

    @staticmethod
    def _hear(ready: selectors.BaseSelector, line: _Line) -> None:
        if line.end is None:
            return
        now = time.monotonic()
        if not line.ready:
            if line.end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                _hang_up(ready, line)
                return
            line.ready = True
            ready.modify(line.end, selectors.EVENT_READ, line)
            _ask(ready, line, now)
            return
        try:
            came = line.end.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        if not came or len(line.came) > _LARGEST:
            _hang_up(ready, line)
            return
        line.came += came
        if line.came.endswith(_END):
            line.came = b""
            pulse = line.pulse
            line.delays.note(pulse.quiet(now), now)
            steady_from = pulse.steady_from if now - pulse.answered < GAP else now
            line.pulse = Pulse(0.0, pulse.answers + 1, line.delays.worst, now, steady_from)


def _connect(ready: selectors.BaseSelector, line: _Line) -> None:
    with contextlib.suppress(OSError, ValueError):
        host, port = split_address(line.address)
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        line.end = socket.socket(family, kind, protocol)
        line.end.setblocking(False)
        line.end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BlockingIOError):
            line.end.connect(where)
        ready.register(line.end, selectors.EVENT_WRITE, line)
        return
    _hang_up(ready, line)


def _ask(ready: selectors.BaseSelector, line: _Line, now: float) -> None:
    if line.end is None:
        return
    try:
        line.end.send(QUESTION)
    except OSError:
        _hang_up(ready, line)
    else:
        line.pulse = replace(line.pulse, asked=line.pulse.asked or now)


def _drop(ready: selectors.BaseSelector, line: _Line) -> None:
    """End the connection; what is known of the pulse stays."""
    if line.end is not None:
        with contextlib.suppress(KeyError, ValueError):
            ready.unregister(line.end)
        line.end.close()
    line.end, line.ready, line.came = None, False, b""


def _hang_up(ready: selectors.BaseSelector, line: _Line) -> None:
    """End the connection, or note its end: nothing is known of the pulse any more."""
    _drop(ready, line)
    line.pulse = Pulse()
