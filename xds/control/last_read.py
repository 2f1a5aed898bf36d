"""What a control server knows of its pool while etcd is silent: the records as last read, and the members that beat.

``understudy status`` asks for this (``understudy.deploy.inspect.last_known``). Pure.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from understudy.statesync.pool.records import MemberState
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.member_health import SECOND, LivenessState

Stored = tuple[str, int, Callable[[], bytes]]
"""A record's key, its revision, and a function that makes its value (``PoolState.stored``)."""


def records_text(head: Mapping[str, Any], stored: Sequence[Stored]) -> str:
    """The records as JSON text, each as ``[key, revision, value]``; ``head`` names their pool and their age."""
    return json.dumps({**head, "records": [[key, revision, encode().decode()] for key, revision, encode in stored]})


def heartbeats_view(detector: FailureDetector, now: int) -> list[dict[str, Any]]:
    """The members whose heartbeats arrive here, or that this server found lost, without any use of etcd.

    ``state`` and ``reason`` are those of the last beat, or LOST and why. A member that cannot reach etcd still beats.
    So this is newer than its record, and it exists when the record is gone.
    """
    return [
        {
            "member": health.member,
            "boot": health.boot,
            "state": MemberState.LOST if health.liveness is LivenessState.LOST else health.state,
            "reason": health.explanation,
            "heard_seconds_ago": round((now - health.last_sign) / SECOND, 1) if health.last_sign else None,
        }
        for health in detector.members.values()
        if health.liveness is LivenessState.LOST or (health.streams and health.state is not None)
    ]
