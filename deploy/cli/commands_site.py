"""``understudy site``: shows the sites of a pool, takes a whole site out of service, and brings it back."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from understudy.deploy.cli.commands_drain import duration, follow_until_empty, wait_option
from understudy.deploy.cli.commands_status import LAST_KNOWN_EXIT_CODE, control_http_option
from understudy.deploy.cli.commands_take_over import take_over
from understudy.deploy.cli.every_pool import pools_option
from understudy.deploy.cli.watching import watch_option
from understudy.deploy.common.completion import complete_site
from understudy.deploy.common.operator import reason_option, this_operator
from understudy.deploy.common.options import (
    EtcdOptions,
    PoolLocation,
    TlsOptions,
    etcd_options,
    examples,
    list_output_option,
    locate_pool,
    output_option,
    pool_option,
    require_name,
    show,
    tls_options,
)

if TYPE_CHECKING:
    from understudy.statesync.etcd.client import EndpointStatus
    from understudy.statesync.pool.records import Intent


@click.group(
    epilog=examples(
        "understudy site status",
        "understudy site offline east --for 30m",
        "understudy site online east",
        "understudy site dependency east database down",
        "understudy site take-over west --data-dir /var/lib/etcd --dry-run",
    )
)
def site() -> None:
    """Show the sites of a pool, take all members of one out of service, bring them back, and say what a site lacks.

    The option --site of a sidecar sets the site of its member: a zone, a rack or a data centre.
    """


site.add_command(take_over)


@site.command(
    epilog=examples(
        "understudy site status",
        "understudy site status --watch 1",
        "understudy site status -o json",
    )
)
@control_http_option
@watch_option
@etcd_options
@tls_options
@list_output_option
@pools_option()
def status(
    control_http: tuple[str, ...], pool: str | None, etcd: EtcdOptions, tls: TlsOptions | None, output: str
) -> None:
    """Show who serves on which site, what is in sync, what the loss of each site would cost now, and what is degraded.

    A site has a copy of a slot if a process there has every acknowledged write of the slot in memory. "If it died now"
    is about the death of all members of a site at once. If front Envoys have a site, the share of their requests that
    went to members of their own site is shown; requests without a session key do not count.

    If the spec has sites, the grade of each is shown with what it comes from: how much of what the site should have can
    serve, 0 to 100. In an active/standby pool the last switch is shown, and what a switch by grades waits for.

    When etcd does not answer, the command shows the last known state and its age, from control servers and members.

    Exit code 1: something is degraded. Each problem is shown with its age, where it is known, and what ends it. Exit
    code 3: etcd does not answer.
    """
    from understudy.deploy.inspect.sites import sites_table

    view = asyncio.run(_status(locate_pool(etcd, pool), control_http, tls))
    now = time.time()
    show(output, view, lambda view: sites_table(view, now), lambda view: [row["site"] for row in view["sites"]])
    if view["last_known"]:
        raise SystemExit(LAST_KNOWN_EXIT_CODE)
    if view["degraded"]:
        raise SystemExit(1)


async def _status(place: PoolLocation, control_http: tuple[str, ...], tls: TlsOptions | None) -> dict[str, Any]:
    from understudy.deploy.inspect.controls import ask_controls
    from understudy.deploy.inspect.fronts import read_share_at_home
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.inspect.site_reports import read_reports
    from understudy.deploy.inspect.sites import sites_view
    from understudy.statesync.etcd.client import Unavailable

    async with connect(place.etcd) as client:
        try:
            state, revision = await read_pool(client, place.pool)
        except Unavailable as fault:
            return await _last_known(place, control_http, tls, fault, await client.status())
        require_pool(state, place.etcd)
        controls = {name: at.record.http for name, at in state.controls.items()}
        reports, endpoints, shares, statuses = await asyncio.gather(
            read_reports(state, tls),
            client.status(),
            read_share_at_home(controls, place.pool),
            ask_controls(controls.values(), "/v1/status", place.pool),
        )
    return sites_view(
        state,
        revision=revision,
        now=time.time(),
        etcd=endpoints,
        reports=reports,
        shares=shares,
        controls=dict(zip(controls, statuses, strict=True)),
    )


async def _last_known(
    place: PoolLocation,
    control_http: tuple[str, ...],
    tls: TlsOptions | None,
    fault: Exception,
    etcd: "Sequence[EndpointStatus]",
) -> dict[str, Any]:
    """The sites by control servers and members. Raises :class:`DeployError` if none of them answers."""
    from understudy.deploy.inspect.fronts import read_share_at_home
    from understudy.deploy.inspect.last_known import read_without_etcd
    from understudy.deploy.inspect.site_reports import read_reports
    from understudy.deploy.inspect.sites import sites_view

    found = await read_without_etcd(place.pool, place.layout, control_http, tls, fault)
    state = found.as_reported()
    reports, shares = await asyncio.gather(read_reports(state, tls), read_share_at_home(found.controls, place.pool))
    return sites_view(
        state,
        revision=found.known.revision,
        now=time.time(),
        etcd=etcd,
        reports=reports,
        shares=shares,
        controls={one["control"]: one for one in found.statuses if isinstance(one, dict) and "control" in one},
        last_known=found.origin,
    )


@site.command(
    epilog=examples(
        "understudy site offline east",
        "understudy site offline east --for 30m --reason 'power test' -o json",
        "understudy site offline east --until-i-say --force --reason 'the site burns'",
    )
)
@click.argument("name", metavar="SITE", shell_complete=complete_site)
@click.option(
    "--for",
    "seconds",
    callback=duration,
    metavar="TIME",
    help="Time out of service, such as 90s, 10m, 2h or 1d. Default: 2h.",
)
@click.option("--until-i-say", is_flag=True, help="Out of service until 'understudy site online', without a limit.")
@click.option(
    "--force",
    is_flag=True,
    help="Go on where the command would refuse, but for the last site; needs --reason, for the audit log.",
)
@reason_option
@wait_option
@pool_option(required=False)
@etcd_options
@output_option
def offline(
    name: str,
    seconds: float | None,
    until_i_say: bool,
    force: bool,
    reason: str,
    wait: float,
    pool: str | None,
    etcd: EtcdOptions,
    output: str,
) -> None:
    """Take SITE out of service. Its members hand all their slots over, and no request fails.

    The site stays out of service until 'understudy site online' or until its time is over: 2 hours, unless --for or
    --until-i-say says otherwise. Members that start there meanwhile get no slots.

    Refused, unless --force is given: the site has no member; another site is offline; slots are moving; the other sites
    could not carry the load, or not with the loss of one more member; slots that the site serves have no current copy
    elsewhere yet, although they should. Without a control server the load is not known, and not checked. Other pools
    of the group leave the site too, so the command is also refused for what holds of them.

    The result says how long it took, and how far copies on other sites were behind before, if control servers know it.

    Exit code 1: refused, no other site can take its slots, or it still owns slots, or slots still count on its copies,
    after --wait.
    """
    from understudy.deploy.operate.service import OFFLINE_SECONDS
    from understudy.statesync.pool.records import Intent

    require_name("SITE", name)
    if until_i_say and seconds:
        raise click.UsageError("--for sets a time and --until-i-say none: give one of them")
    if force and not reason:
        raise click.UsageError("--force needs --reason: the audit log shows why the refusal was overruled")
    now = time.time()
    intent = Intent(site=name, until=0.0 if until_i_say else now + (seconds or OFFLINE_SECONDS), since=now)
    view = asyncio.run(_offline(locate_pool(etcd, pool), intent, reason, wait, force=force, quiet=output != "table"))
    show(output, view, result_line)


async def _offline(
    place: PoolLocation, intent: "Intent", reason: str, wait: float, *, force: bool, quiet: bool
) -> dict[str, Any]:
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.inspect.site_reports import read_lag_from
    from understudy.deploy.operate import service
    from understudy.deploy.operate.site_offline import checked_site_offline
    from understudy.statesync.audit.log import OperatorLog

    site = intent.site
    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        members = service.members_of(state, site)
        log = OperatorLog(client, state.keys, this_operator("site offline", place.etcd), reason)
        change = await checked_site_offline(client, state, intent, force=force)
        lag, began = await read_lag_from(state, site), time.monotonic()
        await service.carry_out(log, change)
        every = partial(service.members_of, site=site)
        left = await follow_until_empty(
            client, place.pool, f"site {site}", lambda state: set(every(state)), wait, state, quiet=quiet
        )
    return {
        "site": site,
        "offline": True,
        "until": intent.until or None,
        "members": members,
        "slots_left": left,
        "lag_before": lag,
        "seconds": round(time.monotonic() - began, 1),
    }


@site.command(epilog=examples("understudy site online east"))
@click.argument("name", metavar="SITE", shell_complete=complete_site)
@reason_option
@pool_option(required=False)
@etcd_options
@output_option
def online(name: str, reason: str, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Bring SITE back into service. Its members get their share of the slots back, a few at a time.

    The command also ends the rest of a site that was lost again within site_switch.freeze after it had its slots back.

    Exit code 1: the site is not offline, and does not rest so.
    """
    show(output, asyncio.run(_online(locate_pool(etcd, pool), name, reason)), result_line)


async def _online(place: PoolLocation, site: str, reason: str) -> dict[str, Any]:
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.operate import service
    from understudy.statesync.audit.log import OperatorLog

    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        log = OperatorLog(client, state.keys, this_operator("site online", place.etcd), reason)
        await service.carry_out(log, service.site_online(state, site, time.time()))
        return {"site": site, "offline": False, "members": service.members_of(state, site)}


@site.command(
    epilog=examples(
        "understudy site dependency east database down --reason 'replication is broken'",
        "understudy site dependency east database up",
    )
)
@click.argument("name", metavar="SITE", shell_complete=complete_site)
@click.argument("dependency", metavar="NAME")
@click.argument("state", type=click.Choice(["down", "up"]))
@reason_option
@pool_option(required=False)
@etcd_options
@output_option
def dependency(
    name: str, dependency: str, state: str, reason: str, pool: str | None, etcd: EtcdOptions, output: str
) -> None:
    """Say that NAME, which SITE needs by the spec (sites.SITE.needs), is down or up again. For operators and probes.

    While it is down the site has the grade 0. In an active/standby pool the slots go to the other site, if its grade is
    better by site_switch.gap and the last switch is older than site_switch.freeze. To say again what the pool knows
    changes nothing, and is no error.

    Exit code 1: the spec does not name NAME in needs of SITE.
    """
    require_name("SITE", name)
    require_name("NAME", dependency)
    view = asyncio.run(_dependency(locate_pool(etcd, pool), name, dependency, reason, down=state == "down"))
    show(output, view, lambda view: f"{view['dependency']} of site {view['site']} is {view['state']}")


async def _dependency(place: PoolLocation, site: str, name: str, reason: str, *, down: bool) -> dict[str, Any]:
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.operate import service
    from understudy.statesync.audit.log import OperatorLog
    from understudy.statesync.pool.site_records import DependencyDown

    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        change = service.dependency(state, site, name, DependencyDown(time.time(), reason) if down else None)
        if change is not None:
            await service.carry_out(
                OperatorLog(client, state.keys, this_operator("site dependency", place.etcd), reason), change
            )
    return {"site": site, "dependency": name, "state": "down" if down else "up", "changed": change is not None}


def result_line(view: dict[str, Any]) -> str:
    """The result as a line of text."""
    if not view["offline"]:
        return f"site {view['site']} is in service again"
    from understudy.deploy.inspect.offline_sites import offline_text
    from understudy.deploy.inspect.sites import lag_text

    left = f", and still owns {view['slots_left']} slots" if view["slots_left"] else f"; it took {view['seconds']:g} s"
    lags = ", ".join(lag_text(site, lag) for site, lag in view["lag_before"].items())
    before = f"; behind it in the 10 s before: {lags}" if lags else ""
    return f"{offline_text(view['site'], view['until'])}: {', '.join(view['members']) or 'no member yet'}{left}{before}"
