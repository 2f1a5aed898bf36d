"""Which version of each pool's part front Envoys get, so that one pool's rejected part holds up no other pool.

The routes of all pools of a port are one resource, and Envoy takes it or rejects it (NACK) as a whole. After a
rejection the parts that no Envoy has accepted before are the suspects. A single suspect is held: Envoys get the part
of its pool that they accepted last, or nothing of a pool that is new. Of several suspects only half are offered at a
time, so each rejection halves them. All other pools go on meanwhile.

A part of a spec that Envoys accepted before counts as accepted, and the part of the last such spec stands in for one
that is held. So a start changes nothing. Only if such a part is rejected all the same (another version of Envoy, or of
this process), or if no accepted spec is known, a rejected table is offered without one of its pools, each in turn.
Until Envoy accepts one of these, it keeps the table that it has, so no other pool loses its routes. If it accepts none,
two pools are at fault, and the search begins again after a pause.

A held part is offered again when it changes, but not before a pause, which doubles with each rejection of the pool.
Plain data and times in; no I/O.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from understudy.statesync.pool.spec_front import FrontUse, first_conflict
from understudy.telemetry.timing.backoff import Backoff
from understudy.xds.publishing.front_parts import FrontPart
from understudy.xds.server.events import AckEvent
from understudy.xds.server.snapshot import TypeSnapshot
from understudy.xds.server.types import CLUSTER, ROUTES

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before another part of a held pool is offered."""
TRIAL_SECONDS = 10.0
"""How long a trial may be unanswered; then everything is offered again. What was accepted within this time may still be
rejected by another Envoy."""
SEARCH_PAUSE = 60.0
"""Seconds between two searches for the pool at fault after a start."""
PROVEN_SECONDS = 2.0
"""For so long no Envoy may reject what another one accepted, before its spec counts as accepted for good."""
_ACCEPTED_KEPT = 4
"""Parts of a pool that are known to be accepted; more than one, since Envoys answer at different times."""
_TABLES_KEPT = 32

Tables = Mapping[tuple[str, str], tuple[str, ...]]
"""The pools in each route table, by the table's name and version."""


def shape(part: FrontPart) -> tuple[Any, ...]:
    """What of a part Envoy can reject: equal for parts that differ in endpoints alone."""
    return part.front, part.tcp, part.per_second, part.clusters.version, part.hosts.version


class Held(msgspec.Struct, frozen=True):
    """A pool whose newest part is not offered. ``until``: no other part of it is offered before; monotonic seconds."""

    shape: tuple[Any, ...]
    until: float
    node: str
    error: str


class _Accepted(msgspec.Struct, frozen=True):
    """A part that an Envoy accepted, and when first; monotonic seconds."""

    part: FrontPart
    at: float


class FrontHolds:
    """What the Envoys of one set of pools accepted and rejected.

    Args:
        newest_first: orders pools by how new their specs are; a newer one is suspected first.
    """

    def __init__(self, newest_first: Callable[[Iterable[str]], list[str]] = sorted) -> None:
        self._newest_first = newest_first
        self._accepted: dict[str, list[_Accepted]] = {}
        self._held: dict[str, Held] = {}
        self._doubted: set[str] = set()
        self._newest: Mapping[str, FrontPart] = {}
        self._pauses: dict[str, Backoff] = {}
        self._merged: dict[str, tuple[FrontPart, FrontPart, FrontPart]] = {}
        self._tables: dict[tuple[str, str], dict[str, FrontPart]] = {}
        self._chosen: dict[str, FrontPart] = {}
        self._most = 0
        self._trial: frozenset[str] | None = None
        self._trial_since = 0.0
        self._left_out: list[str] = []
        self._search_after = 0.0

    # What is offered

    def choose(self, newest: Mapping[str, FrontPart], now: float) -> dict[str, FrontPart]:
        """The parts to compose, of those that the pools published last."""
        self._forget_gone(newest)
        self._newest = newest
        fresh = [pool for pool, part in newest.items() if self._may_offer(pool, part, now)]
        accepted = {pool for pool, part in newest.items() if self._is_trusted(part)}
        for pool in accepted:
            self._release(pool)
        offered = accepted | self._group(fresh, now)
        chosen = {pool: part for pool, part in newest.items() if pool in offered}
        for pool in newest.keys() - offered:
            older = self._older(newest[pool], chosen)
            if older is not None:
                chosen[pool] = older
        self._chosen = {pool: chosen[pool] for pool in newest if pool in chosen}
        return self._chosen

    def _may_offer(self, pool: str, part: FrontPart, now: float) -> bool:
        if self._is_trusted(part):
            return False
        held = self._held.get(pool)
        return held is None or (held.shape != shape(part) and held.until <= now)

    def _group(self, fresh: list[str], now: float) -> set[str]:
        """Those of the pools with a part that is not accepted yet that may be offered now."""
        if self._trial is not None and now - self._trial_since >= TRIAL_SECONDS:
            self._most, self._trial, self._left_out = 0, None, []
        if self._left_out:
            return set(fresh) - {self._left_out[0]}
        if not self._most or not fresh:
            self._most, self._trial = 0, None
            return set(fresh)
        if self._trial is None or self._trial.isdisjoint(fresh):
            self._begin_trial(frozenset(self._newest_first(fresh)[-self._most :]), now)
        return set(fresh) & (self._trial or frozenset())

    def _begin_trial(self, pools: frozenset[str], now: float) -> None:
        self._trial, self._trial_since = pools, now

    def _older(self, newest: FrontPart, others: Mapping[str, FrontPart]) -> FrontPart | None:
        """The part of the pool that was accepted last, with the health as it is now, if its place is still free."""
        pool = newest.pool
        last = self._last_good(newest)
        if last is None:
            return None
        if last.front != newest.front and first_conflict(_use(last), map(_use, others.values())):
            return None
        known = self._merged.get(pool)
        if known is None or known[0] is not last or known[1] is not newest:
            known = self._merged[pool] = (last, newest, _with_health(last, newest))
        return known[2]

    def _last_good(self, newest: FrontPart) -> FrontPart | None:
        """What stands in for a part: that of the spec that was accepted last, else the part that was."""
        if newest.older is not None and newest.pool not in self._doubted:
            return newest.older
        accepted = self._accepted.get(newest.pool)
        return accepted[-1].part if accepted else None

    def _forget_gone(self, newest: Mapping[str, FrontPart]) -> None:
        for pool in (self._accepted.keys() | self._held.keys() | self._doubted) - newest.keys():
            self._accepted.pop(pool, None)
            self._doubted.discard(pool)
            self._release(pool)

    def offered(self, tables: Tables) -> None:
        """The tables that were composed of the chosen parts are in the cache."""
        for key, pools in tables.items():
            self._tables.pop(key, None)
            self._tables[key] = {pool: self._chosen[pool] for pool in pools}
        for key in list(self._tables)[:-_TABLES_KEPT]:
            if key not in tables:
                del self._tables[key]

    def wake_in(self, now: float) -> float | None:
        """In how many seconds :meth:`choose` may choose other parts although nothing happened; None for never."""
        due = [held.until for held in self._held.values() if held.until > now]
        if self._trial is not None:
            due.append(self._trial_since + TRIAL_SECONDS)
        return max(min(due) - now, 0.0) if due else None

    def proven(self, now: float) -> list[FrontPart]:
        """The newest parts that Envoys have accepted for some time, of specs that are not known to be accepted.

        Of a pool that is held it is the part before.
        """
        return [one.part for one in self._proofs() if now - one.at >= PROVEN_SECONDS]

    def proven_in(self, now: float) -> float | None:
        """In how many seconds :meth:`proven` tells of further parts; None if it will not as things are."""
        due = [one.at + PROVEN_SECONDS for one in self._proofs()]
        return min((at - now for at in due if at > now), default=None)

    def _proofs(self) -> list[_Accepted]:
        """What was accepted last of each pool whose newest spec is not known to be accepted, if it is of a new spec."""
        found = []
        for pool, newest in self._newest.items():
            if newest.proven or not self._accepted.get(pool):
                continue
            at = self._accepted_at(newest)
            last = self._accepted[pool][-1] if at is None else _Accepted(newest, at)
            if not last.part.proven and (newest.older is None or last.part.spec != newest.older.spec):
                found.append(last)
        return found

    # What Envoys answer

    def answered(self, event: AckEvent, now: float) -> bool:
        """Take in an ACK or NACK; returns whether :meth:`choose` may choose other parts now."""
        if event.type_url not in (ROUTES, CLUSTER):
            return False
        if event.error is None:
            return self._on_ack(event, now)
        self._on_nack(event, now)
        return True

    def _on_ack(self, event: AckEvent, now: float) -> bool:
        news = False
        for pool, part in self._parts_in(event).items():
            counts = (part.tcp is not None) == (event.type_url == CLUSTER)
            if counts and not self._is_accepted(part) and not self._is_held(part):
                self._accepted[pool] = [*self._accepted.get(pool, []), _Accepted(part, now)][-_ACCEPTED_KEPT:]
                self._doubted.discard(pool)
                news = True
        if news:
            self._left_out, self._trial = [], None
        return news

    def _release(self, pool: str) -> None:
        for kept in (self._held, self._pauses, self._merged):
            kept.pop(pool, None)

    def _on_nack(self, event: AckEvent, now: float) -> None:
        inside = self._parts_in(event)
        suspects = self._suspects(inside, now)
        named = [pool for pool in suspects if _names(event.error or "", pool)]
        suspects = named or suspects
        if not suspects:
            return
        self._trial = None
        self._doubted.update(pool for pool in suspects if inside[pool].proven)
        for pool in suspects:
            self._accepted[pool] = [
                one for one in self._accepted.get(pool, []) if shape(one.part) != shape(inside[pool])
            ]
        if named or len(suspects) == 1:
            for pool in suspects:
                if not self._stands_in(inside[pool]):
                    self._hold(inside[pool], event, now)
            self._most, self._left_out = 0, []
        elif event.type_url == CLUSTER or any(self._has_proof(inside[pool]) for pool in inside):
            self._most = len(suspects) // 2
        elif now >= self._search_after:
            self._leave_out_next(suspects, now)

    def _suspects(self, inside: Mapping[str, FrontPart], now: float) -> list[str]:
        """The pools whose parts may be the reason of a rejection: those that no Envoy has accepted.

        First those whose spec none has, then those whose spec was accepted before this process began.

        A part that is held already explains the rejection. If all were accepted, Envoys disagree. Then those count that
        another Envoy has just accepted, if there is an older part to go back to.
        """
        if any(map(self._is_held, inside.values())):
            return []
        if new := [pool for pool, part in inside.items() if not self._is_trusted(part)]:
            return new
        if unseen := [pool for pool, part in inside.items() if not self._is_accepted(part)]:
            return unseen
        return [pool for pool, part in inside.items() if self._is_accepted_just_now(part, now)]

    def _is_accepted_just_now(self, part: FrontPart, now: float) -> bool:
        at = self._accepted_at(part)
        return at is not None and len(self._accepted[part.pool]) > 1 and now - at < TRIAL_SECONDS

    def _accepted_at(self, part: FrontPart) -> float | None:
        accepted = self._accepted.get(part.pool, ())
        return max((one.at for one in accepted if shape(one.part) == shape(part)), default=None)

    def _is_held(self, part: FrontPart) -> bool:
        held = self._held.get(part.pool)
        return held is not None and held.shape == shape(part)

    def _leave_out_next(self, suspects: Iterable[str], now: float) -> None:
        """Nothing in the table was accepted before: try it without one pool, each in turn."""
        if not self._left_out:
            self._left_out = self._newest_first(suspects)
        elif len(self._left_out) == 1:
            self._left_out, self._search_after = [], now + SEARCH_PAUSE
            return
        else:
            self._left_out = self._left_out[1:]
        self._begin_trial(frozenset(self._left_out), now)

    def _hold(self, part: FrontPart, event: AckEvent, now: float) -> None:
        pause = self._pauses.setdefault(part.pool, Backoff(FIRST_PAUSE, LONGEST_PAUSE)).next()
        self._held[part.pool] = Held(shape(part), now + pause, event.node, event.error or "")

    def _parts_in(self, event: AckEvent) -> dict[str, FrontPart]:
        """The parts that a response was made of, by pool."""
        if event.type_url == ROUTES:
            tables = [self._tables.get(key, {}) for key in event.versions.items()]
            return {pool: part for table in tables for pool, part in table.items()}
        return {
            pool: part
            for pool, part in self._chosen.items()
            if any(event.versions.get(name) == one.version for name, one in part.clusters.resources.items())
        }

    def _is_accepted(self, part: FrontPart) -> bool:
        accepted = self._accepted.get(part.pool, ())
        return any(one.part is part for one in accepted) or any(shape(one.part) == shape(part) for one in accepted)

    def _stands_in(self, part: FrontPart) -> bool:
        """Whether the part is that of an older spec. Once it is rejected it is in doubt, and is not used again."""
        newest = self._newest.get(part.pool)
        return part.proven and newest is not None and not newest.proven

    def _has_proof(self, part: FrontPart) -> bool:
        """Whether something of the pool is accepted, so that the others are a smaller part of a rejected table."""
        return bool(self._accepted.get(part.pool)) or part.older is not None or self._is_trusted(part)

    def _is_trusted(self, part: FrontPart) -> bool:
        """Whether an Envoy accepted the part, or its spec before this process began."""
        return self._is_accepted(part) or (part.proven and part.pool not in self._doubted)

    # What is told

    @property
    def held(self) -> Mapping[str, Held]:
        """The pools whose newest part is not offered, and why."""
        return self._held

    def fault(self, pool: str) -> str:
        """Why front Envoys do not get the newest part of a pool; '' if they do."""
        held = self._held.get(pool)
        if held is None:
            return ""
        newest = self._newest.get(pool)
        has_routes = newest is not None and self._last_good(newest) is not None
        what = "its last accepted routes stay in force" if has_routes else "it has no routes there"
        return f"Envoy {held.node} rejects its configuration, so {what}: {held.error}"


def _with_health(last: FrontPart, newest: FrontPart) -> FrontPart:
    """The part ``last`` with those endpoints of ``newest`` that it has too."""
    now = newest.endpoints.resources
    endpoints = {name: now.get(name, one) for name, one in last.endpoints.resources.items()}
    return msgspec.structs.replace(last, endpoints=TypeSnapshot(endpoints))


def _use(part: FrontPart) -> FrontUse:
    return FrontUse(part.pool, part.front, part.tcp is not None)


def _names(error: str, pool: str) -> bool:
    """Whether an error names a resource of the pool; names of resources begin with the pool's."""
    return any(f"{before}{pool}/" in error for before in (" ", "'", '"', "(", ":")) or error.startswith(f"{pool}/")
