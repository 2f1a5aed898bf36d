"""A rebalance from outside: the plan that a control server proposes, and how the one in force stands."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from understudy.deploy.common.console_style import plain_table, utc_time
from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.inspect.controls import ask_controls
from understudy.deploy.inspect.load import size
from understudy.deploy.inspect.member_views import View
from understudy.statesync.pool.state import PoolState

REBALANCE_PATH = "/v1/rebalance"


async def ask_proposal(state: PoolState, by: str, over: float | None) -> View:
    """The plan of the leading control server, or else of another one.

    Raises :class:`NegativeAnswer` if none has one; the text says why.
    """
    asked = [f"by={by}"] if by else []
    asked += [f"over={over:g}"] if over is not None else []
    path = REBALANCE_PATH + ("?" + "&".join(asked) if asked else "")
    controls = {name: at.record.http for name, at in state.controls.items()}
    answers = await ask_controls(controls.values(), path, state.keys.pool)
    plans = [one for one in answers if isinstance(one, dict) and isinstance(one.get("moves"), list)]
    if plans:
        return max(plans, key=lambda one: bool(one.get("leader")))
    if not answers:
        raise NegativeAnswer(f"pool {state.keys.pool} has no control server: start one with 'understudy control'")
    raise NegativeAnswer("; ".join(sorted({str(one) for one in answers})))


def proposal_table(view: View) -> RenderableType:
    """The plan: members before and after, its moves, its cost, and what no move can help."""
    amount = amounts_of(view["by"])
    members = plain_table("member", "share", "now", "", "after", "")
    for one in view["members"]:
        members.add_row(
            one["member"],
            amount(one["share"]),
            amount(one["before"]),
            of_share(one["before"], one["share"]),
            amount(one["after"]),
            of_share(one["after"], one["share"]),
        )
    lines = [headline(view), *([cost(view)] if view["moves"] else [])]
    parts: list[RenderableType] = [*(Text(line) for line in lines), members]
    if view["moves"]:
        moves = plain_table("slot", "from", "to")
        for move in view["moves"]:
            moves.add_row(str(move["slot"]), move["source"], move["target"])
        parts.append(moves)
    return Group(*parts, *(Text(f"! {line}", style="yellow") for line in remarks(view)))


def headline(view: View) -> str:
    """What a plan brings, in a sentence."""
    bound = f"every member within {100 * (1 + view['over']):.0f} % of its share by {view['by']}"
    if not view["moves"]:
        state = "no move helps" if view["above"] or view["hot"] else bound
        return f"pool {view['pool']}, table {view['generation']}: nothing to move, {state}"
    worst = f"the busiest member has {view['worst_before']:.2f} times its share, and {view['worst_after']:.2f} after it"
    return f"pool {view['pool']}, table {view['generation']}: {_counted(len(view['moves']), 'move', 'moves')}; {worst}"


def cost(view: View) -> str:
    """What a plan costs, in a sentence."""
    copies = f"{_counted(view['copies'], 'copy', 'copies')} of slots to make ({size(view['copied_bytes'])})"
    return (
        f"slots with {view['sessions']} sessions ({size(view['bytes'])}) get another active, {view['to_standby']} of "
        f"{len(view['moves'])} their standby; {copies}"
    )


def remarks(view: View) -> list[str]:
    """What the moves of a plan cannot help, in sentences."""
    amount = amounts_of(view["by"])
    found = [
        f"slot {one['slot']} at {one['active']} is hot: its load of {amount(one['load'])} alone is more than any "
        "member may have, so no move helps; spread its sessions over more keys"
        for one in view["hot"]
    ]
    return found + [f"{member} stays above its bound: no slot of it fits elsewhere" for member in view["above"]]


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def of_share(load: float, share: float) -> str:
    """A load as a part of a member's share; '' if it has none."""
    return f"{100 * load / share:.0f} %" if share else ""


def amounts_of(by: str) -> Callable[[float], str]:
    """How an amount of a measure is written."""
    match by:
        case "bytes":
            return size
        case "requests":
            return lambda value: f"{value:.1f}/s"
        case "cpu":
            return lambda value: f"{value:.3f} CPU"
        case _:
            return lambda value: f"{value:.0f}"


def plan_status(state: PoolState, statuses: Sequence[Any] = ()) -> View:
    """The output of ``rebalance status``; ``statuses`` are what control servers answer to ``/v1/status``."""
    plan, progress = state.move_plan, state.move_progress
    if plan is None or progress is None:
        return {"pool": state.keys.pool, "plan": None}
    waits = [one["rebalance"] for one in statuses if isinstance(one, dict) and isinstance(one.get("rebalance"), dict)]
    now = {slot: at.record.active for slot, at in state.owners.items()}
    steps = plan.record.steps()
    return {
        "pool": state.keys.pool,
        "plan": plan.record.plan,
        "by": plan.record.by,
        "state": str(progress.record.state),
        "moves": len(steps),
        "made": sum(now.get(move.slot) == move.target for move in steps[: progress.record.released]),
        "rate": plan.record.rate,
        "automatic": plan.record.automatic,
        "who": plan.record.who,
        "at": plan.record.at,
        "why": progress.record.why,
        "waits_for": next((str(one["waits_for"]) for one in waits if one.get("waits_for")), ""),
        "generation": plan.record.generation,
    }


def plan_status_table(view: Mapping[str, Any]) -> RenderableType:
    """The output of ``rebalance status`` for people."""
    return "\n".join(plan_lines(view))


def plan_lines(view: Mapping[str, Any]) -> list[str]:
    """The last plan in lines: how far it is, who approved it, and why it does not go on."""
    if view["plan"] is None:
        return [f"pool {view['pool']} has had no rebalance"]
    kind = "automatic plan" if view["automatic"] else "plan"
    why = view["why"] or view["waits_for"]
    return [
        f"{kind} {view['plan']} by {view['by']}: {view['state']}, {view['made']} of {view['moves']} slots moved",
        f"approved by {view['who'] or 'the leader'} at {utc_time(view['at'])}, up to {view['rate']:g} moves a second",
        *([f"{'it waits: ' if view['waits_for'] and not view['why'] else ''}{why}"] if why else []),
    ]
