"""Lost members that have not come back, from the control servers. Pure.

A lost member disappears from etcd within seconds: its record ends with its lease, and the next table does not name it.
"""

from collections.abc import Iterable, Mapping
from typing import Any


def missing_warnings(statuses: Iterable[Any]) -> Iterable[str]:
    """A warning for each lost member, from the answers of ``/v1/status``. Older control servers report none."""
    found: dict[str, Mapping[str, Any]] = {}
    for status in statuses:
        for one in status.get("missing", ()) if isinstance(status, dict) else ():
            known = found.get(one["member"])
            if known is None or known["seconds"] < one["seconds"]:
                found[one["member"]] = one
    for member, one in sorted(found.items()):
        yield f"{member} was lost {_ago(one['seconds'])} ago and has not come back: {one['cause']}"


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
