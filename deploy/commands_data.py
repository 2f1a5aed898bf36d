"""The commands that look after a pool's session data: ``verify``, ``backup`` and ``restore``."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.errors import DeployError
from deploy.options import (
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
    from deploy.verify import Report


@contextlib.contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal; what it yields is told how many more are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@click.command(
    epilog=examples(
        "understudy verify",
        "understudy verify --repair",
        "understudy verify --slot 17 --names 100 -o json",
    )
)
@click.option("--repair", is_flag=True, help="Have every copy that differs forgotten and made anew from etcd.")
@click.option("--slot", type=click.IntRange(min=0), multiple=True, help="Only this slot (repeatable).")
@click.option(
    "--names", type=click.IntRange(0, 10_000), default=5, show_default=True, help="Name at most so many per copy."
)
@pool_option(required=False)
@etcd_options
@tls_options
@output_option
def verify(
    repair: bool,
    slot: tuple[int, ...],
    names: int,
    pool: str | None,
    etcd: EtcdOptions,
    tls: TlsOptions | None,
    output: str,
) -> None:
    """Compare what owners, standbys and backups hold in memory with etcd, slot by slot.

    The pool goes on working, and its writes give no false alarm. Exits with 1 when some copy differs or is missing,
    or some member could not be asked; with --repair only when that is still so afterwards.
    """
    report = asyncio.run(_verify(find_place(etcd, pool), sorted(set(slot)), tls, repair=repair))
    show(output, report.view(names), _verify_table)
    if not report.fine:
        raise SystemExit(1)


async def _verify(place: Place, slots: list[int], tls: TlsOptions | None, *, repair: bool) -> "Report":
    from deploy.members import asking
    from deploy.reading import connect, read_pool, require_pool
    from deploy.verify import Verifier, addresses_of
    from deploy.views import slots_of

    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        if state.table is None:
            raise DeployError(f"pool {place.pool!r} has no slot table yet: no member has been ready so far")
        if slots and slots[-1] >= slots_of(state):
            raise DeployError(f"--slot {slots[-1]}: pool {place.pool!r} has slots 0 to {slots_of(state) - 1}")
        wanted = slots or list(range(slots_of(state)))
        async with asking(addresses_of(state), tls) as members:
            with _progress("comparing slots", len(wanted)) as advance:
                return await Verifier(client, state, members, advance).run(wanted, repair=repair)


def _verify_table(view: dict[str, Any]) -> Any:  # noqa: ANN401 - something that rich can print
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    compared = f"{view['copies']} copies of {view['slots']} slots, {view['sessions']} sessions"
    verdict = (
        Text(f"same: {compared}", style="green")
        if view["same"]
        else Text(f"DIFFERENT: {compared}; {len(view['different'])} copies differ", style="bold red")
    )
    parts: list[Any] = [verdict]
    if view["different"]:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("slot", "member", "role", "differ", "session", "fault", "held at", "in etcd at"):
            table.add_column(column, overflow="fold")
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
