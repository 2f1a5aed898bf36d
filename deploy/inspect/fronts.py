"""What front Envoys told of late: requests without a session key, and members that did not answer or were not reached.

An Envoy tells one control server at a time, so all of them are asked and their counts put together. Read only.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from understudy.deploy.common.console_style import plain_table
from understudy.deploy.inspect.controls import ask_controls

View = dict[str, Any]

KEYLESS_SHARE = 0.5
"""From this share on, requests without a session key are warned of."""
KEYLESS_LEAST = 100
"""Fewer requests say nothing about a share."""
TIMEOUTS_LEAST = 3
"""A single request may be slow; so many of one member within the window are not answered."""
_COUNTS = ("timeouts", "connect_failures", "elsewhere")


async def read_fronts(controls: Mapping[str, str]) -> list[View]:
    """Ask all control servers (name -> HTTP address); what one does not tell is left out."""
    return fronts_view(await ask_controls(controls.values(), "/v1/fronts"))


def fronts_view(answers: Iterable[Any]) -> list[View]:
    """One entry per Envoy: its requests, those without a session key, and the members that it has trouble with."""
    found: dict[str, View] = {}
    for answer in (answer for answer in answers if isinstance(answer, dict)):
        minutes = round(answer.get("window_seconds", 0) / 60)
        for front in answer.get("fronts", ()):
            node = front["node"]
            view = found.setdefault(
                node, {"node": node, "minutes": minutes, "requests": 0, "keyless": 0, "members": {}}
            )
            view["requests"] += front["requests"]
            view["keyless"] += front["keyless"]
            for member, said in front["members"].items():
                view["members"][member] = _sum(view["members"].get(member), said)
    return [found[node] for node in sorted(found)]


def _sum(before: Mapping[str, Any] | None, said: Mapping[str, Any]) -> View:
    if before is None:
        return dict(said)
    longest = max(before["unreachable_seconds"], said["unreachable_seconds"])
    return {**{kind: before[kind] + said[kind] for kind in _COUNTS}, "unreachable_seconds": longest}


def front_warnings(fronts: Sequence[View]) -> Iterable[str]:
    """What an operator should look at, in words."""
    requests, keyless = (sum(front[kind] for front in fronts) for kind in ("requests", "keyless"))
    if requests >= KEYLESS_LEAST and keyless >= requests * KEYLESS_SHARE:
        yield (
            f"{keyless / requests:.0%} of {requests} requests of the last {fronts[0]['minutes']} min carried no "
            "session key and went to any member: does session_key in the spec name the header or cookie that clients "
            "send?"
        )
    for front in fronts:
        for member, said in front["members"].items():
            yield from _troubles(front, member, said)


def _troubles(front: View, member: str, said: Mapping[str, Any]) -> Iterable[str]:
    node, minutes = front["node"], front["minutes"]
    if said["unreachable_seconds"]:
        yield (
            f"{node} has not reached {member} for {said['unreachable_seconds']:.0f} s, although {member} is well: "
            "look at the network between them"
        )
    if said["timeouts"] >= TIMEOUTS_LEAST:
        yield (
            f"{member} took {said['timeouts']} requests of {node} within {minutes} min and did not answer them (504): "
            "does its application hang?"
        )
    if said["connect_failures"] >= TIMEOUTS_LEAST:
        yield f"{node} could not connect to {member} for {said['connect_failures']} requests within {minutes} min"


def fronts_table(fronts: Sequence[View]) -> RenderableType:
    """One line per Envoy, and one per member that it has trouble with."""
    table = plain_table("requests of", "member", "in all", "no key", "504", "not connected", "answered elsewhere")
    for front in fronts:
        share = f"{front['keyless'] / front['requests']:.0%}" if front["requests"] else ""
        table.add_row(f"{front['node']} ({front['minutes']} min)", "", str(front["requests"]), share, "", "", "")
        for member, said in front["members"].items():
            table.add_row("", member, "", "", *(str(said[kind] or "") for kind in _COUNTS))
    return table
