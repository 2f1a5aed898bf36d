"""Recent reports of front Envoys: requests without a session key, and members that did not answer. Read only.

An Envoy reports to one control server at a time, so all control servers are asked and their counts are added.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from understudy.deploy.common.console_style import plain_table
from understudy.deploy.inspect.controls import ask_controls

View = dict[str, Any]

KEYLESS_SHARE = 0.5
"""Share of requests without a session key from which there is a warning."""
KEYLESS_LEAST = 100
"""Number of requests from which a share is meaningful."""
TIMEOUTS_LEAST = 3
"""Number of unanswered requests of one member from which there is a warning. Single requests may be slow."""
_COUNTS = ("timeouts", "connect_failures", "elsewhere")


async def read_fronts(controls: Mapping[str, str], pool: str) -> list[View]:
    """Ask all control servers (name -> HTTP address). Those that do not answer are left out."""
    return fronts_view(await ask_controls(controls.values(), "/v1/fronts", pool))


async def read_share_at_home(controls: Mapping[str, str], pool: str) -> dict[str, View]:
    """By site how many requests with a session key its front Envoys sent to its own members, and how many away.

    These are the last minutes (``window_seconds``); a site whose Envoys sent none is left out.
    """
    return share_at_home(await ask_controls(controls.values(), "/v1/fronts", pool))


def share_at_home(answers: Iterable[Any]) -> dict[str, View]:
    """The sums of several control servers' answers."""
    found: dict[str, View] = {}
    for answer in (answer for answer in answers if isinstance(answer, dict)):
        for site, said in answer.get("sites", {}).items():  # one of an earlier release does not tell it
            sums = found.setdefault(site, {"at_home": 0, "away": 0, "window_seconds": answer["window_seconds"]})
            for kind in ("at_home", "away"):
                sums[kind] += said[kind]
    return found


def place_warnings(statuses: Iterable[Any]) -> Iterable[str]:
    """A warning if front Envoys of several pools do not serve the pool as its spec says, from ``/v1/status``."""
    faults = {status.get("xds", {}).get("front_fault", "") for status in statuses if isinstance(status, dict)}
    for fault in sorted(faults - {""}):
        advice = "" if "rejects" not in fault else "; correct the spec and apply it"
        yield f"front Envoys of several pools do not serve this pool as its spec says: {fault}{advice}"


def fronts_view(answers: Iterable[Any]) -> list[View]:
    """One entry per Envoy: its requests, those without a session key, and the members that did not answer it."""
    found: dict[str, View] = {}
    for answer in (answer for answer in answers if isinstance(answer, dict)):
        minutes = round(answer.get("window_seconds", 0) / 60)
        for front in answer.get("fronts", ()):
            node = front["node"]
            view = found.setdefault(
                node, {"node": node, "minutes": minutes, "requests": 0, "keyless": 0, "failed": 0, "members": {}}
            )
            view["requests"] += front["requests"]
            view["keyless"] += front["keyless"]
            view["failed"] += front.get("failed", 0)  # a control server of an earlier release does not tell it
            for member, said in front["members"].items():
                view["members"][member] = _sum(view["members"].get(member), said)
    return [found[node] for node in sorted(found)]


def _sum(before: Mapping[str, Any] | None, said: Mapping[str, Any]) -> View:
    if before is None:
        return dict(said)
    longest = max(before["unreachable_seconds"], said["unreachable_seconds"])
    return {**{kind: before[kind] + said[kind] for kind in _COUNTS}, "unreachable_seconds": longest}


def front_warnings(fronts: Sequence[View]) -> Iterable[str]:
    """Warnings for operators."""
    requests, keyless = (sum(front[kind] for front in fronts) for kind in ("requests", "keyless"))
    if requests >= KEYLESS_LEAST and keyless >= requests * KEYLESS_SHARE:
        yield (
            f"{keyless / requests:.0%} of {requests} requests in the last {fronts[0]['minutes']} min had no session "
            "key and went to any member: check that session_key in the spec names the header or cookie that clients "
            "send"
        )
    for front in fronts:
        for member, said in front["members"].items():
            yield from _member_warnings(front, member, said)


def _member_warnings(front: View, member: str, said: Mapping[str, Any]) -> Iterable[str]:
    node, minutes = front["node"], front["minutes"]
    if said["unreachable_seconds"]:
        yield (
            f"{node} has not reached {member} for {said['unreachable_seconds']:.0f} s, although {member} is healthy: "
            "check the network between them"
        )
    if said["timeouts"] >= TIMEOUTS_LEAST:
        yield (
            f"{member} did not answer {said['timeouts']} requests from {node} within {minutes} min (504): "
            "check whether its application hangs"
        )
    if said["connect_failures"] >= TIMEOUTS_LEAST:
        yield f"{node} could not connect to {member} for {said['connect_failures']} requests within {minutes} min"


def fronts_table(fronts: Sequence[View]) -> RenderableType:
    """One line per Envoy, and one per member that did not answer it."""
    table = plain_table(
        "requests of", "member", "total", "a second", "failed", "no key", "504", "not connected", "answered elsewhere"
    )
    for front in fronts:
        share = f"{front['keyless'] / front['requests']:.0%}" if front["requests"] else ""
        rate = f"{front['requests'] / (60 * front['minutes']):.1f}" if front["minutes"] else ""
        counts = (str(front["requests"]), rate, str(front["failed"] or ""), share)
        table.add_row(f"{front['node']} ({front['minutes']} min)", "", *counts, "", "", "")
        for member, said in front["members"].items():
            table.add_row("", member, "", "", "", "", *(str(said[kind] or "") for kind in _COUNTS))
    return table
