"""``understudy rebalance``: shows the moves that even the load out, and has them made, ended or undone."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from understudy.deploy.cli.watching import watch_option
from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.operator import reason_option, this_operator
from understudy.deploy.common.options import (
    EtcdOptions,
    PoolLocation,
    etcd_options,
    examples,
    locate_pool,
    output_option,
    pool_option,
    show,
    shown_option,
)
from understudy.deploy.common.printable import say
from understudy.statesync.pool.rebalance import RATE_MOST

if TYPE_CHECKING:
    from understudy.statesync.etcd.client import EtcdClient
    from understudy.statesync.pool.rebalance import SlotMove
    from understudy.statesync.pool.state import PoolState

POLL_INTERVAL = 0.2
_MEASURES = ("count", "requests", "sessions", "bytes", "cpu")
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

rate_option = shown_option(
    "--rate",
    type=click.FloatRange(min=0, max=RATE_MOST, min_open=True),
    default=1.0,
    help="Moves a second, at the most. The next moves begin when the last ones are done.",
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
wait_option = shown_option(
    "--wait",
    type=click.FloatRange(min=0),
    default=600.0,
    help="Seconds to follow the moves; 0: do not wait. The moves go on without this command.",
)
by_option = click.option("--by", type=click.Choice(_MEASURES), help="What to balance. Default: balance.by of the spec.")
over_option = click.option(
    "--over",
    type=click.FloatRange(0.01, 1),
    help="How far a member may be above its share, such as 0.2. Default: balance.over of the spec.",
)


@click.group(
    epilog=examples(
        "understudy rebalance plan",
        "understudy rebalance apply --rate 2",
        "understudy rebalance status",
        "understudy rebalance undo",
    )
)
def rebalance() -> None:
    """Move slots so that every member's load is near its share.

    The pool's spec says what is balanced: 'balance: {by: requests, over: 20%}'. Moves are handovers: no request fails.
    """


@rebalance.command(
    epilog=examples(
        "understudy rebalance plan",
        "understudy rebalance plan --by sessions --over 0.1 -o json",
        "understudy rebalance plan --save plan.json; understudy rebalance apply plan.json",
    )
)
@by_option
@over_option
@click.option(
    "--save", type=click.Path(path_type=Path, dir_okay=False), help="Also write the plan to this file. Default: none."
)
@pool_option(required=False)
@etcd_options
@output_option
def plan(
    by: str | None, over: float | None, save: Path | None, pool: str | None, etcd: EtcdOptions, output: str
) -> None:
    """Show the fewest moves that bring every member within the bound, and what they cost. Nothing is moved.

    Exit code 1: there can be no plan now; the text says why.
    """
    from understudy.deploy.data.rebalance import plan_file
    from understudy.deploy.inspect.rebalance import ask_proposal, proposal_table

    async def run(client: "EtcdClient", state: "PoolState") -> dict[str, Any]:  # noqa: ARG001 - one shape for all
        return await ask_proposal(state, by or "", over)

    view = _with_pool(locate_pool(etcd, pool), run)
    if save is not None:
        try:
            save.write_text(plan_file(view))
        except OSError as error:
            raise DeployError(f"--save {save}: {error}") from None
    show(output, view, proposal_table)


@rebalance.command(
    epilog=examples(
        "understudy rebalance apply",
        "understudy rebalance apply plan.json --rate 5 --yes --reason 'peak at noon'",
    )
)
@click.argument("file", type=_FILE, required=False)
@rate_option
@by_option
@over_option
@yes_option
@reason_option
@wait_option
@pool_option(required=False)
@etcd_options
def apply(
    file: Path | None,
    rate: float,
    by: str | None,
    over: float | None,
    yes: bool,
    reason: str,
    wait: float,
    pool: str | None,
    etcd: EtcdOptions,
) -> None:
    """Make the moves of a plan: of FILE ('plan --save'), or of a plan that is made now.

    The leading control server makes them, a few at a time. If it dies, the next one goes on.

    Exit code 1: the plan is for another table, a member cannot take slots, or the moves are not done after --wait.
    """
    from understudy.deploy.data.rebalance import PLAN_KIND, moves_in_plan, read_file
    from understudy.deploy.inspect.rebalance import ask_proposal, proposal_table

    if file is not None and (by or over is not None):
        raise click.UsageError("--by and --over are for a plan that is made now: FILE has its own")
    place = locate_pool(etcd, pool)

    async def run(client: "EtcdClient", state: "PoolState") -> None:
        view = read_file(file, PLAN_KIND) if file else await ask_proposal(state, by or "", over)
        moves = moves_in_plan(state, view)
        if not moves:
            show("table", view, proposal_table)
            return
        if not yes:
            show("table", view, proposal_table)
        await _approve(client, state, moves, place, "rebalance apply", str(view.get("by", "")), rate, yes, reason, wait)

    _with_pool(place, run)


@rebalance.command(epilog=examples("understudy rebalance abort --reason 'error rate rises'"))
@reason_option
@pool_option(required=False)
@etcd_options
def abort(reason: str, pool: str | None, etcd: EtcdOptions) -> None:
    """End the plan that is carried out: no further slot moves. What has moved stays; 'undo' moves it back.

    Exit code 1: no plan is carried out.
    """
    from understudy.deploy.data.rebalance import end_plan
    from understudy.statesync.audit.log import OperatorLog

    place = locate_pool(etcd, pool)

    async def run(client: "EtcdClient", state: "PoolState") -> None:
        actor = this_operator("rebalance abort", place.etcd)
        ended = await end_plan(client, state, OperatorLog(client, state.keys, actor, reason), actor.who)
        say(f"plan {ended.record.plan} is aborted; {ended.record.released} of its moves were begun")

    _with_pool(place, run)


@rebalance.command(epilog=examples("understudy rebalance undo", "understudy rebalance undo --rate 5 --yes"))
@rate_option
@yes_option
@reason_option
@wait_option
@pool_option(required=False)
@etcd_options
def undo(rate: float, yes: bool, reason: str, wait: float, pool: str | None, etcd: EtcdOptions) -> None:
    """Move the slots of the last plan back to where they were.

    Exit code 1: nothing is left to undo, a member cannot take slots, or the moves are not done after --wait.
    """
    from understudy.deploy.data.rebalance import moves_back

    place = locate_pool(etcd, pool)

    async def run(client: "EtcdClient", state: "PoolState") -> None:
        moves = moves_back(state)
        by = state.move_plan.record.by if state.move_plan else ""
        await _approve(client, state, moves, place, "rebalance undo", f"undo of {by}", rate, yes, reason, wait)

    _with_pool(place, run)


@rebalance.command(epilog=examples("understudy rebalance export > placement.json"))
@pool_option(required=False)
@etcd_options
def export(pool: str | None, etcd: EtcdOptions) -> None:
    """Print which member is active for which slots now, for 'rebalance import'."""
    from understudy.deploy.data.rebalance import placement_file

    async def run(client: "EtcdClient", state: "PoolState") -> str:  # noqa: ARG001 - one shape for all
        return placement_file(state)

    click.echo(_with_pool(locate_pool(etcd, pool), run), nl=False)


@rebalance.command(
    "import", epilog=examples("understudy rebalance import placement.json", "understudy rebalance import it.json --yes")
)
@click.argument("file", type=_FILE)
@rate_option
@yes_option
@reason_option
@wait_option
@pool_option(required=False)
@etcd_options
def import_(file: Path, rate: float, yes: bool, reason: str, wait: float, pool: str | None, etcd: EtcdOptions) -> None:
    """Move slots so that members are active as in FILE ('rebalance export'); slots that it leaves out stay.

    Exit code 1: everything is as in FILE, a member cannot take slots, or the moves are not done after --wait.
    """
    from understudy.deploy.data.rebalance import PLACEMENT_KIND, moves_in_placement, read_file

    place = locate_pool(etcd, pool)

    async def run(client: "EtcdClient", state: "PoolState") -> None:
        moves = moves_in_placement(state, read_file(file, PLACEMENT_KIND))
        await _approve(client, state, moves, place, "rebalance import", "import", rate, yes, reason, wait)

    _with_pool(place, run)


@rebalance.command(epilog=examples("understudy rebalance status", "understudy rebalance status --watch"))
@watch_option
@pool_option(required=False)
@etcd_options
@output_option
def status(pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Show the last plan: who approved it, how many slots have moved, and what it waits for."""
    from understudy.deploy.inspect.rebalance import plan_status_table

    place = locate_pool(etcd, pool)

    async def run(client: "EtcdClient", state: "PoolState") -> dict[str, Any]:  # noqa: ARG001 - one shape for all
        return await _status_of(state)

    show(output, _with_pool(place, run), plan_status_table)


async def _status_of(state: "PoolState") -> dict[str, Any]:
    from understudy.deploy.inspect.controls import ask_controls
    from understudy.deploy.inspect.rebalance import plan_status

    addresses = [at.record.http for at in state.controls.values()]
    return plan_status(state, await ask_controls(addresses, "/v1/status", state.keys.pool))


def _with_pool(place: PoolLocation, run: Callable[..., Any]) -> Any:  # noqa: ANN401 - what ``run`` returns
    """Connect, read the pool, and do ``run`` with both."""
    from understudy.deploy.inspect.query import connect, read_pool, require_pool

    async def connected() -> Any:  # noqa: ANN401 - as above
        async with connect(place.etcd) as client:
            state, _ = await read_pool(client, place.pool)
            require_pool(state, place.etcd)
            return await run(client, state)

    return asyncio.run(connected())


async def _approve(
    client: "EtcdClient",
    state: "PoolState",
    moves: "Sequence[SlotMove]",
    place: PoolLocation,
    act: str,
    by: str,
    rate: float,
    yes: bool,
    reason: str,
    wait: float,
) -> None:
    """Write the plan if it can be carried out and the user agrees, and follow it."""
    from understudy.deploy.data.rebalance import approve, new_plan, refusal
    from understudy.deploy.inspect.query import require_pool
    from understudy.statesync.audit.log import OperatorLog

    why_not = refusal(state, require_pool(state, place.etcd), moves)
    if why_not:
        raise NegativeAnswer(why_not)
    if not yes:
        _confirm(len(moves), rate)
    actor = this_operator(act, place.etcd)
    record = new_plan(state, moves, rate, by, actor.who)
    await approve(state, OperatorLog(client, state.keys, actor, reason), record, act)
    say(f"plan {record.plan} is approved: {len(moves)} slots move, up to {rate:g} a second")
    if wait:
        await _follow(client, place.pool, record.plan, wait)


def _confirm(moves: int, rate: float) -> None:
    try:
        agreed = click.confirm(f"Move {moves} slots, up to {rate:g} a second?", err=True)
    except click.Abort:
        raise DeployError("no confirmation, so nothing moves: give --yes") from None
    if not agreed:
        raise SystemExit(1)


async def _follow(client: "EtcdClient", pool: str, plan: str, wait: float) -> None:
    """Print the progress until the plan has ended. Raises :class:`NegativeAnswer` if it is not done by then."""
    from understudy.deploy.inspect.query import read_pool

    deadline, shown = time.monotonic() + wait, ""
    while True:
        state, _ = await read_pool(client, pool)
        view = await _status_of(state)
        if view["plan"] != plan:
            raise NegativeAnswer(f"another plan has replaced {plan}: see 'understudy rebalance status'")
        line = f"{view['made']} of {view['moves']} slots moved"
        if view["state"] == "done":
            say(f"plan {plan} is done: {line}; 'understudy rebalance undo' moves them back")
            return
        if view["state"] == "aborted":
            raise NegativeAnswer(f"plan {plan} ended early: {line}; {view['why']}")
        line += f"; it waits: {view['waits_for']}" if view["waits_for"] else ""
        if line != shown:
            say(line)
        shown = line
        if time.monotonic() >= deadline:
            raise NegativeAnswer(f"plan {plan} is not done after {wait:g} s, and goes on: {line}")
        await asyncio.sleep(POLL_INTERVAL)
