"""A rebalance for a page: the plan that a control server proposes, and how the last one stands. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from understudy.deploy.console.wishes import ShownPlan
from understudy.deploy.inspect.rebalance import amounts_of, cost, headline, of_share, plan_lines, plan_status, remarks
from understudy.statesync.pool.state import PoolState

MOVES_SHOWN = 200
MEMBERS_SHOWN = 200
REMARKS_SHOWN = 20
View = dict[str, Any]


def last_plan(state: PoolState, waits_for: str = "") -> View:
    """The last plan in lines of text. ``state`` is ``none`` if there never was one.

    ``waits_for`` is what the leading control server says of a plan that does not go on.
    """
    view = plan_status(state, [{"rebalance": {"waits_for": waits_for}}])
    state_of, approved, why = [*plan_lines(view), "", ""][:3]
    return {
        "state": view.get("state", "none"),
        "headline": sentence(state_of),
        "approved": sentence(approved),
        "why": why and f"{why}.",
    }


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop; '' for none."""
    return text and f"{text[0].upper()}{text[1:]}."


def proposal_page(view: Mapping[str, Any], asked: Mapping[str, str]) -> View:
    """What a page shows of a plan (``/v1/rebalance``); ``asked`` are the options that it was made with."""
    plan, amount = dict(view), amounts_of(view["by"])
    found = remarks(plan)
    by_load = sorted(view["members"], key=lambda one: -_times(one))
    return {
        "headline": sentence(headline(plan)),
        "cost": sentence(cost(plan)) if view["moves"] else "",
        "remarks": [f"{line}." for line in found[:REMARKS_SHOWN]],
        "more_remarks": max(len(found) - REMARKS_SHOWN, 0),
        "members": [_member(one, amount) for one in by_load[:MEMBERS_SHOWN]],
        "more_members": max(len(by_load) - MEMBERS_SHOWN, 0),
        "moves": view["moves"][:MOVES_SHOWN],
        "more_moves": max(len(view["moves"]) - MOVES_SHOWN, 0),
        "shown": msgspec.to_builtins(_shown(view, asked)) if view["moves"] else None,
    }


def _times(one: Mapping[str, Any]) -> float:
    """How many times its share a member has now."""
    return float(one["before"] / one["share"]) if one["share"] else 0.0


def _member(one: Mapping[str, Any], amount: Any) -> dict[str, str]:  # noqa: ANN401 - a function
    return {
        "member": one["member"],
        "share": amount(one["share"]),
        "before": amount(one["before"]),
        "before_of_share": of_share(one["before"], one["share"]),
        "after": amount(one["after"]),
        "after_of_share": of_share(one["after"], one["share"]),
    }


def _shown(view: Mapping[str, Any], asked: Mapping[str, str]) -> ShownPlan:
    members = sorted({move[end] for move in view["moves"] for end in ("source", "target")})
    place = {member: at for at, member in enumerate(members)}
    moves = tuple((move["slot"], place[move["source"]], place[move["target"]]) for move in view["moves"])
    options = tuple(word for name, value in asked.items() if value for word in (f"--{name}", value))
    return ShownPlan(view["generation"], view["by"], tuple(members), moves, options)
