"""The failure detector: decides from signs of life which members are alive.

Pure. Beats, closed streams, records, probe results and the time go in. Probes to carry out come out, and every change
that others must act on is passed to ``on_change`` as a :class:`MemberChange`.

A wrong demotion is worse than a late one. So a closed or silent stream, or a vanished record, is only a suspicion.
A member is lost only with a proof:

* its host refuses the connection, or another boot answers;
* it is a suspect and answers no probe;
* its stream is silent and another member misses its pulse (:mod:`understudy.statesync.heartbeat.pulse`). That tells a
  stopped process from a busy one, so load gives no extra time here.

While a whole site is silent and members of another one are not, the link between them may be cut. Then silence proves
something only if the member does not answer through etcd either (:mod:`understudy.statesync.heartbeat.challenge`).

How long each of these takes is :class:`~understudy.xds.membership.member_health.DetectorTimeouts`. A pool's spec sets
it with ``liveness`` (``Liveness`` in :mod:`understudy.statesync.pool.spec_parts`).

A member that was never heard is trusted, and silence alone never makes it lost. Beats and probes are carried by
:mod:`understudy.xds.membership.heartbeat_server`. What follows from a death is decided by the controller.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from understudy.statesync.heartbeat.adaptive_timeout import Delays, adaptive_timeout
from understudy.statesync.heartbeat.challenge import STEADY_FOR
from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL
from understudy.statesync.pool.records import Member, MemberState
from understudy.xds.membership.member_health import (
    LATE,
    SECOND,
    Death,
    DetectorTimeouts,
    LivenessState,
    MemberBoot,
    MemberChange,
    MemberHealth,
    Probe,
    ProbeOutcome,
)

DEFAULT_TIMEOUTS = DetectorTimeouts()
_STEADY_FOR = round(STEADY_FOR * SECOND)


class FailureDetector:
    """The health of a pool's members, by boot.

    Args:
        timeouts: may be replaced at any time by assigning :attr:`timeouts`.
        on_change: called with every change that others act on.
    """

    def __init__(
        self,
        timeouts: DetectorTimeouts = DEFAULT_TIMEOUTS,
        on_change: Callable[[MemberChange], None] = lambda _: None,
    ) -> None:
        self.timeouts = timeouts
        self._on_change = on_change
        self._members: dict[MemberBoot, MemberHealth] = {}
        self._last_tick = 0
        self._own_delays = Delays()
        self._silence_counts_from = 0
        self._sites = _Sites({}, 0)

    @property
    def members(self) -> Mapping[MemberBoot, MemberHealth]:
        """What is known of every member, by member and boot."""
        return self._members

    @property
    def most_late(self) -> bool:
        """Whether most of the members that beat here are late by :data:`LATE`: the pool is busy, not one of them."""
        beating = [health for health in self._members.values() if health.beating]
        return sum(health.stall >= LATE for health in beating) * 2 > len(beating)

    def silence_timeout(self, health: MemberHealth) -> int:
        """How long this member may be silent now, in ns: longer while its beats, or our own delays, tell of load."""
        return self._with_load(self.timeouts.silence, health)

    def _with_load(self, usual: int, health: MemberHealth) -> int:
        late = max(health.stall, round(self._own_delays.worst * SECOND))
        return int(adaptive_timeout(usual, late, self.timeouts.load_cap))

    def death_of(self, member: str, boot: str) -> Death | None:
        """The death of this boot; None if it is not lost."""
        health = self._members.get((member, boot))
        return health.death if health is not None else None

    def state_of(self, member: Member) -> MemberState:
        """LOST if this server found so, else what the open stream said last, else what the record says."""
        health = self._members.get((member.member, member.boot))
        if health is None:
            return member.state
        if health.liveness is LivenessState.LOST:
            return MemberState.LOST
        return health.state if health.streams and health.state is not None else member.state

    def update_records(self, members: Iterable[Member], owning: Iterable[MemberBoot], now: int) -> None:
        """Take in all member records as they are now, and the boots that the owner records name."""
        records = {(record.member, record.boot): record for record in members}
        newest = dict(records.keys())
        owners = set(owning)
        for who in self._members.keys() | records.keys() | owners:
            record = records.get(who)
            health = self._members.get(who) or MemberHealth(*who, first_seen=now, last_sign=now if record else 0)
            if record is not None:
                health = replace(health, peer=record.peer, site=record.site, recorded=True, vanished_at=0)
            elif who not in owners and not health.streams:
                self._members.pop(who, None)
                continue
            elif health.recorded or not health.vanished_at:
                health = self._without_record(health, newest.get(health.member), now)
            self._store(health)

    def on_beat(
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
        pulses: Mapping[MemberBoot, bool] | None = None,
    ) -> None:
        """A beat arrived on a heartbeat stream; ``stream`` is a number that no other stream has. ``stall`` in ns."""
        health = self._members.get((member, boot)) or MemberHealth(member, boot, first_seen=now)
        silent = health.unlinked or now - health.last_sign >= self.silence_timeout(health)
        gap = silent or not health.streams
        since = now if gap or not health.beating_since else health.beating_since
        liveness, death = health.liveness, health.death
        if liveness is not LivenessState.LOST or now - since >= self.timeouts.revival:
            liveness, death = LivenessState.ALIVE, None
        self._store(
            replace(
                health,
                liveness=liveness,
                death=death,
                streams=health.streams | {stream},
                state=state,
                reason=reason,
                applied=applied,
                stall=stall,
                lacking=lacking,
                pulses=pulses or {},
                last_sign=now,
                unlinked=0,
                closed_at=0,
                beating_since=since,
            )
        )

    def on_stream_closed(self, stream: int, member: str, boot: str, now: int) -> None:
        """A heartbeat stream ended, for whatever reason."""
        health = self._members.get((member, boot))
        if health is None:
            return
        health = replace(health, streams=health.streams - {stream})
        if not health.streams and health.liveness is LivenessState.ALIVE:
            health = replace(health, liveness=LivenessState.SUSPECT, next_probe=now, closed_at=now)
        self._store(health)

    def due_probes(self, now: int) -> tuple[Probe, ...]:
        """Let the time pass: find silent members, and return the probes to carry out now.

        Call it every 100 ms or so, and after :meth:`on_stream_closed` and :meth:`update_records`. The result of each
        probe must be given to :meth:`on_probe_outcome`.
        """
        since_last = now - self._last_tick if self._last_tick else 0
        self._own_delays.note(since_last / SECOND - BEAT_INTERVAL, now / SECOND)
        if since_last > self.timeouts.pause:
            self._silence_counts_from = now
        self._last_tick = now
        probes, pulses = [], _Pulses(self._members, now - self.timeouts.silence)
        self._sites = _Sites(self._members, now - self.timeouts.silence // 2)
        for health in list(self._members.values()):
            aged = self._after_silence(health, now, pulses)
            if self._needs_probe(aged, now):
                runs, _ = pulses.report((aged.member, aged.boot))
                usual = max(self.timeouts.unanswered, self.timeouts.running) if runs else self.timeouts.unanswered
                patience = self.timeouts.site_patience if self._sites.may_be_cut_off(aged) else 0
                through_etcd = self._with_load(patience, aged) if patience else 0
                probes.append(Probe(aged.member, aged.boot, aged.peer, self._with_load(usual, aged), through_etcd))
                aged = replace(aged, probing=True)
            self._store(aged)
        return tuple(probes)

    def on_probe_outcome(self, probe: Probe, result: ProbeOutcome, now: int, *, boot: str = "") -> None:
        """A probe ended; ``boot`` is the boot id that answered, if one did."""
        health = self._members.get((probe.member, probe.boot))
        if health is None:
            return
        health = replace(health, probing=False, next_probe=now + self.timeouts.probe_interval)
        if health.liveness not in (LivenessState.SUSPECT, LivenessState.TRUSTED):
            self._store(health)
        elif result is ProbeOutcome.ANSWERED and boot == probe.boot:
            self._store(replace(health, last_sign=now, unlinked=0))
        elif result is ProbeOutcome.THROUGH_ETCD:
            self._store(replace(health, last_sign=now, unlinked=health.unlinked or now))
        elif result is ProbeOutcome.ANSWERED:
            self._store(_lost(health, now, f"restarted: boot {boot} answers at {probe.peer}"))
        elif result is ProbeOutcome.REFUSED:
            self._store(_lost(health, now, f"connection refused at {probe.peer}"))
        elif result is ProbeOutcome.SILENT and self._silence_is_proof(health, probe, now):
            where = f"{probe.peer} and through etcd" if probe.etcd_timeout else probe.peer
            self._store(_lost(health, now, f"silent at {where}"))
        else:
            self._store(health)

    def _without_record(self, health: MemberHealth, successor: str | None, now: int) -> MemberHealth:
        """The record is gone or names another boot, but this boot still owns slots or holds a stream."""
        health = replace(health, recorded=False, vanished_at=now)
        if health.streams or health.liveness is LivenessState.LOST:
            return health
        if successor is not None:
            return _lost(health, now, f"restarted: boot {successor} is registered")
        return replace(health, liveness=LivenessState.SUSPECT, next_probe=now) if health.peer else health

    def _after_silence(self, health: MemberHealth, now: int, pulses: "_Pulses") -> MemberHealth:
        """The health after the time that has passed: a suspect, or lost, if it was silent for too long."""
        timeouts = self.timeouts
        silent = now - max(health.last_sign, self._silence_counts_from)
        if (
            health.liveness in (LivenessState.ALIVE, LivenessState.SUSPECT)
            and health.heard
            and silent >= timeouts.silence
        ):
            runs, witness = pulses.report((health.member, health.boot))
            if runs is False and not self._sites.may_be_cut_off(health):
                return _lost(health, now, f"silent, and {witness} misses its pulse")
        if health.liveness is LivenessState.ALIVE and silent >= self.silence_timeout(health):
            return replace(health, liveness=LivenessState.SUSPECT, next_probe=now)
        no_trace = not health.recorded and not health.peer and not health.streams
        if no_trace and health.liveness is not LivenessState.LOST and now - health.unknown_since >= timeouts.vanished:
            return _lost(health, now, "its record in etcd is gone and nothing is heard of it")
        return health

    def _needs_probe(self, health: MemberHealth, now: int) -> bool:
        if health.probing or not health.peer or now < health.next_probe:
            return False
        if health.liveness is LivenessState.TRUSTED:
            return now - health.first_seen >= self.timeouts.unheard
        return health.liveness is LivenessState.SUSPECT

    def _silence_is_proof(self, health: MemberHealth, probe: Probe, now: int) -> bool:
        """Whether an unanswered probe proves a death.

        It needs a second witness: a vanished record, or a stream that was open before. And while all other members are
        silent too, the fault is more likely on this side. If a whole site is silent, etcd must have been asked.
        """
        if not probe.etcd_timeout and self._sites.may_be_cut_off(health):
            return False
        if not health.recorded:
            return True
        if not health.heard:
            return False
        others = [
            other
            for other in self._members.values()
            if other.member != health.member and other.heard and other.liveness is not LivenessState.LOST
        ]
        return not others or any(now - other.last_sign < self.silence_timeout(other) for other in others)

    def _store(self, health: MemberHealth) -> None:
        who = (health.member, health.boot)
        before = self._members.get(who)
        if before is health or before == health:  # most often nothing has changed: no need to compare all fields
            return
        self._members[who] = health
        if before is None or _public(before) != _public(health):
            self._on_change(MemberChange(before, health))


class _Pulses:
    """What members that were heard since a time say of the pulses that they take, at one look."""

    def __init__(self, members: Mapping[MemberBoot, MemberHealth], heard_since: int) -> None:
        self._members = members
        self._heard_since = heard_since
        self._reports: dict[MemberBoot, dict[bool, str]] | None = None

    def report(self, who: MemberBoot) -> tuple[bool | None, str]:
        """Whether a process runs, and which member says so; None if no member that is alive takes its pulse.

        If they disagree the process runs.
        """
        if self._reports is None:
            self._reports = self._read()
        found = self._reports.get(who, {})
        return (True, found[True]) if True in found else (False, found[False]) if found else (None, "")

    def _read(self) -> dict[MemberBoot, dict[bool, str]]:
        """All reports, by the process that they are about."""
        reports: dict[MemberBoot, dict[bool, str]] = {}
        for health in self._members.values():
            if health.liveness is LivenessState.ALIVE and health.last_sign > self._heard_since:
                for who, runs in health.pulses.items():
                    reports.setdefault(who, {})[runs] = health.member
        return reports


class _Sites:
    """Which sites the members are on, and since when one of each is heard, as of ``since``, at one look."""

    def __init__(self, members: Mapping[MemberBoot, MemberHealth], since: int) -> None:
        living = [health for health in members.values() if health.liveness is not LivenessState.LOST]
        self._sites = {health.site for health in living if health.site}
        self._heard: dict[str, int] = {}
        for health in living:
            if health.last_sign >= since and health.beating and not health.unlinked:
                earliest = self._heard.get(health.site, health.beating_since)
                self._heard[health.site] = min(earliest, health.beating_since)

    def may_be_cut_off(self, health: MemberHealth) -> bool:
        """Whether the silence of this member may be that of the link to its site, and not its own.

        It is not if another member of the site was heard for ``STEADY_FOR`` before, and since. A link that has just
        come back proves nothing: some streams recover seconds after others.
        """
        silent_from = health.unlinked or health.last_sign
        heard_from = self._heard.get(health.site)
        heard = heard_from is not None and heard_from + _STEADY_FOR <= silent_from
        return bool(health.site) and not heard and bool(self._sites - {health.site})


def _public(health: MemberHealth) -> tuple[bool, MemberState | None, bool]:
    """The part of a member's health that others act on."""
    return health.liveness is LivenessState.LOST, health.state if health.streams else None, health.stall >= LATE


def _lost(health: MemberHealth, now: int, cause: str) -> MemberHealth:
    """The health with its death.

    A member that falls silent may have lived until its next beat was due. Of one that was only probed nothing is known
    between its last sign of life and now.
    """
    closed = health.closed_at if health.last_sign <= health.closed_at <= now else 0
    doubt = now - health.last_sign
    if health.streams:
        doubt = min(doubt, int(BEAT_INTERVAL * SECOND) + health.stall)
    death = Death(health.boot, cause, health.last_sign, now, closed, doubt, health.site)
    return replace(health, liveness=LivenessState.LOST, death=death)
