"""What the admin interface answers about a pool, as JSON values. Pure."""

import dataclasses
from collections import Counter
from typing import Any

from understudy.statesync.heartbeat.adaptive_timeout import LOAD_WINDOW
from understudy.statesync.pool.state import PoolState
from understudy.xds.control.pool_service import PoolService
from understudy.xds.membership.cluster_state import ClusterState, orders_for_envoy
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.member_health import MemberHealth

LOAD_SHOWN_MS = 20


def members_view(cluster: ClusterState, detector: FailureDetector, now: int) -> list[dict[str, Any]]:
    """Every known member: its record, its state as seen here, the slots it holds, and its last sign of life.

    ``through_etcd_for``: it answers through etcd only, for so many seconds. ``patience_ms`` is how long it may be
    silent. ``under_load`` says why that is longer than usual, if it is.
    """
    orders = orders_for_envoy(cluster)
    active = Counter(order[0] for order in orders if order)
    standby = Counter(order[1] for order in orders if len(order) > 1)
    owns = Counter((owner.active, owner.boot) for owner in cluster.owners.values())
    found = []
    for name, member in sorted(cluster.members.items()):
        health = detector.members.get((name, member.boot))
        found.append(
            {
                **dataclasses.asdict(member),
                "state": cluster.state(name),
                "registered": cluster.registered.get(name) == member.boot,
                "owns": owns[name, member.boot],
                "active": active[name],
                "standby": standby[name],
                "standing": health.liveness if health else None,
                "heard_ms_ago": round((now - health.last_sign) / 1e6, 1) if health and health.last_sign else None,
                "through_etcd_for": round((now - health.unlinked) / 1e9, 1) if health and health.unlinked else None,
                "applied": health.applied if health else None,
                "patience_ms": round(detector.silence_timeout(health) / 1e6) if health else None,
                "under_load": _load(health),
                "reason": (health.explanation if health else "") or member.reason,
            }
        )
    return found


def _load(health: MemberHealth | None) -> str:
    """Why a member has more time than usual; '' if it has not, or only a little more."""
    late = round(health.stall / 1e6) if health else 0
    return f"its event loop was {late} ms late within the last {LOAD_WINDOW:g} s" if late >= LOAD_SHOWN_MS else ""


def recovering_view(service: PoolService, cluster: ClusterState) -> list[dict[str, Any]]:
    """The members that wait to take slots back, and for how many seconds more they must be stable."""
    waiting = service.controller.leader.recovery.waiting(cluster)
    now = service.now_ns()
    return [{"member": member, "seconds": round(max(at - now, 0) / 1e9, 1)} for member, at in sorted(waiting.items())]


def slots_view(cluster: ClusterState) -> dict[str, int]:
    """Number of slots, of those with a living owner, and of those that are moving to another owner."""
    served = sum(1 for slot in range(cluster.spec.slots) if cluster.serving_owner(slot) is not None)
    moving = len(cluster.pending_moves(cluster.table.orders)) if cluster.table else 0
    return {"total": cluster.spec.slots, "served": served, "moving": moving}


def table_view(cluster: ClusterState) -> dict[str, Any]:
    """The table in force and, per slot, who owns it and in which order Envoy tries the members."""
    table = cluster.table
    if table is None:
        return {}
    effective = orders_for_envoy(cluster)
    slots = []
    for slot, order in enumerate(table.orders):
        owner = cluster.owners.get(slot)
        slots.append(
            {
                "slot": slot,
                "order": order,
                "envoy": effective[slot],
                "owner": owner.active if owner else None,
                "epoch": owner.epoch if owner else 0,
                "phase": owner.phase if owner else None,
            }
        )
    return {
        "generation": table.generation,
        "traceparent": table.traceparent,
        "cause": table.cause,
        "offline": table.offline,
        "lost": {member: dataclasses.asdict(lost) for member, lost in table.lost.items()},
        "slots": slots,
    }


def failovers_view(state: PoolState) -> list[dict[str, Any]]:
    """Changes of active, newest first. Several members that take over in one change make one entry."""
    return [
        {
            "trace": trace,
            "started": min(part.started for part in parts),
            "cause": parts[0].cause,
            "planned": parts[0].planned,
            "from": sorted({part.source for part in parts}),
            "slots": sum(len(part.slots) for part in parts),
            "to": {part.to: list(part.slots) for part in sorted(parts, key=lambda part: part.to)},
        }
        for trace, parts in state.changes()
    ]
