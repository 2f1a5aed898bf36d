"""The commands by which an operator takes a member out of service and brings it back."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from understudy.deploy.common.errors import DeployError, NotFoundError
from understudy.deploy.common.options import EtcdOptions, Place, etcd_options, examples, find_place, pool_option
from understudy.deploy.common.printable import say
from understudy.telemetry.timing.duration import parse_duration

if TYPE_CHECKING:
    from understudy.statesync.etcd.client import EtcdClient
    from understudy.statesync.pool.state import PoolState

_LOOK = 0.2
_LASTS = 1.0
"""Seconds after which something that is in the way is told: a moment of it is normal while slots move."""


def duration(_: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Option callback: ``90s``, ``10m``, ``2h`` or ``1d`` as seconds."""
    if value is None:
        return None
    seconds = parse_duration(value, ("s", "m", "h", "d"))
    if not seconds:
        raise click.BadParameter(f"{value!r} is no duration; write 90s, 10m, 2h or 1d", param=parameter)
    return seconds


wait_option = click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait until it owns nothing; 0: do not wait.",
)


@click.command(
    epilog=examples(
        "understudy drain cart-1",
        "understudy drain cart-1 --for 10m",
    )
)
@click.argument("member")
@click.option("--for", "seconds", callback=duration, metavar="TIME", help="Come back by itself after 90s, 10m, 2h...")
@wait_option
@pool_option(required=False)
@etcd_options
def drain(member: str, seconds: float | None, wait: float, pool: str | None, etcd: EtcdOptions) -> None:
    """Take MEMBER out of service: it hands its slots over, and no request fails.

    Says what is in the way while it cannot hand them over. Exits with 1 if there is no such member, if nobody could
    take its slots, if it still owns some after --wait, or if it ended before it had handed all of them over.
    The member stays out, also when it is restarted, until 'understudy undrain' or the end of --for.
    """
    asyncio.run(_drain(find_place(etcd, pool), member, seconds, wait))


async def _drain(place: Place, member: str, seconds: float | None, wait: float) -> None:
    from understudy.deploy.common.console_style import when
    from understudy.deploy.inspect.draining import takers
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.statesync.pool.records import Intent

    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        _require_member(state, member)
        now = time.time()
        if not takers(state, now) - {member}:
            raise NotFoundError(
                f"{member} is the last member that can serve pool {place.pool}: start another one first, or "
                "bring one back with 'understudy undrain'"
            )
        intent = Intent(member, now + seconds if seconds else 0.0, now)
        await client.put(state.keys.intent(member), intent.encode())
        if not await follow_until_empty(client, place.pool, member, lambda _: {member}, wait, state):
            until = f"until {when(intent.until)}, or " if seconds else ""
            say(f"{member} is drained: {until}until 'understudy undrain {member}'")


@click.command(epilog=examples("understudy undrain cart-1"))
@click.argument("member")
@pool_option(required=False)
@etcd_options
def undrain(member: str, pool: str | None, etcd: EtcdOptions) -> None:
    """Bring MEMBER back into service: it takes a fair share of the slots back, a few at a time."""
    asyncio.run(_undrain(find_place(etcd, pool), member))


async def _undrain(place: Place, member: str) -> None:
    from understudy.deploy.inspect.query import connect, read_pool, require_pool

    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        if not await client.delete(state.keys.intent(member)):
            _require_member(state, member)
            raise NotFoundError(f"{member} is not drained")
        say(f"{member} is in service again")


def _require_member(state: "PoolState", member: str) -> None:
    if member not in state.members:
        known = ", ".join(sorted(state.members)) or "none"
        raise NotFoundError(f"pool {state.keys.pool} has no member {member!r}; its members are {known}")


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
    """Show how many slots ``members`` own until it is none, and return how many are left: 0, unless ``wait`` is 0.

    ``before`` is the pool before they were told to leave. What is in the way is shown as well, when it has been so for
    a moment; with ``quiet`` nothing is. Raises :class:`DeployError` if it takes longer than ``wait`` seconds, or if
    slots were taken over from them instead of being handed over.
    """
    from understudy.deploy.inspect.draining import Departure, died, obstacle, owned_by
    from understudy.deploy.inspect.query import read_pool
    from understudy.proxy.ownership.drain import LINGER

    give_up = time.monotonic() + wait
    shown: list[str] = []
    hindered, since = "", time.monotonic()
    of_these = members(before)
    departure = Departure.of(before, of_these)

    def tell(line: str) -> None:
        if not quiet and line and line not in shown:
            shown.append(line)
            say(line)

    while True:
        state, _ = await read_pool(client, pool)
        of_these |= members(state)
        left = len(owned_by(state, of_these))
        tell(f"{subject} owns {left} slots")
        why = obstacle(state, of_these, time.time())
        if why != hindered:
            hindered, since = why, time.monotonic()
        if why and (not wait or time.monotonic() - since >= _LASTS):
            tell(f"{subject} cannot leave: {why}")
        taken = departure.taken_over(state, of_these)
        if not left and taken:
            raise _NotDrainedError(died(subject, taken))
        if not left and wait:
            await asyncio.sleep(LINGER)  # what front Envoys have sent by old routes must find its member
        if not left or not wait:
            return left
        if time.monotonic() >= give_up:
            reason = why or "see 'understudy status'"
            raise _NotDrainedError(f"{subject} still owns {left} slots after {wait:g} s: {reason}")
        await asyncio.sleep(_LOOK)


class _NotDrainedError(DeployError):
    exit_code = 1
