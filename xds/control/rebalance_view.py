"""The answers of ``/v1/rebalance``: the plan that would help now, and the one that is in force. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from understudy.statesync.pool.rebalance import MovePlan, MoveProgress
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Balance
from understudy.xds.planning.proposal import Proposal


def asked_balance(spec: PoolSpec, query: Mapping[str, str]) -> Balance:
    """The pool's ``balance``, with ``by`` and ``over`` as a request wants them. Raises ``ValueError``."""
    given: dict[str, Any] = (spec.balance or Balance()).model_dump()
    given |= {name: query[name] for name in ("by", "over") if query.get(name)}
    if "over" in query:
        given["over"] = float(query["over"])
    return Balance.model_validate(given)


def proposal_view(proposal: Proposal) -> dict[str, Any]:
    """A plan as JSON."""
    view: dict[str, Any] = msgspec.to_builtins(proposal)
    view["hot"] = [{"slot": slot, "load": load, "active": active} for slot, load, active in proposal.hot]
    return view


def advice_view(proposal: Proposal) -> dict[str, Any]:
    """What a plan would bring now, in short."""
    return {
        "by": proposal.by,
        "moves": len(proposal.moves),
        "worst_before": round(proposal.worst_before, 3),
        "worst_after": round(proposal.worst_after, 3),
        "hot": [slot for slot, _, _ in proposal.hot],
    }


def plan_view(plan: MovePlan | None, progress: MoveProgress | None, waits_for: str) -> dict[str, Any] | None:
    """The plan in force, and how far it is carried out; None if there never was one."""
    if plan is None or progress is None or plan.plan != progress.plan:
        return None
    return {
        "plan": plan.plan,
        "by": plan.by,
        "state": str(progress.state),
        "made": progress.released,
        "moves": len(plan.moves),
        "rate": plan.rate,
        "automatic": plan.automatic,
        "who": plan.who,
        "at": plan.at,
        "why": progress.why,
        "waits_for": waits_for,
    }
