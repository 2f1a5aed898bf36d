"""``understudy slots``: lists slots whose newest writes are lost, and lets them go on with what etcd has."""

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any

import click

from understudy.deploy.cli.every_pool import pools_option
from understudy.deploy.cli.watching import watch_option
from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.operator import reason_option, this_operator
from understudy.deploy.common.options import (
    EtcdOptions,
    PoolLocation,
    etcd_options,
    examples,
    list_output_option,
    locate_pool,
    output_option,
    pool_option,
    show,
    shown_option,
)
from understudy.deploy.common.printable import say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from understudy.deploy.inspect.waiting import WaitingSlot
    from understudy.statesync.etcd.client import EtcdClient
    from understudy.statesync.pool.state import PoolState

POLL_INTERVAL = 0.2
SLOTS_TOGETHER = 60
"""Slots in one transaction; etcd takes up to 128 operations."""
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


@click.group(
    epilog=examples(
        "understudy slots waiting",
        "understudy slots revive 3 17",
        "understudy slots revive --all-waiting",
    )
)
def slots() -> None:
    """List slots whose newest writes are lost, and let them go on with what etcd has.

    Only pools with 'durability: replicas', or with writes of that class, can have such slots.
    """


@slots.command(
    epilog=examples(
        "understudy slots waiting",
        "understudy slots waiting -o json",
    )
)
@watch_option
@etcd_options
@list_output_option
@pools_option()
def waiting(pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """List the slots that nobody serves because all processes with their newest writes are gone.

    For some seconds after a failure this is normal: a member restores such a slot as soon as it has proof of the
    deaths, unless the spec says 'on_total_loss: wait'.

    Exit code 1: there are such slots.
    """
    from understudy.deploy.inspect.waiting import waiting_view

    view = waiting_view(asyncio.run(_read(locate_pool(etcd, pool))))
    show(output, view, _waiting_table, lambda view: [row["slot"] for row in view["waiting"]])
    if view["waiting"]:
        raise SystemExit(1)


async def _read(place: PoolLocation) -> "PoolState":
    from understudy.deploy.inspect.query import connect, read_pool, require_pool

    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
    require_pool(state, place.etcd)
    return state


def _waiting_table(view: dict[str, Any]) -> "RenderableType":
    from understudy.deploy.common.console_style import plain_table

    if not view["waiting"]:
        return f"pool {view['pool']}: no slot waits"
    table = plain_table("slot", "epoch", "newest writes were at", "why it is not served")
    for row in view["waiting"]:
        members = ", ".join(dict.fromkeys(one["member"] for one in row["missing"]))
        table.add_row(str(row["slot"]), str(row["epoch"]), members, row["reason"])
    return table


def _slot_numbers(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> list[int]:  # noqa: ARG001
    """Argument callback: slots and ranges of slots, such as ``3`` and ``8-15``."""
    numbers: set[int] = set()
    for text in value:
        found = _RANGE.fullmatch(text)
        if found is None:
            raise click.BadParameter(f"{text!r} is no slot; examples: 3, 8-15", param=parameter)
        first = int(found[1])
        numbers.update(range(first, int(found[2] or first) + 1))
    return sorted(numbers)


@slots.command(
    epilog=examples(
        "understudy slots revive 3 8-15",
        "understudy slots revive --all-waiting --yes -o json",
    )
)
@click.argument("numbers", metavar="[SLOT]...", nargs=-1, callback=_slot_numbers)
@click.option("--all-waiting", is_flag=True, help="Revive all slots that 'understudy slots waiting' lists.")
@click.option("--yes", is_flag=True, help="Give the writes up without asking.")
@reason_option
@shown_option(
    "--wait",
    type=click.FloatRange(min=0),
    default=60.0,
    help="Seconds to wait until members serve the slots; 0: do not wait.",
)
@pool_option(required=False)
@etcd_options
@output_option
def revive(
    numbers: list[int],
    all_waiting: bool,
    yes: bool,
    reason: str,
    wait: float,
    pool: str | None,
    etcd: EtcdOptions,
    output: str,
) -> None:
    """Let SLOTs go on with what etcd has, and give up their newest writes.

    For slots whose processes with the newest writes are gone for good. A member then claims them, whatever
    'on_total_loss' says, and without proof that these processes are dead. First make sure that they have ended. 'sync'
    writes are never lost.

    Exit code 1: a SLOT is served, or a process with its newest writes is registered; no slot waits (--all-waiting); or
    the slots are not served after --wait.
    """
    if bool(numbers) == all_waiting:
        raise click.UsageError("give the slots, or --all-waiting")
    place = locate_pool(etcd, pool)
    chosen = _chosen(asyncio.run(_read(place)), numbers, yes=yes)
    view = asyncio.run(_revive(place, chosen, reason, wait, quiet=output != "table"))
    show(output, view, _line)


def _chosen(state: "PoolState", numbers: list[int], *, yes: bool) -> "list[WaitingSlot]":
    """The slots to revive, after the user has agreed. Raises :class:`NegativeAnswer` if one must not be revived."""
    from understudy.deploy.inspect.member_views import slots_of
    from understudy.deploy.inspect.waiting import loss_of, refusal, waiting_slots

    if numbers and numbers[-1] >= slots_of(state):
        raise DeployError(f"pool {state.keys.pool!r} has slots 0 to {slots_of(state) - 1}")
    refused = [f"slot {slot}: {why}" for slot in numbers if (why := refusal(state, slot))]
    if refused:
        raise NegativeAnswer("\n".join(refused))
    chosen = [one for one in waiting_slots(state) if not numbers or one.slot in numbers]
    if not chosen:
        raise NegativeAnswer(f"no slot of pool {state.keys.pool} waits")
    if not any(at.record.state.may_hold_slots for at in state.members.values()):
        raise NegativeAnswer(f"pool {state.keys.pool} has no member that can serve slots: start one first")
    told = loss_of(state, chosen)
    if not yes:
        say(f"{told}.", err=True)
        _confirm()
    return chosen


def _confirm() -> None:
    try:
        agreed = click.confirm("Give these writes up?", err=True)
    except click.Abort:
        raise DeployError("no confirmation, so no slot was revived: give --yes") from None
    if not agreed:
        raise SystemExit(1)


async def _revive(
    place: PoolLocation, chosen: "list[WaitingSlot]", reason: str, wait: float, *, quiet: bool
) -> dict[str, Any]:
    from understudy.deploy.inspect.query import connect

    async with connect(place.etcd) as client:
        await _give_word(client, place, chosen, reason)
        left = await _follow(client, place.pool, chosen, wait, quiet=quiet)
    done = sorted(one.slot for one in chosen if one.slot not in left)
    return {"pool": place.pool, "revived": done, "waiting": sorted(left)}


async def _give_word(client: "EtcdClient", place: PoolLocation, chosen: "list[WaitingSlot]", reason: str) -> None:
    """Write the operator's word, if the owner records are still those that the user was shown."""
    from understudy.deploy.inspect.views import ranges
    from understudy.statesync.audit.entry import Act
    from understudy.statesync.audit.log import OperatorLog
    from understudy.statesync.etcd.client import ModRevision, Put
    from understudy.statesync.pool.keys import PoolKeys
    from understudy.statesync.pool.records import Revival

    keys, actor, now = PoolKeys(place.pool), this_operator("slots revive", place.etcd), time.time()
    log, by = OperatorLog(client, keys, actor, reason), f"{actor.who}@{actor.host}"
    for start in range(0, len(chosen), SLOTS_TOGETHER):
        part = chosen[start : start + SLOTS_TOGETHER]
        gone = sorted({process.member for one in part for process in one.missing})
        act = Act(
            f"slots revive {ranges(one.slot for one in part)}", detail=f"gives up writes in memory of {', '.join(gone)}"
        )
        result = await log.txn(
            act,
            [ModRevision(keys.owner(one.slot), one.fence) for one in part],
            [Put(keys.revival(one.slot), Revival(one.owner.epoch, by, now).encode()) for one in part],
            before=max(one.fence for one in part),
        )
        if not result.succeeded:
            raise NegativeAnswer("a slot was claimed in the meantime: see 'understudy slots waiting', and try again")


async def _follow(
    client: "EtcdClient", pool: str, chosen: "list[WaitingSlot]", wait: float, *, quiet: bool
) -> set[int]:
    """Wait until the slots have another owner, and return those that have none; none unless ``wait`` is 0."""
    from understudy.deploy.inspect.query import read_pool
    from understudy.deploy.inspect.views import ranges

    deadline, shown = time.monotonic() + wait, ""
    fences = {one.slot: one.fence for one in chosen}
    while True:
        state, _ = await read_pool(client, pool)
        left = {slot for slot, fence in fences.items() if slot in state.owners and state.owners[slot].revision == fence}
        for slot in fences.keys() - left:
            if slot in state.revivals:
                await client.delete(state.keys.revival(slot))
        line = f"{len(fences) - len(left)} of {len(fences)} slots are served again"
        if line != shown and not quiet:
            say(line)
        shown = line
        if not left or not wait:
            return left
        if time.monotonic() >= deadline:
            raise NegativeAnswer(
                f"slots {ranges(left)} are not served after {wait:g} s. A member claims them as soon as it can; "
                "see 'understudy slots waiting' and the logs of the members"
            )
        await asyncio.sleep(POLL_INTERVAL)


def _line(view: dict[str, Any]) -> str:
    """The result as a line of text."""
    from understudy.deploy.inspect.views import ranges

    if view["waiting"]:
        return f"slots {ranges(view['waiting'])} are served as soon as a member claims them"
    return f"slots {ranges(view['revived'])} are served again, with what etcd had"
