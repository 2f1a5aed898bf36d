"""The answer of ``/v1/load``: what members report of their load, by member and by slot. Pure."""

from typing import Any

from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.load_book import MemberLoad, PoolLoad


def load_view(load: PoolLoad, cluster: ClusterState | None) -> dict[str, Any]:
    """Members and slots; a slot that was not measured yet is left out."""
    return {
        "members": [member_load_view(name, one) for name, one in load.members.items()],
        "slots": [
            {
                "slot": slot,
                "active": cluster.serving_owner(slot) if cluster else None,
                "calls": round(one.calls, 2),
                "sessions": one.sessions,
                "bytes": one.bytes,
                "cpu": round(one.cpu, 4),
            }
            for slot, one in sorted(load.slots.items())
        ],
    }


def member_load_view(name: str, one: MemberLoad) -> dict[str, Any]:
    """One member. ``application``: its CPU and memory are in the numbers, and not only those of the sidecar."""
    report = one.report
    return {
        "member": name,
        "calls": round(one.calls, 2),
        "sessions": one.sessions,
        "bytes": one.bytes,
        "cpu": report.cpu,
        "cpus": report.cpus,
        "memory": report.memory,
        "memory_limit": report.memory_limit,
        "lag_ms": round(report.lag * 1000, 1),
        "application": report.app,
        "versions": report.versions,
        "unsaved": report.unsaved,
        "copy_lag": report.copy_lag,
        "one_site_seconds": report.one_site_seconds,
        "age_seconds": round(one.age, 1),
    }
