"""Members that were lost and have not come back, as the control servers remember them. Read only.

etcd forgets a lost member within seconds: its record goes with its lease, and the next table no longer names it.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from deploy.reading import AdminError, ask_control


async def missing_warnings(controls: Mapping[str, str]) -> list[str]:
    """Ask all control servers (name -> HTTP address), and say in words who is missing, and since when."""
    return list(in_words(await asyncio.gather(*(_ask(address) for address in controls.values()))))


async def _ask(address: str) -> Any:  # noqa: ANN401 - JSON
    try:
        return await ask_control(address, "/v1/status")
    except AdminError:
        return {}


def in_words(answers: Iterable[Any]) -> Iterable[str]:
    """A warning for each member that some control server misses; older control servers miss nobody."""
    found: dict[str, Mapping[str, Any]] = {}
    for answer in answers:
        for one in answer.get("missing", ()) if isinstance(answer, dict) else ():
            known = found.get(one["member"])
            if known is None or known["seconds"] < one["seconds"]:
                found[one["member"]] = one
    for member, one in sorted(found.items()):
        yield f"{member} was lost {_ago(one['seconds'])} ago and has not come back: {one['cause']}"


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
