"""The capacity of a pool as control servers know it."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from understudy.deploy.common.console_style import plain_table
from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.inspect.controls import ask_controls
from understudy.deploy.inspect.load import size
from understudy.deploy.inspect.member_views import View
from understudy.statesync.pool.state import PoolState

CAPACITY_PATH = "/v1/capacity"


async def ask_capacity(state: PoolState) -> View:
    """The capacity; raises :class:`NegativeAnswer` with the reason if no control server knows it."""
    controls = [at.record.http for at in state.controls.values()]
    answers: list[Any] = await ask_controls(controls, CAPACITY_PATH, state.keys.pool)
    known = [answer for answer in answers if isinstance(answer, dict) and isinstance(answer.get("losses"), list)]
    if known:
        return max(known, key=_known_days)
    none = f"pool {state.keys.pool} has no control server: start one with 'understudy control'"
    raise NegativeAnswer("; ".join(sorted({str(one) for one in answers})) or none)


async def without_headroom(state: PoolState, site: str) -> str:
    """Why the other sites could not carry the load of a site that goes; '' if they could, or if that is not known."""
    try:
        return too_small(await ask_capacity(state), site)
    except NegativeAnswer:
        return ""


def too_small(view: View, site: str) -> str:
    """The same by an answer of a control server. Pure.

    The survivors need room for the loss of one more member, if there are two or more.
    """
    for loss in view["losses"]:
        if (loss["level"], loss["name"]) != ("site", site) or not loss["survivors"]:
            continue
        if not loss["fits"]:
            return f"the busiest of the other members would use {100 * loss['worst']:.0f} % of its CPUs"
        cpus = [one["cpus"] for one in loss["survivors"]]
        needed, left = sum(one["cpu_then"] for one in loss["survivors"]), sum(cpus) - max(cpus)
        if len(cpus) > 1 and needed > view["usable"] * left:
            return f"the other members could not lose one more: they would need {needed:.1f} of {left:g} CPUs"
    return ""


def _known_days(answer: View) -> int:
    """For how many days a control server knows the pool's growth; earlier releases know none."""
    return max((one["known_days"] for one in answer.get("growth", ())), default=0)


def growth_line(one: View) -> str:
    """When a limit is reached, as text."""
    used = f"{_amount(one, 'used')} of {_amount(one, 'limit')}" if one["limit"] else f"{_amount(one, 'used')}, no limit"
    if not one["trend"]:
        return f"{used}; not enough history: {one['known_days']} whole days of {one['needed_days']}"
    if one["earliest"] is None:
        return f"{used}; not within {one['horizon']} days, by {one['known_days']} days"
    if one["days"] is None:
        soonest = f"at the earliest in {one['earliest']} (90 %)"
        return f"{used}; limit not within {one['horizon']} days, and {soonest}, by {one['known_days']} days"
    latest = "never" if one["latest"] is None else str(one["latest"])
    return f"{used}; limit in {one['days']} days (90 %: {one['earliest']} to {latest}), by {one['known_days']} days"


def _amount(one: View, part: str) -> str:
    match one["resource"]:
        case "memory":
            return f"{100 * one[part]:.0f} %"
        case "etcd":
            return size(one[part])
        case "cpu":
            return f"{one[part]:.2f} CPUs"
    return f"{one[part]:.0f}"


def capacity_table(view: View) -> RenderableType:
    """Each loss with its busiest survivor, and what to do."""
    state = "can lose any one member" if view["fits"] else "cannot lose every member: the survivors would be too busy"
    heading = f"pool {view['pool']}: {view['members']} members, {view['wanted_members']} wanted; it {state}"
    table = plain_table("if this goes", "members", "busiest survivor", "CPU now", "CPU then", "calls/s then", "fits")
    for loss in view["losses"]:
        busiest = max(loss["survivors"], key=lambda one: one["cpu_then"] / (one["cpus"] or 1), default=None)
        cells = ("none left", "", "", "") if busiest is None else _cells(busiest)
        fits = "yes" if loss["fits"] else "no"
        if loss["slots_without"]:
            fits += f"; {loss['slots_without']} slots are read from etcd"
        table.add_row(f"{loss['level']} {loss['name']}", str(len(loss["members"])), *cells, fits)
    notes = [f"a member may use {100 * view['usable']:.0f} % of its CPUs"]
    if not view["application"]:
        notes.append("CPU is that of the sidecars alone, where 'understudy sidecar --app-cgroup' is not given")
    if view.get("scale_in"):
        notes.append(_scale_in(view))
    return Group(
        Text(heading),
        table,
        *(Text(note, style="dim") for note in notes),
        *_growth(view),
        *(Text(f"! {step}", style="yellow") for step in view["advice"]),
    )


def _growth(view: View) -> list[RenderableType]:
    """The days until each limit; nothing for a control server of an earlier release."""
    rows = view.get("growth", ())
    if not rows:
        return []
    table = plain_table("growth", "by daily peaks")
    for one in rows:
        table.add_row(one["resource"], growth_line(one))
    steps = [Text(f"{one['resource']}: {one['advice']}", style="dim") for one in rows if one["advice"]]
    return [table, *steps]


def _scale_in(view: View) -> str:
    one = view["scale_in"]
    return (
        f"one member may go. {one['member']} costs least to empty: {one['slots']} slots ({one['sessions']} sessions, "
        f"{one['calls']:.1f} calls/s) are handed over, {size(one['copied_bytes'])} are copied "
        f"('understudy drain {one['member']} --pool {view['pool']}', then stop it)"
    )


def _cells(one: View) -> tuple[str, str, str, str]:
    return (
        one["member"],
        f"{one['cpu_now']:.2f}",
        f"{one['cpu_then']:.2f} of {one['cpus']:g}",
        f"{one['calls_then']:.1f}",
    )
