"""The commands for a pool's session data: ``verify``, ``backup`` and ``restore``."""

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
from understudy.deploy.common.operator import reason_option, this_operator
from understudy.deploy.common.options import (
    EtcdOptions,
    PoolLocation,
    TlsOptions,
    etcd_options,
    examples,
    locate_pool,
    output_option,
    pool_option,
    show,
    shown_option,
    tls_options,
)

if TYPE_CHECKING:
    from understudy.deploy.data.backup_file import Header
    from understudy.deploy.data.verify import VerifyReport
    from understudy.statesync.sessions.session_crypto import SessionCrypto


@contextlib.contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if that is a terminal. Yields a function that takes the number of items done."""
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
@click.option("--repair", is_flag=True, help="Rebuild every copy that differs from etcd.")
@click.option(
    "--slot", type=click.IntRange(min=0), multiple=True, help="Compare only this slot; repeatable. Default: all slots."
)
@shown_option(
    "--names",
    type=click.IntRange(0, 10_000),
    default=5,
    help="Maximum number of session keys to list for each copy that differs.",
)
@click.option(
    "--session-keys",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Key file of the pool. Required if its sessions are encrypted.",
)
@click.option(
    "--preflight", is_flag=True, help="Check manifests, etcd and cluster before an installation, instead of copies."
)
@click.option(
    "--manifests",
    type=click.Path(path_type=Path),
    help="With --preflight: a manifest file, a directory of manifests, or an overlay from 'render'. Default: none.",
)
@shown_option(
    "--cluster/--no-cluster", default=True, help="With --preflight: check the cluster of kubectl, if there is one."
)
@click.option("--context", default="", help="With --preflight: context of kubectl. Default: the current one.")
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
    """Compare the copies in the memory of all members with etcd, slot by slot.

    The pool may serve and write sessions meanwhile; writes do not show up as differences.

    In a pool over several sites it also names the slots that have had current copies on one site only for more than
    30 s.

    Exit code 1: a copy differs or is missing, a slot is on one site, or a member cannot be asked. With --repair: this
    is still so after the repair.

    With --preflight the pool does not have to run. The command checks manifests (--manifests), an etcd (--etcd) and
    the cluster of kubectl. It writes nothing except a probe key of the pool (--pool). Exit code 1: a check failed.
    """
    if preflight:
        _preflight(manifests, etcd, pool, cluster=cluster, context=context, output=output)
        return
    if manifests or context or not cluster:
        raise DeployError("--manifests, --context and --no-cluster need --preflight")
    from understudy.statesync.sessions.session_crypto import BadKeyFile, load_session_crypto

    try:
        codec = load_session_crypto(session_keys)
    except BadKeyFile as error:
        raise DeployError(str(error)) from None
    report = asyncio.run(_verify(locate_pool(etcd, pool), sorted(set(slot)), tls, codec, repair=repair))
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
    place: PoolLocation, slots: list[int], tls: TlsOptions | None, codec: "SessionCrypto", *, repair: bool
) -> "VerifyReport":
    from understudy.deploy.data.verify import Verifier, addresses_of
    from understudy.deploy.inspect.member_views import slots_of
    from understudy.deploy.inspect.members import peer_apis
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
        async with peer_apis(addresses_of(state), tls, place.pool) as members:
            with _progress("comparing slots", len(wanted)) as advance:
                return await Verifier(client, state, members, codec=codec, progress=advance).run(wanted, repair=repair)


def _verify_table(view: dict[str, Any]) -> Any:  # noqa: ANN401 - something that rich can print
    from rich.console import Group
    from rich.text import Text

    from understudy.deploy.common.console_style import plain_table
    from understudy.deploy.inspect.views import ranges

    compared = f"{view['copies']} copies of {view['slots']} slots, {view['sessions']} sessions"
    headline = (
        Text(f"same: {compared}", style="green")
        if view["same"]
        else Text(f"DIFFERENT: {compared}; {len(view['different'])} copies differ", style="bold red")
    )
    parts: list[Any] = [headline]
    if view["different"]:
        table = plain_table("slot", "member", "role", "differ", "session", "fault", "held version", "in etcd")
        for row in view["different"]:
            head = (str(row["slot"]), row["member"], row["role"])
            if row["reason"]:
                table.add_row(*head, "", "", row["reason"], "", "")
            for number, one in enumerate(row["sessions"]):
                place = (*head, str(row["count"])) if number == 0 else ("", "", "", "")
                table.add_row(*place, one["key"], one["fault"], one["held_version"] or "-", one["etcd_version"] or "-")
            if row["count"] and not row["sessions"]:
                table.add_row(*head, str(row["count"]), "", "", "", "")
        parts.append(table)
    parts += [
        Text(f"! {member} could not be asked: {why}", style="yellow") for member, why in view["not_asked"].items()
    ]
    if view["one_site"]:
        slots = ranges(view["one_site"])
        parts.append(Text(f"! slots with current copies on one site only for more than 30 s: {slots}", style="yellow"))
    parts += [
        Text(f"! slot {row['slot']}: {row['values']} values in etcd are not sessions", style="yellow")
        for row in view["unreadable"]
    ]
    parts += [Text(f"repaired: slot {row['slot']} at {row['member']}") for row in view["repaired"]]
    return Group(*parts)


@click.command(
    epilog=examples(
        "understudy backup cart.jsonl",
        "understudy backup /backups/cart-monday.jsonl.gz --pool cart --etcd etcd-0:2379",
    )
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@pool_option(required=False)
@etcd_options
@output_option
def backup(file: Path, force: bool, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Write a pool's spec, sessions and epochs to FILE. The backup is of one etcd revision.

    The pool may serve and write sessions meanwhile. If the name ends in .gz, the file is compressed. The file has the
    content of all sessions, so only its owner can read it; protect it like etcd's data.
    """
    from understudy.deploy.data.backup import write_backup
    from understudy.deploy.inspect.query import connect
    from understudy.telemetry.tracing.setup import service_version

    place = locate_pool(etcd, pool)

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
@click.option(
    "--replace",
    is_flag=True,
    help="Delete the sessions that the pool has now; without it a pool with sessions is refused.",
)
@reason_option
@etcd_options
@output_option
def restore(file: Path, replace: bool, reason: str, etcd: EtcdOptions, output: str) -> None:
    """Restore a pool's spec and sessions from FILE. Stop all sidecars of the pool first.

    The whole FILE is checked before anything is changed. Expired sessions are not restored. Every session gets a new
    ETag, unless it is encrypted. Every slot gets an epoch above all its earlier ones.
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
                done = await Restore(
                    client,
                    contents,
                    boot=boot,
                    progress=advance,
                    actor=this_operator("restore", settings),
                    reason=reason,
                ).run(replace=replace)
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
    from understudy.deploy.common.console_style import utc_time

    left_out = f", {view['left_out']} skipped that are not sessions" if view["left_out"] else ""
    return (
        f"pool {view['pool']}: {view['restored']} sessions restored as of {utc_time(view['time'])} "
        f"(revision {view['revision']}), {view['expired']} had expired{left_out}; now start its sidecars"
    )
