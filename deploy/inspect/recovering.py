"""Members that wait to take slots back (``recovery`` in the spec), by the leading control server. Pure."""

from collections.abc import Iterable, Iterator
from typing import Any


def recovery_warnings(statuses: Iterable[Any]) -> Iterator[str]:
    """A line for each member that waits, from the answers of ``/v1/status``. Older control servers report none."""
    found: dict[str, float] = {}
    for status in statuses:
        for one in status.get("recovering", ()) if isinstance(status, dict) else ():
            found[one["member"]] = one["seconds"]
    for member, seconds in sorted(found.items()):
        if seconds:
            yield f"{member} waits to take slots back: it must be stable for {seconds:.0f} s more (stable_for)"
        else:
            yield f"{member} waits to take slots back: it was stable for long enough, and does not have all copies yet"
