"""The commands that look after a pool's session data: ``verify``, ``backup`` and ``restore``."""

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import (
    EtcdOptions,
    Place,
    TlsOptions,
    etcd_options,
    examples,
    find_place,
    output_option,
    pool_option,
    show,
    tls_options,
)

if TYPE_CHECKING:
    from understudy.deploy.data.backup_file import Header
    from understudy.deploy.data.verify import Report
    from understudy.statesync.sessions.session_crypto import SessionCodec


@contextlib.contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal; what it yields is told how many more are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from understudy.deploy.common.console_style import Terminal

    console = Terminal(stderr=True, file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@click.command(
    epilog=examples(
        "understudy verify",
        "understudy verify --repair",
        "understudy verify --slot 17 --names 100 -o json",
        "understudy verify --preflight --manifests manifests/overlays/production --etcd etcd-0:2379",
    )
)
@click.option("--repair", is_flag=True, help="Have every copy that differs forgotten and made anew from etcd.")
@click.option("--slot", type=click.IntRange(min=0), multiple=True, help="Only this slot (repeatable).")
@click.option(
    "--names", type=click.IntRange(0, 10_000), default=5, show_default=True, help="Name at most so many per copy."
)
@click.option(
    "--session-keys",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The pool's key file, if its sessions are encrypted.",
)
@click.option("--preflight", is_flag=True, help="Before installing: judge manifests, etcd and cluster instead.")
@click.option(
    "--manifests",
    type=click.Path(path_type=Path),
    help="With --preflight: a file of manifests, a folder of them, or an overlay that 'render' wrote.",
)
@click.option("--cluster/--no-cluster", default=True, help="With --preflight: ask kubectl's cluster, if there is one.")
@click.option("--context", default="", help="With --preflight: kubectl's context.")
@pool_option(required=False)
@etcd_options
@tls_options
@output_option
def verify(
    preflight: bool,
    manifests: Path | None,
    cluster: bool,
    context: str,
    repair: bool,
    slot: tuple[int, ...],
    names: int,
    session_keys: Path | None,
    pool: str | None,
    etcd: EtcdOptions,
    tls: TlsOptions | None,
    output: str,
) -> None:
    """Compare what owners, standbys and backups hold in memory with etcd, slot by slot.

    The pool goes on working, and its writes give no false alarm. Exits with 1 when some copy differs or is missing,
    or some member could not be asked; with --repair only when that is still so afterwards.

    With --preflight nothing has to run yet: it judges what there is of manifests (--manifests), an etcd (--etcd) and a
    cluster (kubectl's), changes nothing but a probe key of the pool (--pool), and exits with 1 when something stands in
    the way.
    """
    if preflight:
        _preflight(manifests, etcd, pool, cluster=cluster, context=context, output=output)
        return
    if manifests or context or not cluster:
        raise DeployError("--manifests, --context and --no-cluster go with --preflight")
    from understudy.statesync.sessions.session_crypto import BadKeyFile, load_codec

    try:
        codec = load_codec(session_keys)
    except BadKeyFile as error:
        raise DeployError(str(error)) from None
    report = asyncio.run(_verify(find_place(etcd, pool), sorted(set(slot)), tls, codec, repair=repair))
    show(output, report.view(names), _verify_table)
    if not report.fine:
        raise SystemExit(1)


def _preflight(
    manifests: Path | None, etcd: EtcdOptions, pool: str | None, *, cluster: bool, context: str, output: str
) -> None:
    from understudy.deploy.cli.commands_preflight import Preflight, preflight_table, run_preflight
    from understudy.deploy.kubernetes.preflight.findings import findings_view, is_fine

    findings = asyncio.run(run_preflight(Preflight(manifests, etcd, pool, cluster, context)))
    show(output, findings_view(findings), preflight_table)
    if not is_fine(findings):
        raise SystemExit(1)


async def _verify(
    place: Place, slots: list[int], tls: TlsOptions | None, codec: "SessionCodec", *, repair: bool
) -> "Report":
    from understudy.deploy.data.verify import Verifier, addresses_of
    from understudy.deploy.inspect.member_views import slots_of
    from understudy.deploy.inspect.members import asking
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.statesync.sessions.session_crypto import PLAIN

    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        if state.table is None:
            raise DeployError(f"pool {place.pool!r} has no slot table yet: no member has been ready so far")
        if codec is PLAIN and await client.get(state.keys.encryption):
            raise DeployError(f"the sessions of pool {place.pool!r} are encrypted: give --session-keys")
        if slots and slots[-1] >= slots_of(state):
            raise DeployError(f"--slot {slots[-1]}: pool {place.pool!r} has slots 0 to {slots_of(state) - 1}")
        wanted = slots or list(range(slots_of(state)))
        async with asking(addresses_of(state), tls, place.pool) as members:
            with _progress("comparing slots", len(wanted)) as advance:
                return await Verifier(client, state, members, codec=codec, progress=advance).run(wanted, repair=repair)


def _verify_table(view: dict[str, Any]) -> Any:  # noqa: ANN401 - something that rich can print
    from rich.console import Group
    from rich.text import Text

    from understudy.deploy.common.console_style import plain_table

    compared = f"{view['copies']} copies of {view['slots']} slots, {view['sessions']} sessions"
    verdict = (
        Text(f"same: {compared}", style="green")
        if view["same"]
        else Text(f"DIFFERENT: {compared}; {len(view['different'])} copies differ", style="bold red")
    )
    parts: list[Any] = [verdict]
    if view["different"]:
        table = plain_table("slot", "member", "role", "differ", "session", "fault", "held at", "in etcd at")
        for row in view["different"]:
            head = (str(row["slot"]), row["member"], row["role"])
            if row["reason"]:
                table.add_row(*head, "", "", row["reason"], "", "")
            for number, one in enumerate(row["sessions"]):
                place = (*head, str(row["count"])) if number == 0 else ("", "", "", "")
                table.add_row(
                    *place, one["key"], one["fault"], _revision(one["held_revision"]), _revision(one["etcd_revision"])
                )
            if row["count"] and not row["sessions"]:
                table.add_row(*head, str(row["count"]), "", "", "", "")
        parts.append(table)
    parts += [
        Text(f"! {member} could not be asked: {why}", style="yellow") for member, why in view["not_asked"].items()
    ]
    parts += [
        Text(f"! slot {row['slot']}: {row['values']} values in etcd are no sessions", style="yellow")
        for row in view["unreadable"]
    ]
    parts += [Text(f"repaired: slot {row['slot']} at {row['member']}") for row in view["repaired"]]
    return Group(*parts)


def _revision(number: int) -> str:
    return str(number) if number else "-"


@click.command(
    epilog=examples(
        "understudy backup cart.jsonl",
        "understudy backup /backups/cart-monday.jsonl.gz --pool cart --etcd etcd-0:2379",
    )
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@pool_option(required=False)
@etcd_options
@output_option
def backup(file: Path, force: bool, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Write a pool's spec, sessions and epochs to FILE, as they are at one moment.

    The pool goes on working. A name that ends in .gz is compressed. The file holds what the sessions hold, so it is
    readable by you alone; keep it as you keep etcd's data.
    """
    from understudy.deploy.data.backup import write_backup
    from understudy.deploy.inspect.query import connect
    from understudy.telemetry.tracing.setup import service_version

    place = find_place(etcd, pool)

    async def run() -> "Header":
        async with connect(place.etcd) as client:
            with _progress("sessions") as advance:
                return await write_backup(client, place.pool, file, service_version(), force=force, progress=advance)

    header = asyncio.run(run())
    view = {"file": str(file), "bytes": file.stat().st_size, **asdict(header)}
    show(
        output,
        view,
        lambda done: (
            f"pool {done['pool']}: {done['sessions']} sessions at revision {done['revision']} "
            f"in {done['file']} ({done['bytes']} bytes)"
        ),
    )


@click.command(
    epilog=examples(
        "understudy restore cart.jsonl",
        "understudy restore /backups/cart-monday.jsonl.gz --replace --etcd etcd-0:2379",
    )
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--replace", is_flag=True, help="Delete the sessions that the pool has now.")
@etcd_options
@output_option
def restore(file: Path, replace: bool, etcd: EtcdOptions, output: str) -> None:
    """Put a pool's spec and sessions back from FILE; stop all its sidecars first.

    FILE is checked from end to end before anything is changed. Sessions that have expired since are left out. Every
    session gets a new ETag, and every slot an epoch above all that it ever had.
    """
    from understudy.deploy.common.layout import read_layout, state_directory
    from understudy.deploy.data.backup import Restore
    from understudy.deploy.data.backup_file import check
    from understudy.deploy.inspect.query import connect

    contents = check(file)
    settings = etcd.settings(read_layout(state_directory(os.environ)))

    async def run() -> dict[str, Any]:
        async with connect(settings) as client:
            with _progress("sessions", contents.header.sessions) as advance:
                boot = f"restored-{secrets.token_hex(8)}"
                done = await Restore(client, contents, boot=boot, progress=advance).run(replace=replace)
        return {
            "pool": contents.header.pool,
            "restored": done.sessions,
            "expired": done.expired,
            "left_out": done.foreign,
            "revision": contents.header.revision,
            "time": contents.header.time,
        }

    show(output, asyncio.run(run()), _restored)


def _restored(view: dict[str, Any]) -> str:
    from understudy.deploy.common.console_style import when

    left_out = f", {view['left_out']} that are no sessions left out" if view["left_out"] else ""
    return (
        f"pool {view['pool']}: {view['restored']} sessions restored as of {when(view['time'])} "
        f"(revision {view['revision']}), {view['expired']} had expired{left_out}; now start its sidecars"
    )
