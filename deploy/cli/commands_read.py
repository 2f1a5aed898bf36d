"""The commands that read a pool: ``table``, ``explain``, ``sessions``, ``failovers`` and ``trace``."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from understudy.deploy.cli.every_pool import pools_option
from understudy.deploy.cli.watching import watch_option
from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.key_command import KeyCommand
from understudy.deploy.common.options import (
    EtcdOptions,
    PoolLocation,
    etcd_options,
    examples,
    list_output_option,
    locate_pool,
    pool_option,
    show,
    shown_option,
)
from understudy.deploy.common.printable import printable_view

if TYPE_CHECKING:
    from understudy.deploy.inspect.traces import Lengths

SPANS_TIMEOUT = 5.0
"""Seconds until control servers have the spans of a failover. Its record is in etcd before them."""
POLL_INTERVAL = 0.2


@click.command(
    epilog=examples(
        "understudy table",
        "understudy table --all",
        "understudy table --slot 17 -o json",
        "understudy table --load",
    )
)
@click.option("--all", "every", is_flag=True, help="Print one line per slot.")
@click.option(
    "--slot", type=click.IntRange(min=0), multiple=True, help="Show only this slot; repeatable. Default: all slots."
)
@watch_option
@click.option("--load", is_flag=True, help="Print one line per slot with its load, the busiest first.")
@etcd_options
@list_output_option
@pools_option(slot="--slot")
def table(every: bool, slot: tuple[int, ...], load: bool, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Show the slot table: the active, standby and backup members of all slots."""
    from understudy.deploy.inspect.load import read_slot_loads, slot_load_table
    from understudy.deploy.inspect.member_views import slots_of
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.inspect.tables import slot_table
    from understudy.deploy.inspect.views import table_view

    place = locate_pool(etcd, pool)

    async def run() -> dict[str, Any]:
        async with connect(place.etcd) as client:
            state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        beyond = [number for number in slot if number >= slots_of(state)]
        if beyond:
            raise DeployError(f"--slot {beyond[0]}: pool {place.pool!r} has slots 0 to {slots_of(state) - 1}")
        view = table_view(state, sorted(set(slot)) or None)
        if load:
            loads = await read_slot_loads({name: at.record.http for name, at in state.controls.items()}, place.pool)
            view["slots"] = [{**row, "load": loads.get(row["slot"])} for row in view["slots"]]
        return view

    show(
        output,
        asyncio.run(run()),
        lambda view: slot_load_table(view) if load else slot_table(view, every=every or bool(slot)),
        lambda view: [row["slot"] for row in view["slots"]],
    )


@click.command(
    epilog=examples(
        "understudy sessions",
        "understudy sessions --slot 17 --limit 500 -o json",
        "for key in $(understudy sessions -o name); do understudy explain $key; done",
    )
)
@click.option("--slot", type=click.IntRange(min=0), help="List only sessions of this slot. Default: all.")
@shown_option("--limit", type=click.IntRange(1, 10_000), default=50, help="Maximum number of sessions.")
@watch_option
@etcd_options
@list_output_option
@pools_option(slot="--slot")
def sessions(slot: int | None, limit: int, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """List sessions with slot, size and expiry, ordered by slot."""
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.inspect.sessions import read_sessions
    from understudy.deploy.inspect.tables import sessions_table
    from understudy.deploy.inspect.views import sessions_view

    place = locate_pool(etcd, pool)

    async def run() -> dict[str, object]:
        async with connect(place.etcd) as client:
            state, _ = await read_pool(client, place.pool)
            require_pool(state, place.etcd)
            found, records = await read_sessions(client, state.keys, limit=limit, slot=slot)
        return sessions_view(place.pool, found, records, int(time.time() * 1000))

    show(output, asyncio.run(run()), sessions_table, lambda view: [row["key"] for row in view["sessions"]])


@click.command(
    cls=KeyCommand,
    epilog=examples(
        "understudy explain 3kXo0b9Qh2",
        "understudy explain sess:3kXo0b9Qh2 --body -o json",
        "understudy explain 'connect.sid=s%3A3kXo0b9Qh2.c2lnbmVk; theme=dark'",
        "understudy explain 'x-session-id: 3kXo0b9Qh2'",
    ),
)
@click.argument("key")
@click.option("--body", is_flag=True, help="Also show the content of the session.")
@watch_option
@pool_option(required=False)
@etcd_options
@list_output_option
def explain(key: str, body: bool, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Show the slot, the owner and the state of the session KEY.

    KEY is a session key of the session API or of Redis's protocol, a cookie or several (NAME=VALUE; ...), or a header
    (NAME: VALUE). What is neither a cookie nor a header that the spec names is taken for a key.

    Exit code 1: there is no such session; what is hashed, the slot and its members are shown nevertheless. A key may
    begin with "-". If it is also the name of an option, write "--" before it.
    """
    from understudy.deploy.inspect.hashed_text import hashed_text
    from understudy.deploy.inspect.member_views import slots_of
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.inspect.sessions import read_session
    from understudy.deploy.inspect.tables import explain_table
    from understudy.deploy.inspect.views import explain_view
    from understudy.statesync.pool.slots import slot_of

    place = locate_pool(etcd, pool)

    async def run() -> dict[str, object]:
        async with connect(place.etcd) as client:
            state, _ = await read_pool(client, place.pool)
            require_pool(state, place.etcd)
            spec = state.spec.record if state.spec else None
            hashed, found = hashed_text(spec, key), None
            slot = None if hashed.text is None else slot_of(hashed.text, slots_of(state))
            for name in hashed.keys:
                stored_in = spec.slot_of_key(name) if spec else slot_of(name, slots_of(state))
                found = found or await read_session(client, state, name, stored_in)
        return explain_view(state, found, key, hashed, slot, int(time.time() * 1000), body=body)

    view = asyncio.run(run())
    show(output, view, explain_table, lambda view: [view["key"]])
    session = view["session"]
    if not (isinstance(session, dict) and session["alive"]):
        raise SystemExit(1)


@click.command(
    epilog=examples(
        "understudy failovers",
        "understudy failovers -o json",
    )
)
@shown_option("--limit", type=click.IntRange(1, 10_000), default=20, help="Maximum number of failovers.")
@watch_option
@etcd_options
@list_output_option
@pools_option()
def failovers(limit: int, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """List takeovers and planned handovers, latest first.

    The order is that of etcd's revisions and does not depend on the members' clocks. The durations come from the
    traces on the control servers.
    """
    from understudy.deploy.inspect.tables import failovers_table
    from understudy.deploy.inspect.traces import Lengths, read_lengths
    from understudy.xds.control.admin import MOST_LISTED

    place = locate_pool(etcd, pool)

    async def run() -> dict[str, Any]:
        view, addresses = await _failovers(place)
        rows = view["failovers"][:limit]
        # Drills that moved no slot have a trace and no record, so this asks for more traces.
        known = await read_lengths(addresses, min(2 * limit, MOST_LISTED)) if rows else Lengths({}, {})
        return {**view, "failovers": [_with_length(row, known) for row in rows]}

    show(output, asyncio.run(run()), failovers_table, lambda view: [row["trace"] for row in view["failovers"]])


def _with_length(row: dict[str, Any], known: "Lengths") -> dict[str, Any]:
    """A row of ``failovers`` with its duration, and with the trace of the loss of the site if it belongs to one."""
    site, trace = known.sites.get(row["trace"], ("", ""))
    return {**row, "lost_site": site, "site_trace": trace, "took_ms": known.took_ms.get(row["trace"])}


async def _failovers(place: PoolLocation) -> tuple[dict[str, list[dict[str, str]]], list[str]]:
    """The failovers of a pool, and the admin addresses of its control servers."""
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.inspect.views import failovers_view

    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
    require_pool(state, place.etcd)
    return failovers_view(state), [at.record.http for at in state.controls.values()]


@click.command(
    epilog=examples(
        "understudy trace",
        "understudy trace 5f3a -o json",
    )
)
@click.option(
    "--all", "every", is_flag=True, help="Show every span. Without it, long traces are summarised by process and phase."
)
@click.argument("trace_id", metavar="[ID]", default="latest")
@watch_option
@pool_option(required=False)
@etcd_options
@list_output_option
def trace(trace_id: str, every: bool, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Show one takeover or handover phase by phase.

    ID is a trace id from 'understudy failovers', or the first digits of one. Default: the latest.
    """
    from understudy.deploy.inspect.traces import condense, read_trace
    from understudy.telemetry.otlp.spans import StoredSpan
    from understudy.telemetry.slo.waterfall import as_json, waterfall

    place = locate_pool(etcd, pool)

    async def run() -> list[StoredSpan]:
        view, addresses = await _failovers(place)
        wanted = _find_trace(trace_id, [row["trace"] for row in view["failovers"]])
        started = next((row["started"] for row in view["failovers"] if row["trace"] == wanted), 0.0)
        while not (spans := await read_trace(addresses, wanted)):
            if abs(time.time() - float(started)) > SPANS_TIMEOUT:
                raise NegativeAnswer(f"no control server has spans of trace {wanted} (any more)")
            await asyncio.sleep(POLL_INTERVAL)
        return spans

    spans = asyncio.run(run())
    show(
        output,
        as_json(spans),
        lambda _: waterfall(printable_view(spans if every else condense(spans))),
        lambda view: [view["trace_id"]],
    )


def _find_trace(wanted: str, known: list[str]) -> str:
    """The full trace id that begins with ``wanted``; ``known`` has the latest first."""
    if wanted == "latest":
        if not known:
            raise NegativeAnswer("there was no failover yet, so there is no trace")
        return known[0]
    matching = [trace for trace in known if trace.startswith(wanted.lower())]
    if len(matching) > 1:
        raise DeployError(f"{len(matching)} trace ids begin with {wanted!r}; give more digits")
    if matching:
        return matching[0]
    if len(wanted) == 32:
        return wanted.lower()  # a full id may be of a trace that has no failover record
    raise NegativeAnswer(f"no failover's trace begins with {wanted!r}; 'understudy failovers' lists them")
