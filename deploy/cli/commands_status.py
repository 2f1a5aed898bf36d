"""``understudy status``: the state of a pool, from etcd, control servers and members."""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from understudy.deploy.cli.every_pool import pools_option
from understudy.deploy.cli.watching import watch_option
from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import (
    EtcdOptions,
    PoolLocation,
    TlsOptions,
    address_list,
    etcd_options,
    examples,
    list_output_option,
    locate_pool,
    show,
    tls_options,
)

if TYPE_CHECKING:
    from understudy.statesync.etcd.client import EndpointStatus

STATUS_PATH = "/v1/status"
LAST_KNOWN_EXIT_CODE = 3
"""etcd does not answer, and the last known state is shown."""

control_http_option = click.option(
    "--control-http",
    envvar="UNDERSTUDY_CONTROL_HTTP",
    metavar="HOST:PORT,...",
    default="",
    callback=address_list,
    help="HTTP addresses of control servers, used when etcd does not answer. Default: those of the local pool.",
)


@click.command(
    epilog=examples(
        "understudy status",
        "understudy status --xds",
        "understudy status --sync",
        "understudy status --etcd etcd-0:2379 --pool cart -o json",
        "understudy status --etcd etcd-0:2379 --pool cart --control-http control-1:18001",
    )
)
@click.option("--xds", is_flag=True, help="Show only Envoys: for each type what was sent, acknowledged or rejected.")
@click.option("--sync", is_flag=True, help="Show only copies: how current the sessions of each member are.")
@control_http_option
@watch_option
@etcd_options
@tls_options
@list_output_option
@pools_option()
def status(
    xds: bool,
    sync: bool,
    control_http: tuple[str, ...],
    pool: str | None,
    etcd: EtcdOptions,
    tls: TlsOptions | None,
    output: str,
) -> None:
    """Show members, control servers, etcd and Envoys of a pool.

    When etcd does not answer, the command shows the last known state and its age, from control servers and members.

    Exit code 1: a slot has no active member, or the spec cannot be read; with --xds an Envoy rejects its configuration;
    with --sync a member is not in sync or does not answer. Exit code 3: etcd does not answer.
    """
    from understudy.deploy.inspect.envoys import has_errors, xds_table
    from understudy.deploy.inspect.tables import status_table

    if xds and sync:
        raise DeployError("--xds and --sync are different views: give only one of them")
    if sync:
        _show_sync(locate_pool(etcd, pool), tls, output)
        return
    view = asyncio.run(_status(locate_pool(etcd, pool), control_http, tls))
    if xds:
        show(output, {"pool": view["pool"], "envoys": view["envoys"]}, xds_table, _node_names)
        if has_errors(view["envoys"]):
            raise SystemExit(1)
        return
    show(output, view, status_table, _member_names)
    if view["last_known"]:
        raise SystemExit(LAST_KNOWN_EXIT_CODE)
    if view["slots"]["served"] != view["slots"]["total"] or view["mode"] is None:
        raise SystemExit(1)


def _show_sync(place: PoolLocation, tls: TlsOptions | None, output: str) -> None:
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.inspect.sync import newest_revision, read_sync, sync_table

    async def run() -> dict[str, Any]:
        async with connect(place.etcd) as client:
            state, _ = await read_pool(client, place.pool)
            require_pool(state, place.etcd)
            revision = newest_revision(state)
        return await read_sync(state, revision, tls)

    view = asyncio.run(run())
    show(output, view, sync_table, _member_names)
    if not view["in_sync"]:
        raise SystemExit(1)


def _member_names(view: dict[str, Any]) -> list[str]:
    return [row["member"] for row in view["members"]]


def _node_names(view: dict[str, Any]) -> list[str]:
    return [node["node"] for node in view["envoys"]["nodes"]]


async def _status(place: PoolLocation, control_http: tuple[str, ...], tls: TlsOptions | None) -> dict[str, Any]:
    from understudy.deploy.common.layout import read_processes
    from understudy.deploy.inspect.controls import ask_controls
    from understudy.deploy.inspect.draining import blocked_drains
    from understudy.deploy.inspect.envoys import read_envoys
    from understudy.deploy.inspect.fronts import read_fronts
    from understudy.deploy.inspect.load import load_by_member
    from understudy.deploy.inspect.member_views import heard_by
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.inspect.views import status_view
    from understudy.deploy.inspect.waiting import waiting_warning
    from understudy.deploy.inspect.warnings import recorded_warnings, reported_warnings
    from understudy.statesync.etcd.client import Unavailable

    async with connect(place.etcd) as client:
        try:
            state, revision = await read_pool(client, place.pool)
        except Unavailable as fault:
            return await _last_known(place, control_http, tls, fault, await client.status())
        if state.keys.spec not in state.faults:
            require_pool(state, place.etcd)
        endpoints = await client.status()
    controls = {name: at.record.http for name, at in state.controls.items()}
    envoys, fronts, statuses = await asyncio.gather(
        read_envoys(controls, place.pool),
        read_fronts(controls, place.pool),
        ask_controls(controls.values(), STATUS_PATH, place.pool),
    )
    return status_view(
        state,
        revision=revision,
        etcd=endpoints,
        envoys=envoys,
        processes=read_processes(place.directory) if place.layout else (),
        fronts=fronts,
        load=load_by_member(statuses),
        warnings=[
            *waiting_warning(state),
            *blocked_drains(state, time.time()),
            *recorded_warnings(state),
            *reported_warnings(statuses, fronts),
        ],
        heard=heard_by(statuses),
    )


async def _last_known(
    place: PoolLocation,
    control_http: tuple[str, ...],
    tls: TlsOptions | None,
    fault: Exception,
    etcd: "Sequence[EndpointStatus]",
) -> dict[str, Any]:
    """The pool from control servers and members. Raises :class:`DeployError` if none of them answers."""
    from understudy.deploy.common.layout import read_processes
    from understudy.deploy.inspect.envoys import read_envoys
    from understudy.deploy.inspect.fronts import read_fronts
    from understudy.deploy.inspect.last_known import read_without_etcd, stopped_without_etcd
    from understudy.deploy.inspect.views import status_view

    found = await read_without_etcd(place.pool, place.layout, control_http, tls, fault)
    envoys, fronts = await asyncio.gather(
        read_envoys(found.controls, place.pool), read_fronts(found.controls, place.pool)
    )
    return status_view(
        found.known.state,
        revision=found.known.revision,
        etcd=etcd,
        envoys=envoys,
        fronts=fronts,
        processes=read_processes(place.directory) if place.layout else (),
        heard=found.heard,
        silent=found.silent,
        warnings=stopped_without_etcd(found.known.state, found.heard, found.silent, found.serving),
        last_known=found.origin,
    )
