"""The member's view of itself, for ``/v1/status`` and for ``understudy status``."""

import math
import time

from understudy.proxy.peers.clock_watch import clock_view
from understudy.proxy.sidecar.parts import Sidecar
from understudy.statesync.pool.records import MemberState

MAX_NAMED = 20


def status_view(sidecar: Sidecar) -> tuple[dict[str, object], bool]:
    """The member's view of itself for ``/v1/status``, and whether it is ready."""
    state, reason = sidecar.status.look()
    me, replica, informer = sidecar.pool.identity, sidecar.copies.replica, sidecar.copies.informer
    commits, pressure = sidecar.committer.stats, sidecar.committer.pressure(time.monotonic())
    view: dict[str, object] = {
        "member": me.me,
        "pool": me.keys.pool,
        "boot": me.boot,
        "state": state,
        "reason": reason,
        "active": sorted(sidecar.owned.slots),
        "held": len(replica.held),
        "in_sync": len(replica.synced),
        "sessions": replica.count(replica.held),
        "applied_revision": informer.revision,
        "queued_writes": sidecar.committer.queued,
        "unresolved_writes": pressure.writes,
        "oldest_write_ms": round(pressure.delay * 1000),
        "committed_writes": commits.writes,
        "transactions": commits.transactions,
        "resent_transactions": commits.resent,
        "async_lost": sidecar.async_writes.lost,
        "overwrites": sidecar.overwritten.view(),
        "forwarded_calls": sidecar.router.forwarded,
        "sync": sync_view(sidecar),
        "replication": replication_view(sidecar),
        "pulses": {member: runs for (member, _), runs in sorted(sidecar.monitor.seen.items())},
        "clock": clock_view(sidecar.clock),
        "forecasts": forecasts_view(sidecar),
        "trouble": sidecar.reconciler.trouble or informer.trouble,
    }
    return view, state in (MemberState.READY, MemberState.UP)


def forecasts_view(sidecar: Sidecar) -> dict[str, object]:
    """What this member can run out of: used share, level, and the seconds that are left if an end is in sight."""
    return {
        name: {
            "level": one.level,
            "used": round(one.share, 3),
            "seconds_left": round(one.left) if math.isfinite(one.left) else None,
        }
        for name, one in sorted(sidecar.resources.forecasts.items())
    }


def sync_view(sidecar: Sidecar) -> dict[str, object]:
    """How complete this member's copies are. ``lag_ms``: how long ago etcd last sent something about the records."""
    replica, informer, counters = sidecar.copies.replica, sidecar.copies.informer, sidecar.recorder.counters
    wanted = sidecar.pool.assigned() | frozenset(sidecar.owned.slots)
    missing = sorted(wanted - replica.synced)
    return {
        "wanted": len(wanted),
        "in_sync": len(wanted) - len(missing),
        "missing": missing[:MAX_NAMED],
        "lag_ms": round(informer.silent_for * 1000),
        "full_syncs": replica.copies,
        "last_full_sync": replica.copied_at,
        "gaps": max(informer.resets - 1, 0),
        "checked_slots": counters.checked,
        "resyncs": counters.resyncs,
    }


def replication_view(sidecar: Sidecar) -> dict[str, object]:
    """The slots in which this process is active, and what etcd does not have of them yet.

    ``one_copy``: slots whose sync set is this process alone. ``one_site``: those with current copies on one site only.
    ``unsaved_sessions`` is how many saves etcd lacks now; ``..._most`` what it lacked at the most of late. ``copy_lag``
    is how far the copies on other sites were behind at the most of late.
    """
    active, most = sidecar.active.slots, sidecar.active.exposure.most(time.monotonic())
    unsaved = sum(len(one.saves) for one in active)
    return {
        "active": len(active),
        "one_copy": sum(len(one.stream.agreed.members) < 2 for one in active),
        "copies": sum(copy.whole for copy in sidecar.keeper.copies.values()),
        "unsaved_sessions": unsaved,
        "unsaved_sessions_most": max(unsaved, most.sessions),
        "unsaved_ms_most": most.ms,
        "unsaved_writes_most": max(sum(one.saves.writes for one in active), most.writes),
        "unsaved_bytes": sum(one.saves.bytes for one in active),
        "one_site": sidecar.site_watch.view(),
        "copy_lag": {site: lag._asdict() for site, lag in sidecar.site_watch.copy_lag(time.monotonic()).items()},
    }
