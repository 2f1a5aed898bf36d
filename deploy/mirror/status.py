"""What ``understudy home status`` shows of both sides of a pool."""

import time
from typing import Any

import msgspec

from understudy.deploy.common.errors import DeployError
from understudy.deploy.mirror.records import Side
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.parsing.stored import read_object
from understudy.statesync.pool.home import UNKNOWN, Mirrored, Role, loss_now

LAGGING = 5.0
"""Seconds of lag from which the pair is degraded."""


async def home_view(side: Side, peer: Side | None, now: float | None = None) -> dict[str, Any]:
    """Both sides, how far the mirror is behind, and what is degraded. ``peer``: None if it is not to be asked."""
    now = time.time() if now is None else now
    sides = [await _side_view(side, now)]
    if peer is not None:
        sides[0].pop("peer_mirror", None)
        try:
            sides.append(await _side_view(peer, now))
        except (EtcdError, DeployError) as error:
            sides.append({"site": peer.name, "role": "unknown", "fault": str(error)})
    homes = [one["site"] for one in sides if one["role"] == Role.HOME]
    said = sides[0].get("peer") if peer is None and not homes else None
    return {
        "pool": side.keys.pool,
        "home": homes[0] if len(homes) == 1 else said,
        "sides": sides,
        "degraded": _degraded(sides, homes, asked=peer is not None, now=now),
    }


async def _side_view(side: Side, now: float) -> dict[str, Any]:
    at = await side.home()
    if at is None:
        return {"site": side.name, "role": "none", "fault": "no home record: it is not part of a pair"}
    view: dict[str, Any] = msgspec.to_builtins(at.record)
    view["fault"] = ""
    if at.record.role is Role.HOME:
        beat = await side.client.get(side.keys.home_beat)
        view["confirmed_seconds_ago"] = round(max(now - beat_time(beat.value), 0.0), 3) if beat is not None else None
        if beat is not None and (mirrored := beat_mirrored(beat.value)) is not None:
            view["peer_mirror"] = mirror_view(mirrored, now)
    if at.record.role in (Role.MIRROR, Role.OPENING):
        view["mirror"] = mirror_view(await side.mirrored(), now)
    return view


def beat_time(value: bytes) -> float:
    """When a beat was written, by the clock of the home's ``understudy mirror``; 0 if the value does not say so."""
    try:
        return float(read_object(value).get("at", 0.0))
    except (ValueError, TypeError):
        return 0.0


def beat_mirrored(value: bytes) -> Mirrored | None:
    """How far the mirror had come at a beat; None if the value does not say so."""
    try:
        return msgspec.convert(read_object(value).get("mirrored"), Mirrored)
    except (ValueError, msgspec.ValidationError):
        return None


def mirror_view(mirrored: Mirrored, now: float) -> dict[str, Any]:
    """How far a mirror is behind. The time is that of the machine on which the command runs."""
    loss = loss_now(mirrored, now)
    return {
        "whole": mirrored.whole,
        "revision": mirrored.revision,
        "complete_at": mirrored.complete_at,
        "peak_writes_per_second": mirrored.rate,
        "lost_writes_now": loss.writes,
        "lost_seconds_now": round(loss.seconds, 3),
    }


def _degraded(sides: list[dict[str, Any]], homes: list[str], *, asked: bool, now: float) -> list[str]:
    """What is degraded, since when if that is known, and the command that ends it."""
    found = [f"site {one['site']}: {one['fault']}" for one in sides if one["fault"]]
    if len(homes) > 1:
        lower = min((one for one in sides if one["role"] == Role.HOME), key=lambda one: int(one["term"]))
        found.append(
            f"both {homes[0]} and {homes[1]} say that they are the home: that of the higher term is. The other one "
            f"fences itself when this runs there: 'understudy mirror --site {lower['site']}'"
        )
    if asked and not homes:
        found.append(_no_home(sides, now))
    for one in sides:
        found += _home_faults(one) + _mirror_faults(one)
    return found


def _no_home(sides: list[dict[str, Any]], now: float) -> str:
    """No side is the home: which command was interrupted, and since when."""
    opening = next((one for one in sides if one["role"] == Role.OPENING), None)
    closing = next((one for one in sides if one["role"] in (Role.CLOSING, Role.FENCED)), None)
    again = "Give its command again"
    if opening is not None:
        command = f"move --to {opening['site']}" if opening["planned"] else "take-over"
        again += f": 'understudy home {command}'"
    elif closing is not None:
        again += f": 'understudy home move --to {closing['peer']}'"
    since = [float(one["since"]) for one in (opening, closing) if one is not None]
    told = f" {max(now - max(since), 0.0):.0f} s ago" if since else ""
    return f"no side is the home: a move or a take-over was interrupted{told}. {again}"


def _home_faults(one: dict[str, Any]) -> list[str]:
    ago = one.get("confirmed_seconds_ago", 0.0)
    if ago is not None and ago <= LAGGING:
        return []
    since = f"for {ago:.0f} s" if ago is not None else "yet"
    problem = (
        f"site {one['site']}: nobody has confirmed {since} that it is the home, so members that start serve nothing: "
        f"look whether 'understudy mirror --site {one['site']}' runs, and reaches site {one['peer']}. If that is gone "
        "for good: 'understudy home confirm --force'"
    )
    return [problem]


def _mirror_faults(one: dict[str, Any]) -> list[str]:
    """What is degraded of the mirror: of this side, or of its peer as the home last read it."""
    mirror, site = one.get("mirror"), one["site"]
    if mirror is None:
        mirror, site = one.get("peer_mirror"), one.get("peer")
    if mirror and not mirror["whole"]:
        runs = f"while 'understudy mirror --site {site}' runs"
        return [f"site {site}: the mirror is being copied anew and is not complete, which ends by itself {runs}"]
    if mirror and mirror["lost_seconds_now"] > LAGGING:
        behind = f"the mirror is {mirror['lost_seconds_now']:.0f} s behind"
        return [f"site {site}: {behind}: look whether 'understudy mirror' runs on both sides"]
    return []


def lines_of(view: dict[str, Any]) -> list[str]:
    """The view as lines of text."""
    lines = [f"pool {view['pool']} is at home on {view['home'] or 'no site that answers'}"]
    lines += [side_line(one) for one in view["sides"]]
    for one in view["sides"]:
        if mirror := one.get("mirror"):
            lines.append(loss_line(one["peer"], mirror))
        if mirror := one.get("peer_mirror"):
            lines.append(loss_line(one["site"], mirror))
    return lines + [f"! {problem}" for problem in view["degraded"]]


def loss_line(home: str, mirror: dict[str, Any]) -> str:
    """What would be lost if the home died now; ``mirror`` is a :func:`mirror_view`."""
    if not mirror["whole"]:
        return f"if {home} died now: not known, since the mirror is not complete"
    return (
        f"if {home} died now: at most {mirror['lost_writes_now']} writes, {mirror['lost_seconds_now'] * 1000:.0f} ms "
        f"(in the last minute at most {mirror['peak_writes_per_second']} writes a second)"
    )


def side_line(one: dict[str, Any]) -> str:
    """One side in a line."""
    if one["fault"]:
        return f"site {one['site']}: {one['role']}"
    line = f"site {one['site']}: {one['role']}, term {one['term']}"
    if one["role"] == Role.HOME and not one["planned"]:
        lost = "not counted yet, since the old home is not back"
        if one["lost_writes"] != UNKNOWN:
            lost = f"{one['lost_writes']} writes to {one['lost_sessions']} sessions"
        line += f", by a take-over; lost: {lost}"
    if one["tail"] == "kept":
        line += f"; tail of {one['lost_writes']} writes kept in {one['file']}"
    if one["role"] == Role.HOME:
        line += f"; if {one['peer']} does not answer: {one['on_peer_lost']}"
    return line
