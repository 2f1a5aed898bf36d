"""The commands ``drain`` and ``undrain``: take a member out of service, and bring it back."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from understudy.deploy.common.completion import complete_member
from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.common.operator import reason_option, this_operator
from understudy.deploy.common.options import (
    EtcdOptions,
    PoolLocation,
    etcd_options,
    examples,
    locate_pool,
    pool_option,
    shown_option,
)
from understudy.deploy.common.printable import say
from understudy.telemetry.timing.duration import parse_duration

if TYPE_CHECKING:
    from understudy.statesync.etcd.client import EtcdClient
    from understudy.statesync.pool.state import PoolState

POLL_INTERVAL = 0.2
OBSTACLE_SHOWN_AFTER = 1.0
"""Seconds that an obstacle must last before it is shown. Short ones are normal while slots move."""


def duration(_: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Option callback: ``90s``, ``10m``, ``2h`` or ``1d`` as seconds."""
    if value is None:
        return None
    seconds = parse_duration(value, ("s", "m", "h", "d"))
    if not seconds:
        raise click.BadParameter(f"{value!r} is not a duration; examples: 90s, 10m, 2h, 1d", param=parameter)
    return seconds


for_option = click.option(
    "--for",
    "seconds",
    callback=duration,
    metavar="TIME",
    help="Time out of service, such as 90s, 10m, 2h or 1d. Default: no limit.",
)
wait_option = shown_option(
    "--wait",
    type=click.FloatRange(min=0),
    default=60.0,
    help="Seconds to wait for the handover of all slots and for other copies; 0: do not wait.",
)


@click.command(
    epilog=examples(
        "understudy drain cart-1",
        "understudy drain cart-1 --for 10m --reason 'replace its disk'",
    )
)
@click.argument("member", shell_complete=complete_member)
@for_option
@reason_option
@wait_option
@pool_option(required=False)
@etcd_options
def drain(member: str, seconds: float | None, reason: str, wait: float, pool: str | None, etcd: EtcdOptions) -> None:
    """Take MEMBER out of service. It hands all its slots over to other members, and no request fails.

    The command ends when MEMBER owns no slots, and other members have its copies too: then it may be stopped.
    If something prevents the handover, the command prints what it is. The member stays out of service until
    'understudy undrain' or until the time of --for is over, even if it is restarted.

    Exit code 1: the member does not exist, no other member can take its slots, it still owns slots or slots still
    count on its copies after --wait, or it ended before it had handed over all its slots.
    """
    asyncio.run(_drain(locate_pool(etcd, pool), member, seconds, reason, wait))


async def _drain(place: PoolLocation, member: str, seconds: float | None, reason: str, wait: float) -> None:
    from understudy.deploy.common.console_style import utc_time
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.operate import service
    from understudy.statesync.audit.log import OperatorLog

    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        now = time.time()
        change = service.drain(state, member, now, seconds)
        log = OperatorLog(client, state.keys, this_operator("drain", place.etcd), reason)
        await service.carry_out(log, change)
        if not await follow_until_empty(client, place.pool, member, lambda _: {member}, wait, state):
            until = f"until {utc_time(now + seconds)}, or " if seconds else ""
            say(f"{member} is drained {until}until 'understudy undrain {member}'")


@click.command(epilog=examples("understudy undrain cart-1"))
@click.argument("member", shell_complete=complete_member)
@reason_option
@pool_option(required=False)
@etcd_options
def undrain(member: str, reason: str, pool: str | None, etcd: EtcdOptions) -> None:
    """Bring MEMBER back into service. It gets its share of the slots back, a few at a time.

    Exit code 1: the member does not exist, or is not drained.
    """
    asyncio.run(_undrain(locate_pool(etcd, pool), member, reason))


async def _undrain(place: PoolLocation, member: str, reason: str) -> None:
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.operate import service
    from understudy.statesync.audit.log import OperatorLog

    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        log = OperatorLog(client, state.keys, this_operator("undrain", place.etcd), reason)
        await service.carry_out(log, service.undrain(state, member))
        say(f"{member} is in service again")


async def follow_until_empty(
    client: "EtcdClient",
    pool: str,
    subject: str,
    members: Callable[["PoolState"], set[str]],
    wait: float,
    before: "PoolState",
    *,
    quiet: bool = False,
) -> int:
    """Wait until ``members`` own no slots and no other slot counts on their copies.

    Returns how many slots they own: 0, unless ``wait`` is 0. ``before`` is the pool before they were asked to hand
    over. Prints the number of slots, and after a moment also what prevents the handover; with ``quiet`` nothing. Raises
    :class:`NegativeAnswer` after ``wait`` seconds, or if other members took slots over instead of getting them handed
    over.
    """
    from understudy.deploy.inspect.draining import SlotsTakenOver, not_handed_over, still_needed
    from understudy.deploy.inspect.query import read_pool
    from understudy.proxy.ownership.drain import LINGER

    deadline = time.monotonic() + wait
    shown: list[str] = []
    last_obstacle, since = "", time.monotonic()
    of_these = members(before)
    drain = SlotsTakenOver.of(before, of_these)

    def show_once(line: str) -> None:
        if not quiet and line and line not in shown:
            shown.append(line)
            say(line)

    while True:
        state, _ = await read_pool(client, pool)
        of_these |= members(state)
        needed = still_needed(state, of_these, time.time())
        if needed.obstacle != last_obstacle:
            last_obstacle, since = needed.obstacle, time.monotonic()
        lasting = not wait or time.monotonic() - since >= OBSTACLE_SHOWN_AFTER
        for line in needed.lines(subject, obstacle=lasting):
            show_once(line)
        taken = drain.since(state, of_these)
        if not needed.owned and taken:
            raise NegativeAnswer(not_handed_over(subject, taken))
        if not needed and wait:
            await asyncio.sleep(LINGER)  # front Envoys may still send requests by old routes
        if not needed or not wait:
            return len(needed.owned)
        if time.monotonic() >= deadline:
            raise NegativeAnswer(needed.error(subject, wait))
        await asyncio.sleep(POLL_INTERVAL)
