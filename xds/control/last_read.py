"""What a control server can tell of its pool while etcd is silent: the records as it last read them, and who beats.

``understudy status`` asks for this (``understudy.deploy.inspect.last_known``). Pure.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from understudy.statesync.pool.records import MemberState
from understudy.xds.membership.failure_detector import SECOND, LivenessBook, Standing

Stored = tuple[str, int, Callable[[], bytes]]
"""A record's key, the revision it was written at, and what makes its value (``PoolState.stored``)."""


def records_text(head: Mapping[str, Any], stored: Sequence[Stored]) -> str:
    """The records as JSON text, each as ``[key, revision, value]``; ``head`` says whose they are, and how old."""
    return json.dumps({**head, "records": [[key, revision, encode().decode()] for key, revision, encode in stored]})


def heartbeats_view(book: LivenessBook, now: int) -> list[dict[str, Any]]:
    """The members whose heartbeats arrive here, or that this server found lost, by its own knowledge alone.

    ``state`` and ``reason`` are what the last beat said, or LOST and why. A member that cannot reach etcd beats on, so
    this is newer than its record, and is there when the record is gone.
    """
    return [
        {
            "member": pulse.member,
            "boot": pulse.boot,
            "state": MemberState.LOST if pulse.standing is Standing.LOST else pulse.state,
            "reason": pulse.cause or pulse.reason,
            "heard_seconds_ago": round((now - pulse.last_sign) / SECOND, 1) if pulse.last_sign else None,
        }
        for pulse in book.pulses.values()
        if pulse.standing is Standing.LOST or (pulse.streams and pulse.state is not None)
    ]
