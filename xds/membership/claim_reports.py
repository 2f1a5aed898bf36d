"""What members report in their beats about claims and standstills, on this server's own monotonic clock. Pure.

A beat carries the time at which it was sent, by the sender's clock. The smallest difference between sending and arrival
over the last seconds is the offset between the two clocks plus the shortest delay on the way. With it a member's time
becomes a time of ours that is late by that delay at most, whatever the wall clocks say, and the length between two such
times stays the same. So one clock measures a whole takeover (docs/telemetry.md, "How long it took").
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec

from understudy.statesync.heartbeat.heartbeat import Beat, ClaimReport
from understudy.xds.membership.member_health import SECOND, MemberBoot

WINDOW_NS = 10 * SECOND
"""Clocks drift by up to 50 us a second, so offsets older than two windows are not used."""
KEEP_NS = 60 * SECOND
GAP_NS = SECOND // 5
"""A time without beats of this length may have been a standstill of the sender's machine."""
_MOST_TRACES = 1_000
_MOST_CLAIMS = 1_000
"""Claims of one member in one takeover."""


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """How far our clock is ahead of the sender's, in ns: the smallest value in this window and in the one before.

    ``arrived`` is when the last beat arrived.
    """

    least: int
    before: int
    since: int
    arrived: int

    @property
    def ns(self) -> int:
        """The best estimate."""
        return min(self.least, self.before)

    def with_beat(self, ahead: int, now: int) -> "ClockOffset":
        """The offset after one more beat."""
        if now - self.since < WINDOW_NS:
            return replace(self, least=min(self.least, ahead), arrived=now)
        return ClockOffset(ahead, self.least, now, now)


@dataclass(frozen=True, slots=True)
class BeatGap:
    """A time without beats that ended at ``end``, and the offset of the sender's clock before and after it, in ns.

    If that clock has fallen behind, it stood still with its machine. The processes there cannot know.
    """

    end: int
    before: int
    after: int

    @property
    def standstill(self) -> tuple[int, int]:
        """From when to when the sender's clock stood still."""
        return min(self.end, self.end - (self.after - self.before)), self.end


class ReportedClaim(msgspec.Struct, frozen=True):
    """One claim of a takeover as a member reported it, with times in ns of our own clock."""

    member: str
    report: ClaimReport

    @property
    def served_at(self) -> int:
        """When its slots were served: open, and the call that waited for them answered; 0 while they are not."""
        report = self.report
        if not report.opened or report.waiting:
            return 0
        return max(report.opened, report.answered if report.awaited else 0)


class ClaimReports:
    """The claims and requests that members reported; ``now`` is always this server's clock in ns."""

    def __init__(self) -> None:
        self._offsets: dict[MemberBoot, ClockOffset] = {}
        self._claims: dict[str, tuple[int, dict[MemberBoot, tuple[ClaimReport, ...]]]] = {}
        self._requests: dict[MemberBoot, str] = {}
        self._sent: dict[MemberBoot, int] = {}
        self._standstills: dict[MemberBoot, tuple[tuple[int, int], ...]] = {}
        self._gaps: dict[MemberBoot, BeatGap] = {}

    def on_beat(self, beat: Beat, now: int) -> bool:
        """Take in a beat; returns whether it reports anything new about a claim."""
        who = (beat.member, beat.boot)
        ends = [(round(seconds * SECOND), now - round(ago * SECOND)) for seconds, ago in beat.stood]
        self._standstills[who] = tuple((end - length, end) for length, end in ends)
        if beat.request:
            self._requests[who] = beat.request
        if not beat.sent:
            return False
        self._sent[who] = beat.sent
        known = self._offsets.get(who)
        ahead = now - beat.sent
        self._note_gap(who, known, ahead, now)
        self._offsets[who] = known.with_beat(ahead, now) if known else ClockOffset(ahead, ahead, now, now)
        news = False
        for trace in {claim.trace for claim in beat.claims}:
            _, by_member = self._claims.get(trace, (now, {}))
            before = by_member.get(who, ())
            claims = _merged(before, (claim for claim in beat.claims if claim.trace == trace))
            news = news or before != claims
            self._claims[trace] = (now, {**by_member, who: claims})
        if len(self._claims) > _MOST_TRACES or news:
            self._forget(now)
        return news

    def claims_of(self, trace: str, now: int) -> list[ReportedClaim]:
        """The claims of the takeover with this trace id (hex); no time in them is later than ``now``."""
        _, by_member = self._claims.get(trace, (0, {}))
        found = []
        for who, claims in by_member.items():
            ahead = self._offsets[who].ns
            found += [ReportedClaim(who[0], _shifted(claim, ahead, now)) for claim in claims]
        return found

    def last_beat(self, who: MemberBoot) -> int:
        """When this boot of the member sent its last beat; 0 if it never said."""
        sent = self._sent.get(who, 0)
        return sent + self._offsets[who].ns if sent else 0

    def standstill(self, who: MemberBoot, start: int, end: int) -> int:
        """For how long, in ns, this boot of the member stood still, if it did for most of ``[start, end]``; else 0."""
        gap = self._gaps.get(who)
        known = (*self._standstills.get(who, ()), *((gap.standstill,) if gap else ()))
        found = [
            until - since for since, until in known if 2 * (min(end, until) - max(start, since)) >= max(end - start, 1)
        ]
        return max(found, default=0)

    def last_request(self, who: MemberBoot) -> str:
        """The traceparent of the newest call that this boot of the member reported as answered; '' if none."""
        return self._requests.get(who, "")

    def forget_all_but(self, known_boots: Iterable[MemberBoot]) -> None:
        """Forget the clocks and requests of all other boots, unless a claim of theirs is kept."""
        kept = set(known_boots) | {who for _, by_member in self._claims.values() for who in by_member}
        self._offsets = {who: known for who, known in self._offsets.items() if who in kept}
        self._sent = {who: sent for who, sent in self._sent.items() if who in kept}
        self._standstills = {who: known for who, known in self._standstills.items() if who in kept}
        self._gaps = {who: gap for who, gap in self._gaps.items() if who in kept}
        self._requests = {who: text for who, text in self._requests.items() if who in kept}

    def _note_gap(self, who: MemberBoot, known: ClockOffset | None, ahead: int, now: int) -> None:
        gap = self._gaps.get(who)
        if known is not None and now - known.arrived >= GAP_NS:
            self._gaps[who] = BeatGap(now, known.ns, ahead)
        elif gap is not None:
            self._gaps[who] = replace(gap, after=min(gap.after, ahead))

    def _forget(self, now: int) -> None:
        newest = sorted(self._claims.items(), key=lambda item: -item[1][0])[:_MOST_TRACES]
        self._claims = {trace: claims for trace, claims in newest if now - claims[0] < KEEP_NS}


def _merged(known: Iterable[ClaimReport], told: Iterable[ClaimReport]) -> tuple[ClaimReport, ...]:
    """The claims of one member, with what its beat tells of them.

    A beat tells of the newest ones only, and callers may have made a member claim a slot at a time.
    """
    claims = {(claim.began, claim.claimed): claim for claim in known}
    claims.update(((claim.began, claim.claimed), claim) for claim in told)
    return tuple(claims.values())[-_MOST_CLAIMS:]


def _shifted(claim: ClaimReport, ahead: int, latest: int) -> ClaimReport:
    """The claim with its times shifted by ``ahead`` ns, none of them later than ``latest``; 0 stays 0."""
    began, claimed, opened, answered = (
        min(latest, time + ahead) if time else 0 for time in (claim.began, claim.claimed, claim.opened, claim.answered)
    )
    return replace(claim, began=began, claimed=claimed, opened=opened, answered=answered)
