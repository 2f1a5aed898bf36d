"""What is wrong with a pool, the worst first, each with the command that helps. Pure."""

from collections.abc import Iterable
from typing import Any

import msgspec

from understudy.deploy.inspect.draining import blocked_drains
from understudy.deploy.inspect.envoys import View
from understudy.deploy.inspect.offline_sites import offline_text
from understudy.deploy.inspect.waiting import waiting_slots
from understudy.statesync.pool.state import PoolState

NOTICE, WARNING, ALERT = 1, 2, 3
"""Levels: an operator's wish that is in force; something to look at; sessions cannot be served."""
_WORDS = {NOTICE: "notice", WARNING: "warning", ALERT: "alert"}


class Problem(msgspec.Struct, frozen=True):
    """One problem: how bad, what, the command that ends it or says more, and since when (0: not known)."""

    level: int
    text: str
    command: str
    since: float = 0.0

    def view(self) -> dict[str, Any]:
        """The problem as JSON data; ``key`` tells it from the others."""
        return {
            "key": self.text,
            "level": _WORDS[self.level],
            "text": self.text,
            "command": self.command,
            "since": self.since,
        }


def problems_of(state: PoolState, status: View, now: float, degraded: Iterable[View] = ()) -> list[Problem]:
    """The problems of a pool, the worst first. ``status`` is its ``status`` view, ``now`` wall time in seconds.

    ``degraded`` is what of its sites is degraded, as ``site status`` says it.
    """
    pool = f"--pool {state.keys.pool}"
    found = [
        *_of_slots(state, pool),
        *_of_members(state, status, now, pool),
        *_of_sites(state, now, pool),
        *_of_degraded(degraded),
        *_of_envoys(status["envoys"], pool),
        *(Problem(WARNING, text, f"understudy status {pool}") for text in blocked_drains(state, now)),
        *_warnings(status, state, pool),
    ]
    return sorted(dict.fromkeys(found), key=lambda problem: -problem.level)


def _of_slots(state: PoolState, pool: str) -> Iterable[Problem]:
    waiting = waiting_slots(state)
    if waiting:
        text = f"{len(waiting)} slots wait for processes with their newest writes, which are gone: {waiting[0].reason}"
        yield Problem(ALERT, text, f"understudy slots waiting {pool}")


def _of_members(state: PoolState, status: View, now: float, pool: str) -> Iterable[Problem]:
    offline = state.offline(now)
    for row in status["members"]:
        name, intent = row["member"], state.intents.get(row["member"])
        if intent is not None and intent.record.holds(now):
            yield Problem(
                NOTICE, f"{name} is out of service: an operator drained it", f"understudy undrain {name} {pool}"
            )
        elif row["state"] in ("UP", "READY"):
            if row["reason"]:
                yield Problem(WARNING, f"{name}: {row['reason']}", f"understudy status {pool}")
        elif row["site"] not in offline:
            why = f": {row['reason']}" if row["reason"] else ""
            yield Problem(WARNING, f"{name} is {row['state']}{why}", f"understudy status {pool}")


def _of_sites(state: PoolState, now: float, pool: str) -> Iterable[Problem]:
    for site in sorted(state.offline(now)):
        intent = state.sites[site].record
        text = offline_text(site, intent.until, command=False)
        yield Problem(
            NOTICE, f"{text}: its members get no slots", f"understudy site online {site} {pool}", intent.since
        )


def _of_degraded(degraded: Iterable[View]) -> Iterable[Problem]:
    """What is degraded of sites, but for those that are offline: these are notices with a command for this pool."""
    for one in degraded:
        if not one["what"].startswith("site ") or " is offline " not in one["what"]:
            yield Problem(WARNING, one["what"], one["remedy"], one["since"] or 0.0)


def _of_envoys(envoys: View | None, pool: str) -> Iterable[Problem]:
    for node in (envoys or {}).get("nodes", ()):
        for one in node["types"]:
            if one["error"]:
                text = f"Envoy {node['node']} rejects {one['type']}: {one['error']}"
                yield Problem(ALERT, text, f"understudy status --xds {pool}")
    for control, why in (envoys or {}).get("silent", {}).items():
        yield Problem(WARNING, f"control server {control} does not answer: {why}", f"understudy status {pool}")


def _warnings(status: View, state: PoolState, pool: str) -> Iterable[Problem]:
    """The warnings of ``understudy status``; a slot without a living owner makes them alerts."""
    slots = status["slots"]
    broken = {
        f"{slots['unowned']} slots have no owner yet",
        f"{slots['owner_gone']} slots are owned by a member that is lost",
    }
    told_elsewhere = tuple(f"site {site} is offline " for site in state.sites)
    for text in status["warnings"]:
        if text.startswith(told_elsewhere):
            continue
        command = f"understudy failovers {pool}" if text in broken else f"understudy status {pool}"
        if state.keys.spec in text:
            command = "understudy apply -f pool.yaml"
        yield Problem(ALERT if text in broken else WARNING, text, command)
