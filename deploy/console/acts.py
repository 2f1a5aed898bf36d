"""What operators do at the console: drain and undrain a member, take a site offline and bring it back, and plans.

Each act is the command of the same name: the same checks and the same record in the audit log
(``understudy.deploy.operate``, and ``plan_acts.py`` for plans). ``preview`` says what it would do, ``perform`` does it.
"""

import os
import socket
from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec

from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.console.drill_runs import DRILL_SECONDS
from understudy.deploy.console.plan_acts import plan_perform, plan_preview
from understudy.deploy.console.wishes import DRILL, Wish
from understudy.deploy.inspect.draining import owned_by
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.views import ranges
from understudy.deploy.operate import service
from understudy.deploy.operate.service import Change
from understudy.deploy.operate.site_offline import checked_site_offline
from understudy.statesync.audit.actor import account_of
from understudy.statesync.audit.entry import Actor
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.pool.records import Intent, MemberState
from understudy.statesync.pool.state import PoolState
from understudy.xds.control.etcd_links import EtcdLink
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.planning.plan import next_plan
from understudy.xds.planning.site_switch import lately_back

PARTS_SHOWN = 20


def change_of(state: PoolState, wish: Wish, now: float) -> Change:
    """What the wish writes. Raises :class:`NegativeAnswer` if it is refused."""
    if wish.act == "drain":
        return service.drain(state, wish.target, now, wish.seconds)
    if wish.act == "undrain":
        if wish.target not in state.intents:
            service.require_member(state, wish.target)
            raise NegativeAnswer(f"{wish.target} is not drained")
        return service.undrain(state, wish.target)
    if wish.act == "site offline":
        until = now + (wish.seconds or service.OFFLINE_SECONDS)
        return service.site_offline(state, Intent(site=wish.target, until=until, since=now))
    online = service.site_online(state, wish.target, now)
    if wish.target not in state.sites and online.intent is None:
        raise NegativeAnswer(online.nothing_to_do)
    return online


def preview(state: PoolState, cluster: ClusterState | None, wish: Wish, now: float) -> dict[str, Any]:
    """The command and what it would do. Raises :class:`NegativeAnswer` if it would be refused."""
    if wish.act.startswith("rebalance"):
        return plan_preview(state, wish)
    if wish.act == DRILL:
        return drill_preview(state, cluster, wish, now)
    change = change_of(state, wish, now)
    affected = service.members_of(state, wish.target) if wish.act.startswith("site") else [wish.target]
    return {
        "command": wish.command(state.keys.pool),
        "undo": change.act.undo,
        "until": change.intent.until if change.intent and wish.act != "site online" else 0.0,
        "effect": _effect(state, cluster, wish, affected, now),
    }


def drill_preview(state: PoolState, cluster: ClusterState | None, wish: Wish, now: float) -> dict[str, Any]:
    """The same for a drill. Raises :class:`NegativeAnswer` if the drain would be refused, or not measured."""
    if state.spec is not None and state.spec.record.tcp:
        raise NegativeAnswer(
            "front Envoys count no requests in a TCP pool, so a page cannot measure the drill: "
            f"run understudy drill drain --member {wish.target} --load N --pool {state.keys.pool}"
        )
    drain = msgspec.structs.replace(wish, act="drain")
    change_of(state, drain, now)
    seconds = wish.seconds or DRILL_SECONDS
    return {
        "command": wish.command(state.keys.pool),
        "undo": f"understudy undrain {wish.target} --pool {state.keys.pool}",
        "until": 0.0,
        "effect": [
            *_effect(state, cluster, drain, [wish.target], now),
            f"{seconds:g} s after that it is brought back, and gets its share of slots again.",
            "Requests that fail meanwhile are counted, by what front Envoys report.",
        ],
    }


def _effect(state: PoolState, cluster: ClusterState | None, wish: Wish, affected: list[str], now: float) -> list[str]:
    """What happens to slots, in sentences. The moves are those of the next table that the planner would write."""
    leaving = wish.limited
    owned = owned_by(state, affected)
    lines = []
    if leaving:
        names = _shortened(affected, "members") or "no member"
        which = f" ({_shortened(ranges(owned).split(', '), 'ranges of slots')})" if owned else ""
        lines.append(f"{names} would hand over {len(owned)} slots{which}. No request fails.")
    moves = _moves(cluster, wish, affected, now) if cluster else None
    if moves is None:
        lines.append("Where slots would go is not known: this control server has no slot table yet.")
    elif moves:
        parts = [f"{count} to {member}" for member, count in sorted(moves.items())]
        lines.append(f"The next slot table would move {sum(moves.values())} slots: {_shortened(parts, 'members')}.")
    else:
        lines.append("The slot table would move no slot.")
    return lines


def _shortened(parts: list[str], what: str) -> str:
    """The parts as one text; only some of very many."""
    rest = [f"and {len(parts) - PARTS_SHOWN} more {what}"] if len(parts) > PARTS_SHOWN else []
    return ", ".join([*parts[:PARTS_SHOWN], *rest])


def _moves(cluster: ClusterState, wish: Wish, affected: list[str], now: float) -> Counter[str] | None:
    """How many slots each member would get, by the planner."""
    offline, back = cluster.offline, cluster.table.returned if cluster.table else {}
    ended = dict(cluster.ended_rests)
    if wish.act == "site online":
        offline, ended[wish.target] = offline - {wish.target}, back.get(wish.target, 0.0)
    elif wish.act == "site offline":
        offline = offline | {wish.target}
    state = {"drain": MemberState.DRAINING, "undrain": MemberState.UP}.get(wish.act)
    states = {**cluster.states, **(dict.fromkeys(affected, state) if state else {})}
    wanted = replace(cluster, offline=offline, states=states, ended_rests=ended)
    plan = next_plan(wanted, now, lately_back=lately_back(cluster, now))
    if plan is None:
        return Counter() if cluster.table else None
    return Counter(replace(cluster, offline=offline).pending_moves(plan.table.orders).values())


def actor_of(name: str, etcd: EtcdLink, wish: Wish, origin: str) -> Actor:
    """Who acts, for the audit log: as the operator says, at ``origin``, through the console of the server ``name``."""
    return Actor(
        wish.who.strip() or "not named",
        socket.gethostname(),
        f"console of {name}, for {origin}, pid {os.getpid()}",
        account_of(etcd.settings),
    )


async def perform(name: str, etcd: EtcdLink, pool: str, wish: Wish, origin: str, now: float) -> dict[str, Any]:
    """Do it, on records that are read now. Raises :class:`NegativeAnswer` if it is refused.

    ``name`` is that of the control server, ``etcd`` the cluster that has the pool.
    """
    state, _ = await read_pool(etcd.client, pool)
    actor = actor_of(name, etcd, wish, origin)
    log = OperatorLog(etcd.client, state.keys, actor, wish.reason.strip())
    command = wish.command(pool)
    if wish.act.startswith("rebalance"):
        return {"done": await plan_perform(etcd.client, state, log, wish, actor.who), "command": command}
    change = change_of(state, wish, now)
    if wish.act == "site offline" and change.intent:
        change = await checked_site_offline(etcd.client, state, change.intent)
    await service.carry_out(log, change)
    return {"done": change.act.what, "undo": change.act.undo, "command": command}
