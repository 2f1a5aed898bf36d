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
        "degraded": _degraded(sides, homes, asked=peer is not None),
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
    if at.record.role in (Role.MIRROR, Role.OPENING):
        view["mirror"] = mirror_view(await side.mirrored(), now)
    return view


def beat_time(value: bytes) -> float:
    """When a beat was written, by the clock of the home's ``understudy mirror``; 0 if the value does not say so."""
    try:
        return float(read_object(value).get("at", 0.0))
    except (ValueError, TypeError):
        return 0.0


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


def _degraded(sides: list[dict[str, Any]], homes: list[str], *, asked: bool) -> list[str]:
    found = [f"site {one['site']}: {one['fault']}" for one in sides if one["fault"]]
    if len(homes) > 1:
        found.append(
            f"both {homes[0]} and {homes[1]} say that they are the home: that of the higher term is. "
            "The other one fences itself when 'understudy mirror' runs there"
        )
    if asked and not homes:
        found.append("no side is the home: a move or a take-over was interrupted. Give its command again")
    for one in sides:
        ago = one.get("confirmed_seconds_ago", 0.0)
        if ago is None or ago > LAGGING:
            since = f"for {ago:.0f} s" if ago is not None else "yet"
            found.append(
                f"site {one['site']}: nobody has confirmed {since} that it is the home, so members that start serve "
                "nothing: look whether 'understudy mirror' runs there, and reaches the other site"
            )
        mirror = one.get("mirror")
        if mirror and not mirror["whole"]:
            found.append(f"site {one['site']}: the mirror is being copied anew and is not complete")
        elif mirror and mirror["lost_seconds_now"] > LAGGING:
            found.append(
                f"site {one['site']}: the mirror is {mirror['lost_seconds_now']:.0f} s behind: "
                "look whether 'understudy mirror' runs on both sides"
            )
    return found


def lines_of(view: dict[str, Any]) -> list[str]:
    """The view as lines of text."""
    lines = [f"pool {view['pool']} is at home on {view['home'] or 'no site that answers'}"]
    lines += [_side_line(one) for one in view["sides"]]
    for one in view["sides"]:
        if mirror := one.get("mirror"):
            peer, seconds = one["peer"], mirror["lost_seconds_now"]
            lines.append(
                f"if {peer} died now: at most {mirror['lost_writes_now']} writes, {seconds * 1000:.0f} ms "
                f"(in the last minute at most {mirror['peak_writes_per_second']} writes a second)"
            )
    return lines + [f"! {problem}" for problem in view["degraded"]]


def _side_line(one: dict[str, Any]) -> str:
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
