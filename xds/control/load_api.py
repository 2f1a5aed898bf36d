"""The paths of the admin interface that are about load: ``/v1/load``, ``/v1/rebalance``, ``/v1/capacity``.

They change nothing.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from understudy.statesync.pool.records import ForecastLevel
from understudy.xds.control.capacity_view import capacity_view, growth_view
from understudy.xds.control.load_view import load_view, member_load_view
from understudy.xds.control.pool_service import PoolService
from understudy.xds.control.rebalance_view import advice_view, asked_balance, plan_view, proposal_view
from understudy.xds.control.replies import json_reply, problem_reply
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.planning.capacity import NotKnown, capacity, cheapest_to_empty
from understudy.xds.planning.proposal import NoProposal, propose, worth_moving

BAD_BALANCE = "by: as in the spec; over: 0.01 to 1"


class LoadApi:
    """The handlers; ``service`` finds the pool that a request is about."""

    def __init__(self, service: Callable[[web.Request], PoolService]) -> None:
        self._service = service

    def routes(self) -> list[web.RouteDef]:
        """The paths."""
        return [
            web.get("/v1/load", self._load),
            web.get("/v1/rebalance", self._rebalance),
            web.get("/v1/capacity", self._capacity),
        ]

    async def _load(self, request: web.Request) -> web.Response:
        service = self._service(request)
        controller = service.controller
        return json_reply(load_view(controller.loads.current(service.now_ns()), controller.state_builder.current()))

    async def _rebalance(self, request: web.Request) -> web.Response:
        """The plan that would help now, with ``?by=`` and ``&over=`` instead of those of the spec."""
        service = self._service(request)
        cluster = service.controller.state_builder.current()
        if cluster is None:
            return problem_reply(503, "not-ready", "not ready", service.unready())
        try:
            return json_reply(await proposal_of(service, cluster, request.query))
        except ValueError:
            return problem_reply(400, "bad-balance", "bad balance", BAD_BALANCE)
        except NoProposal as error:
            return problem_reply(409, "no-plan", "no plan", str(error))

    async def _capacity(self, request: web.Request) -> web.Response:
        """What the survivors of any one loss would carry."""
        service = self._service(request)
        cluster = service.controller.state_builder.current()
        if cluster is None:
            return problem_reply(503, "not-ready", "not ready", service.unready())
        load = service.controller.loads.current(service.now_ns())
        try:
            found = await asyncio.to_thread(capacity, cluster, load)
        except NotKnown as error:
            return problem_reply(409, "not-known", "not known yet", str(error))
        view = capacity_view(found, service.pool, cheapest_to_empty(cluster, load, found))
        return json_reply(
            {**view, "growth": [growth_view(one, service.pool) for one in service.controller.growth.growth()]}
        )


async def proposal_of(service: PoolService, cluster: ClusterState, query: Mapping[str, str]) -> dict[str, Any]:
    """The plan that would help a pool now, with ``by`` and ``over`` as ``query`` wants them, as JSON.

    Raises:
        ValueError: ``query`` has a value that the spec could not have.
        NoProposal: there can be no plan now; the text says why.
    """
    balance = asked_balance(cluster.spec, query)
    load = service.controller.loads.current(service.now_ns())
    proposal = await asyncio.to_thread(propose, cluster, load, balance)
    return {"pool": service.pool, "leader": service.leadership.is_leader, **proposal_view(proposal)}


def _too_busy(service: PoolService) -> dict[str, str]:
    """The members that would hand their slots over before they fail, and whose slots the others cannot carry."""
    cluster = service.controller.state_builder.current()
    if cluster is None or cluster.spec.predictive != "move":
        return {}
    failing = [
        name
        for name, member in cluster.members.items()
        if member.expected is ForecastLevel.CRITICAL and name not in cluster.leaving
    ]
    found = {name: service.controller.too_busy(cluster, name) for name in failing}
    return {name: why for name, why in found.items() if why}


def load_status(service: PoolService) -> dict[str, Any]:
    """What ``/v1/status`` says of load: that of each member, and the rebalance in force."""
    controller, state = service.controller, service.controller.state_builder.state
    load = controller.loads.current(service.now_ns())
    proposal = controller.balancer.proposal
    plan, progress = state.move_plan, state.move_progress
    return {
        "load": [member_load_view(name, one) for name, one in load.members.items()],
        "too_busy": _too_busy(service),
        "advice": advice_view(proposal) if proposal and worth_moving(proposal) else None,
        "rebalance": plan_view(
            plan.record if plan else None, progress.record if progress else None, controller.rebalancer.waits_for
        ),
    }
