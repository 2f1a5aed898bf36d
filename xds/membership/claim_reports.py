"""What members tell in their beats of takeovers and standstills, on this server's own monotonic clock. Pure.

A beat carries the time at which it was sent, by the sender's clock. The smallest difference between sending and arrival
over the last seconds is that clock's distance from ours plus the quickest way here: so times of a member become times
of ours that are late by that way at the most, whatever the wall clocks say, and what lies between two of them keeps its
length. One observer's clock so measures a whole takeover (docs/telemetry.md, "How long it took").
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from understudy.statesync.heartbeat.heartbeat import Beat, ClaimReport
from understudy.xds.membership.failure_detector import SECOND, Identity

WINDOW_NS = 10 * SECOND
"""Clocks drift by some 50 us a second at the worst: what is older than two of these says nothing of now."""
KEPT_NS = 60 * SECOND
GAP_NS = SECOND // 5
"""A time without beats that may have been a standstill of the sender's machine."""
_MOST_TRACES = 1_000


@dataclass(frozen=True, slots=True)
class Distance:
    """How far ahead of the sender's clock ours is, in ns: the smallest seen in this window and in the one before.

    ``arrived`` is when the last beat came.
    """

    least: int
    before: int
    since: int
    arrived: int

    @property
    def ns(self) -> int:
        """The best that is known."""
        return min(self.least, self.before)

    def seen(self, ahead: int, now: int) -> "Distance":
        """What is known after one more beat."""
        if now - self.since < WINDOW_NS:
            return replace(self, least=min(self.least, ahead), arrived=now)
        return Distance(ahead, self.least, now, now)


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without beats, which ended at ``end``, and the distance of the sender's clock before and after it, in ns.

    A clock that has fallen behind by then stood still with its machine, which tells its processes nothing.
    """

    end: int
    before: int
    after: int

    @property
    def standstill(self) -> tuple[int, int]:
        """From when to when the sender's clock stood still."""
        return min(self.end, self.end - (self.after - self.before)), self.end


@dataclass(frozen=True, slots=True)
class Claimed:
    """One claim of a takeover as :class:`ClaimReport` has it, with times in ns of our own clock."""

    member: str
    told: ClaimReport

    @property
    def ready(self) -> int:
        """When its slots were served: open, and the call that waited for them answered; 0 while they are not."""
        told = self.told
        if not told.opened or told.waiting:
            return 0
        return max(told.opened, told.answered if told.awaited else 0)


class Told:
    """The claims and requests that members told of; ``now`` is always this server's clock in ns."""

    def __init__(self) -> None:
        self._distances: dict[Identity, Distance] = {}
        self._claims: dict[str, tuple[int, dict[Identity, tuple[ClaimReport, ...]]]] = {}
        self._requests: dict[Identity, str] = {}
        self._sent: dict[Identity, int] = {}
        self._stood: dict[Identity, tuple[tuple[int, int], ...]] = {}
        self._gaps: dict[Identity, Gap] = {}

    def heard(self, beat: Beat, now: int) -> bool:
        """Take in a beat; whether it told anything new of a claim."""
        who = (beat.member, beat.boot)
        ends = [(round(seconds * SECOND), now - round(ago * SECOND)) for seconds, ago in beat.stood]
        self._stood[who] = tuple((end - length, end) for length, end in ends)
        if beat.request:
            self._requests[who] = beat.request
        if not beat.sent:
            return False
        self._sent[who] = beat.sent
        known = self._distances.get(who)
        ahead = now - beat.sent
        self._note_gap(who, known, ahead, now)
        self._distances[who] = known.seen(ahead, now) if known else Distance(ahead, ahead, now, now)
        news = False
        for trace in {claim.trace for claim in beat.claims}:
            claims = tuple(claim for claim in beat.claims if claim.trace == trace)
            _, by_member = self._claims.get(trace, (now, {}))
            news = news or by_member.get(who) != claims
            self._claims[trace] = (now, {**by_member, who: claims})
        if len(self._claims) > _MOST_TRACES or news:
            self._forget(now)
        return news

    def claims(self, trace: str, now: int) -> list[Claimed]:
        """The claims of the takeover with this trace id (hex); no time in them is later than ``now``."""
        _, by_member = self._claims.get(trace, (0, {}))
        found = []
        for who, claims in by_member.items():
            ahead = self._distances[who].ns
            found += [Claimed(who[0], _moved(claim, ahead, now)) for claim in claims]
        return found

    def last_beat(self, who: Identity) -> int:
        """When this boot of the member sent its last beat; 0 if it never told."""
        sent = self._sent.get(who, 0)
        return sent + self._distances[who].ns if sent else 0

    def stood_still(self, who: Identity, start: int, end: int) -> int:
        """For how long, in ns, this boot of the member stood still, if it did for most of ``[start, end]``; else 0."""
        gap = self._gaps.get(who)
        known = (*self._stood.get(who, ()), *((gap.standstill,) if gap else ()))
        found = [
            until - since for since, until in known if 2 * (min(end, until) - max(start, since)) >= max(end - start, 1)
        ]
        return max(found, default=0)

    def last_request(self, who: Identity) -> str:
        """The traceparent of the newest call that this boot of the member told to have answered; '' if none."""
        return self._requests.get(who, "")

    def keep(self, living: Iterable[Identity]) -> None:
        """Forget the clocks and requests of all others."""
        kept = set(living) | {who for _, by_member in self._claims.values() for who in by_member}
        self._distances = {who: known for who, known in self._distances.items() if who in kept}
        self._sent = {who: sent for who, sent in self._sent.items() if who in kept}
        self._stood = {who: stood for who, stood in self._stood.items() if who in kept}
        self._gaps = {who: gap for who, gap in self._gaps.items() if who in kept}
        self._requests = {who: text for who, text in self._requests.items() if who in kept}

    def _note_gap(self, who: Identity, known: Distance | None, ahead: int, now: int) -> None:
        gap = self._gaps.get(who)
        if known is not None and now - known.arrived >= GAP_NS:
            self._gaps[who] = Gap(now, known.ns, ahead)
        elif gap is not None:
            self._gaps[who] = replace(gap, after=min(gap.after, ahead))

    def _forget(self, now: int) -> None:
        newest = sorted(self._claims.items(), key=lambda item: -item[1][0])[:_MOST_TRACES]
        self._claims = {trace: told for trace, told in newest if now - told[0] < KEPT_NS}


def _moved(claim: ClaimReport, ahead: int, latest: int) -> ClaimReport:
    """The claim with its times moved by ``ahead`` ns, none of them later than ``latest``; 0 stays 0."""
    began, claimed, opened, answered = (
        min(latest, time + ahead) if time else 0 for time in (claim.began, claim.claimed, claim.opened, claim.answered)
    )
    return replace(claim, began=began, claimed=claimed, opened=opened, answered=answered)
