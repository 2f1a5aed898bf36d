"""What pages show of load: the plan that would help now, and the load of slots.

Both are those of the control server that serves the page: members report their load to each of them.
"""

import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.console.plans import proposal_page
from understudy.deploy.data.rebalance import moves_in_plan, refusal
from understudy.statesync.pool.state import PoolState
from understudy.xds.control.load_api import BAD_BALANCE, proposal_of
from understudy.xds.control.pool_service import PoolService
from understudy.xds.planning.proposal import NoProposal

View = dict[str, Any]
UNASKED_MOST = 1000
"""Members of a pool up to which a page makes a plan without being asked to."""


async def proposal(service: PoolService, asked: Mapping[str, str]) -> View:
    """The plan as ``/v1/rebalance`` gives it; ``asked`` are ``by`` and ``over``, '' for what the spec says.

    Raises :class:`NegativeAnswer` if there can be no plan now; the text says why.
    """
    cluster = service.controller.state_builder.current()
    if cluster is None:
        raise NegativeAnswer(service.unready())
    try:
        return await proposal_of(service, cluster, {name: value for name, value in asked.items() if value})
    except ValueError:
        raise NegativeAnswer(BAD_BALANCE) from None
    except NoProposal as error:
        raise NegativeAnswer(str(error)) from None


async def plan_values(service: PoolService, state: PoolState, asked: Mapping[str, str], *, ordered: bool) -> View:
    """What the template needs of the plan; ``refused`` is why it cannot be applied, '' if it can.

    ``ordered``: somebody pressed the button that makes the plan.
    """
    options = {name: value for name, value in asked.items() if value}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    plan, no_plan, refused = None, "", ""
    try:
        _refuse_unasked(len(state.members), ordered=ordered)
        view = await proposal(service, asked)
        plan, refused = proposal_page(view, asked), _refused(state, view)
    except NegativeAnswer as error:
        no_plan = str(error)
    return {
        "plan": plan,
        "no_plan": no_plan,
        "refused": refused,
        "asked": asked,
        "options": f" {shlex.join(words)}" if words else "",
        "query": f"?{urlencode(options)}" if options else "",
    }


def _refuse_unasked(members: int, *, ordered: bool) -> None:
    if members > UNASKED_MOST and not ordered:
        raise NegativeAnswer(f"the pool has {members} members, and a plan of them all is made when you press 'Plan'")


def _refused(state: PoolState, view: View) -> str:
    """Why the plan cannot be applied now, by the records of etcd; '' if it can."""
    if state.spec is None:
        return "the pool has no spec"
    try:
        return refusal(state, state.spec.record, moves_in_plan(state, view))
    except NegativeAnswer as error:
        return str(error)


def slot_loads(service: PoolService) -> dict[str, View]:
    """Per slot the session calls a second and the sessions that its active reported last. Other slots are not known."""
    loads = service.controller.loads.current(service.now_ns()).slots
    return {str(slot): {"calls": round(one.calls, 2), "sessions": one.sessions} for slot, one in loads.items()}
