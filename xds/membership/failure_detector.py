"""Who is alive: the book of signs of life, and its rules.

Pure: signs of life, closed streams, probe findings and the time go in; questions to probe and standings
come out. A member is told from its former self by its boot id, so everything here is about one
*(member, boot)*.

The rules lean to trust, since an unneeded demotion is worse than none. A closed or silent stream, or a
vanished record, is only a suspicion. Death needs a proof: a refused connection (or another boot answering),
silence towards probes on top of the suspicion, or a silent stream while another member misses its pulse
(:mod:`understudy.statesync.heartbeat.pulse`: that tells stopped from busy, so load grants nothing more). What nothing
was ever heard of is trusted; silence alone never condemns it. Beats and probes are carried by
:mod:`understudy.xds.membership.heartbeat_server`; what follows from a death is the controller's business.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from understudy.statesync.heartbeat.adaptive_timeout import Delays, adaptive_timeout
from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL
from understudy.statesync.pool.records import Member, MemberState

SECOND = 1_000_000_000

LATE = 150 * SECOND // 1000
"""A member that was so late within ``LOAD_WINDOW``, in ns, is so busy that its silence for twice that says nothing of
it, which is what Envoy waits for by default before it asks another member as well. Measured at 800 requests a second on
four cores: below 50 ms while all is well, up to 110 with a member frozen, 250 to 1,300 in overload."""

Identity = tuple[str, str]
"""A member and its boot id."""


class Standing(StrEnum):
    """What this server holds of one boot of a member."""

    TRUSTED = "trusted"
    """Registered, but never heard by this server."""
    ALIVE = "alive"
    """Its beats arrive."""
    SUSPECT = "suspect"
    """Its stream closed or fell silent, or its record vanished; being probed, and again until it is heard."""
    LOST = "lost"
    """Proven dead, or silent in every way."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Times in nanoseconds.

    ``silence``: a stream without a beat for so long is suspect. Then either another member that takes its pulse and
    misses it condemns it, or silence towards probes for ``unanswered``, or for ``running`` if another member feels it.
    ``load_cap``: both at most so much longer while the member, or this process, is under load. ``again``: between
    probes of one suspect.
    ``unheard``: a registered member that opens no stream for so long is probed. ``vanished``: how long a
    member whose record is gone, and whose address was never known, is given to come back. ``revival``: how
    long a boot that was declared lost must beat without a gap to count again. ``pause``: a tick this late
    means that this process itself stood still, so that nobody's silence counts until a full ``silence``
    later.
    """

    silence: int = int(3 * BEAT_INTERVAL * SECOND)
    unanswered: int = SECOND // 2
    running: int = 2 * SECOND
    load_cap: int = 2 * SECOND
    again: int = 1 * SECOND
    unheard: int = 2 * SECOND
    vanished: int = 5 * SECOND
    revival: int = 1 * SECOND
    pause: int = SECOND // 4


@dataclass(frozen=True, slots=True)
class Question:
    """A probe to be carried out: does this boot of the member still answer at ``peer`` (``host:port``)?

    ``patience``: how long it may be silent, in ns.
    """

    member: str
    boot: str
    peer: str
    patience: int = Rules().unanswered


class Finding(StrEnum):
    """What a probe came back with."""

    ANSWERED = "answered"
    REFUSED = "refused"
    SILENT = "silent"
    VOID = "void"
    """Nothing can be said: this process stood still meanwhile."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What is known of one boot of a member. Times in ns; 0 means never.

    ``streams`` are the heartbeat streams it holds open. ``state``, ``stall`` and ``pulses`` (whose it takes,
    and whether they run) are what its newest beat said.
    ``last_sign`` is the newest proof of life: a beat, an answered probe, or the moment its record was first
    seen. ``closed_at`` is when its last stream ended while it was in good standing: until then its process was there.
    """

    member: str
    boot: str
    standing: Standing = Standing.TRUSTED
    peer: str = ""
    recorded: bool = False
    streams: frozenset[int] = frozenset()
    state: MemberState | None = None
    reason: str = ""
    applied: int = 0
    stall: int = 0
    lacking: int = 0
    pulses: Mapping[Identity, bool] = field(default_factory=dict)
    last_sign: int = 0
    closed_at: int = 0
    first_seen: int = 0
    vanished_at: int = 0
    beating_since: int = 0
    next_probe: int = 0
    probing: bool = False
    lost_at: int = 0
    cause: str = ""

    @property
    def heard(self) -> bool:
        """Whether this server ever had a beat from it."""
        return self.beating_since != 0

    @property
    def quiet_since(self) -> int:
        """Since when nothing at all is known of it: neither a record nor a sign of life."""
        return max(self.first_seen, self.last_sign, self.vanished_at)


class LivenessBook:
    """The pulses of a pool's members, by boot.

    ``version`` rises with every change that others should act on.
    """

    def __init__(self, rules: Rules = Rules()) -> None:
        self.rules = rules
        self.version = 0
        self._pulses: dict[Identity, Pulse] = {}
        self._last_tick = 0
        self._late = Delays()
        self._silence_counts_from = 0

    @property
    def pulses(self) -> Mapping[Identity, Pulse]:
        """All pulses, by member and boot."""
        return self._pulses

    @property
    def late(self) -> bool:
        """Whether most of the members that beat here are late by :data:`LATE`: the pool is busy, not one of them."""
        beating = [pulse for pulse in self._pulses.values() if pulse.standing is Standing.ALIVE and pulse.streams]
        return sum(pulse.stall >= LATE for pulse in beating) * 2 > len(beating)

    def patience(self, pulse: Pulse) -> int:
        """How long this member may be silent now, in ns: longer while its beats, or our own delays, tell of load."""
        return self._with_load(self.rules.silence, pulse)

    def _with_load(self, usual: int, pulse: Pulse) -> int:
        late = max(pulse.stall, round(self._late.worst * SECOND))
        return int(adaptive_timeout(usual, late, self.rules.load_cap))

    def lost(self, member: str, boot: str) -> Pulse | None:
        """The pulse of this boot if it is lost, else None."""
        pulse = self._pulses.get((member, boot))
        return pulse if pulse is not None and pulse.standing is Standing.LOST else None

    def state_of(self, member: Member) -> MemberState:
        """LOST if this server found so, else what the open stream said last, else what the record says."""
        pulse = self._pulses.get((member.member, member.boot))
        if pulse is None:
            return member.state
        if pulse.standing is Standing.LOST:
            return MemberState.LOST
        return pulse.state if pulse.streams and pulse.state is not None else member.state

    def record(self, members: Iterable[Member], owning: Iterable[Identity], now: int) -> None:
        """Take in all member records as they stand now, and which boots the owner records name."""
        records = {(record.member, record.boot): record for record in members}
        newest = dict(records.keys())
        owners = set(owning)
        for identity in self._pulses.keys() | records.keys() | owners:
            record = records.get(identity)
            pulse = self._pulses.get(identity) or Pulse(*identity, first_seen=now, last_sign=now if record else 0)
            if record is not None:
                pulse = replace(pulse, peer=record.peer, recorded=True, vanished_at=0)
            elif identity not in owners and not pulse.streams:
                self._pulses.pop(identity, None)
                continue
            elif pulse.recorded or not pulse.vanished_at:
                pulse = self._vanished(pulse, newest.get(pulse.member), now)
            self._keep(pulse)

    def beat(
        self,
        stream: int,
        member: str,
        boot: str,
        state: MemberState,
        now: int,
        *,
        reason: str = "",
        applied: int = 0,
        stall: int = 0,
        lacking: int = 0,
        pulses: Mapping[Identity, bool] | None = None,
    ) -> None:
        """A beat arrived on a heartbeat stream; ``stream`` is any number that tells it from others. ``stall`` in ns."""
        pulse = self._pulses.get((member, boot)) or Pulse(member, boot, first_seen=now)
        gap = now - pulse.last_sign >= self.patience(pulse) or not pulse.streams
        since = now if gap or not pulse.beating_since else pulse.beating_since
        standing, lost_at, cause = pulse.standing, pulse.lost_at, pulse.cause
        if standing is not Standing.LOST or now - since >= self.rules.revival:
            standing, lost_at, cause = Standing.ALIVE, 0, ""
        self._keep(
            replace(
                pulse,
                standing=standing,
                lost_at=lost_at,
                cause=cause,
                streams=pulse.streams | {stream},
                state=state,
                reason=reason,
                applied=applied,
                stall=stall,
                lacking=lacking,
                pulses=pulses or {},
                last_sign=now,
                closed_at=0,
                beating_since=since,
            )
        )

    def closed(self, stream: int, member: str, boot: str, now: int) -> None:
        """A heartbeat stream ended, for whatever reason."""
        pulse = self._pulses.get((member, boot))
        if pulse is None:
            return
        pulse = replace(pulse, streams=pulse.streams - {stream})
        if not pulse.streams and pulse.standing is Standing.ALIVE:
            pulse = replace(pulse, standing=Standing.SUSPECT, next_probe=now, closed_at=now)
        self._keep(pulse)

    def due(self, now: int) -> tuple[Question, ...]:
        """Let the time pass: find the silent, and return the probes that are to be carried out now.

        Call it every 100 ms or so, and after :meth:`closed` and :meth:`record`. Each question must be
        answered.
        """
        since_last = now - self._last_tick if self._last_tick else 0
        self._late.note(since_last / SECOND - BEAT_INTERVAL, now / SECOND)
        if since_last > self.rules.pause:
            self._silence_counts_from = now
        self._last_tick = now
        questions = []
        for pulse in list(self._pulses.values()):
            aged = self._aged(pulse, now)
            if self._wants_probe(aged, now):
                runs, _ = self._felt(aged, now)
                usual = max(self.rules.unanswered, self.rules.running) if runs else self.rules.unanswered
                unanswered = self._with_load(usual, aged)
                questions.append(Question(aged.member, aged.boot, aged.peer, unanswered))
                aged = replace(aged, probing=True)
            self._keep(aged)
        return tuple(questions)

    def answered(self, question: Question, finding: Finding, now: int, *, boot: str = "") -> None:
        """A probe came back; ``boot`` is the boot id that answered, if one did."""
        pulse = self._pulses.get((question.member, question.boot))
        if pulse is None:
            return
        pulse = replace(pulse, probing=False, next_probe=now + self.rules.again)
        if pulse.standing not in (Standing.SUSPECT, Standing.TRUSTED):
            self._keep(pulse)
        elif finding is Finding.ANSWERED and boot == question.boot:
            self._keep(replace(pulse, last_sign=now))
        elif finding is Finding.ANSWERED:
            self._keep(_dead(pulse, now, f"restarted: boot {boot} answers at {question.peer}"))
        elif finding is Finding.REFUSED:
            self._keep(_dead(pulse, now, f"connection refused at {question.peer}"))
        elif finding is Finding.SILENT and self._silence_condemns(pulse, now):
            self._keep(_dead(pulse, now, f"silent at {question.peer}"))
        else:
            self._keep(pulse)

    def _vanished(self, pulse: Pulse, successor: str | None, now: int) -> Pulse:
        """The record is gone or names another boot, yet this one still owns slots or holds a stream."""
        pulse = replace(pulse, recorded=False, vanished_at=now)
        if pulse.streams or pulse.standing is Standing.LOST:
            return pulse
        if successor is not None:
            return _dead(pulse, now, f"restarted: boot {successor} is registered")
        return replace(pulse, standing=Standing.SUSPECT, next_probe=now) if pulse.peer else pulse

    def _aged(self, pulse: Pulse, now: int) -> Pulse:
        rules = self.rules
        quiet = now - max(pulse.last_sign, self._silence_counts_from)
        if pulse.standing in (Standing.ALIVE, Standing.SUSPECT) and pulse.heard and quiet >= rules.silence:
            runs, witness = self._felt(pulse, now)
            if runs is False:
                return _dead(pulse, now, f"silent, and {witness} misses its pulse")
        if pulse.standing is Standing.ALIVE and quiet >= self.patience(pulse):
            return replace(pulse, standing=Standing.SUSPECT, next_probe=now)
        nowhere = not pulse.recorded and not pulse.peer and not pulse.streams
        if nowhere and pulse.standing is not Standing.LOST and now - pulse.quiet_since >= rules.vanished:
            return _dead(pulse, now, "its record in etcd is gone and nothing is heard of it")
        return pulse

    def _felt(self, pulse: Pulse, now: int) -> tuple[bool | None, str]:
        """Whether it runs, and which member in good standing, heard just now, says so; None: nobody takes its pulse.

        If they disagree it runs.
        """
        who = (pulse.member, pulse.boot)
        said = {
            other.pulses[who]: other.member
            for other in self._pulses.values()
            if who in other.pulses and other.standing is Standing.ALIVE and now - other.last_sign < self.rules.silence
        }
        return (True, said[True]) if True in said else (False, said[False]) if said else (None, "")

    def _wants_probe(self, pulse: Pulse, now: int) -> bool:
        if pulse.probing or not pulse.peer or now < pulse.next_probe:
            return False
        if pulse.standing is Standing.TRUSTED:
            return now - pulse.first_seen >= self.rules.unheard
        return pulse.standing is Standing.SUSPECT

    def _silence_condemns(self, pulse: Pulse, now: int) -> bool:
        """Silence needs a second witness: a vanished record, or a stream that was once there.

        And it must not be our own: while everybody else is silent too, the fault is more likely on this side.
        """
        if not pulse.recorded:
            return True
        if not pulse.heard:
            return False
        others = [
            p for p in self._pulses.values() if p.member != pulse.member and p.heard and p.standing is not Standing.LOST
        ]
        return not others or any(now - p.last_sign < self.patience(p) for p in others)

    def _keep(self, pulse: Pulse) -> None:
        identity = (pulse.member, pulse.boot)
        before = self._pulses.get(identity)
        if before == pulse:
            return
        self._pulses[identity] = pulse
        if before is None or _public(before) != _public(pulse):
            self.version += 1


def _public(pulse: Pulse) -> tuple[bool, MemberState | None, bool]:
    """The part of a pulse that others act on."""
    return pulse.standing is Standing.LOST, pulse.state if pulse.streams else None, pulse.stall >= LATE


def _dead(pulse: Pulse, now: int, cause: str) -> Pulse:
    return replace(pulse, standing=Standing.LOST, lost_at=now, cause=cause)
