"""``understudy site``: takes a whole site out of service, and brings it back."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from understudy.deploy.cli.commands_drain import follow_until_empty, for_option, wait_option
from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.common.operator import reason_option, this_operator
from understudy.deploy.common.options import (
    EtcdOptions,
    PoolLocation,
    etcd_options,
    examples,
    locate_pool,
    output_option,
    pool_option,
    require_name,
    show,
)

if TYPE_CHECKING:
    from understudy.statesync.pool.records import Intent
    from understudy.statesync.pool.state import PoolState


@click.group(
    epilog=examples(
        "understudy site offline east --for 30m",
        "understudy site online east",
    )
)
def site() -> None:
    """Take all members of a site out of service, and bring them back.

    The option --site of a sidecar sets the site of its member: a zone, a rack or a data centre.
    """


@site.command(
    epilog=examples(
        "understudy site offline east",
        "understudy site offline east --for 30m --reason 'power test' -o json",
    )
)
@click.argument("name", metavar="SITE")
@for_option
@click.option(
    "--force", is_flag=True, help="Accept a site without members; members that start there later get no slots."
)
@reason_option
@wait_option
@pool_option(required=False)
@etcd_options
@output_option
def offline(
    name: str,
    seconds: float | None,
    force: bool,
    reason: str,
    wait: float,
    pool: str | None,
    etcd: EtcdOptions,
    output: str,
) -> None:
    """Take SITE out of service. Its members hand all their slots over, and no request fails.

    The site stays out of service until 'understudy site online' or until the time of --for is over. Members that start
    there meanwhile get no slots.

    Exit code 1: the site has no member, no other site can take its slots, or it still owns slots after --wait.
    """
    from understudy.statesync.pool.records import Intent

    require_name("SITE", name)
    now = time.time()
    intent = Intent(site=name, until=now + seconds if seconds else 0.0, since=now)
    view = asyncio.run(_offline(locate_pool(etcd, pool), intent, reason, wait, force=force, quiet=output != "table"))
    show(output, view, _line)


async def _offline(
    place: PoolLocation, intent: "Intent", reason: str, wait: float, *, force: bool, quiet: bool
) -> dict[str, Any]:
    from understudy.deploy.common.console_style import utc_time
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.statesync.audit.entry import Act
    from understudy.statesync.audit.log import OperatorLog

    site = intent.site
    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        members = _members_of(state, site)
        if not members and not force:
            raise _unknown(state, site, ", or give --force if its members start later")
        away = state.offline(intent.since) | {site}
        if not any(at.record.site not in away and at.record.state.may_hold_slots for at in state.members.values()):
            raise NegativeAnswer(
                f"{site} is the last site that can serve pool {place.pool}: bring another site into service first"
            )
        act = Act(
            f"site offline {site}",
            detail=f"until {utc_time(intent.until)}" if intent.until else "",
            undo=f"understudy site online {site} --pool {place.pool}",
        )
        log = OperatorLog(client, state.keys, this_operator("site offline", place.etcd), reason)
        await log.put(act, state.keys.site_intent(site), intent.encode())
        left = await follow_until_empty(
            client, place.pool, f"site {site}", lambda state: set(_members_of(state, site)), wait, state, quiet=quiet
        )
    return {"site": site, "offline": True, "until": intent.until or None, "members": members, "slots_left": left}


@site.command(epilog=examples("understudy site online east"))
@click.argument("name", metavar="SITE")
@reason_option
@pool_option(required=False)
@etcd_options
@output_option
def online(name: str, reason: str, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Bring SITE back into service. Its members get their share of the slots back, a few at a time.

    Exit code 1: the site is not offline.
    """
    show(output, asyncio.run(_online(locate_pool(etcd, pool), name, reason)), _line)


async def _online(place: PoolLocation, site: str, reason: str) -> dict[str, Any]:
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.statesync.audit.entry import Act
    from understudy.statesync.audit.log import OperatorLog

    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        log = OperatorLog(client, state.keys, this_operator("site online", place.etcd), reason)
        act = Act(f"site online {site}", undo=f"understudy site offline {site} --pool {place.pool}")
        if not await log.delete(act, state.keys.site_intent(site)):
            known = bool(_members_of(state, site))
            raise NegativeAnswer(f"site {site} is not offline") if known else _unknown(state, site)
        return {"site": site, "offline": False, "members": _members_of(state, site)}


def _members_of(state: "PoolState", site: str) -> list[str]:
    return [name for name, at in sorted(state.members.items()) if at.record.site == site]


def _unknown(state: "PoolState", site: str, remedy: str = "") -> NegativeAnswer:
    known = ", ".join(sorted({at.record.site for at in state.members.values()} - {""})) or "none (--site of sidecars)"
    return NegativeAnswer(
        f"pool {state.keys.pool} has no member on a site {site!r}; its sites are {known}: give one of them{remedy}"
    )


def _line(view: dict[str, Any]) -> str:
    """The result as a line of text."""
    if not view["offline"]:
        return f"site {view['site']} is in service again"
    left = f", and still owns {view['slots_left']} slots" if view["slots_left"] else ""
    return f"site {view['site']} is offline: {', '.join(view['members']) or 'no member yet'}{left}"
