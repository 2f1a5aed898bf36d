"""The command ``drill``: break a part of a running pool on purpose, and see what its clients notice."""

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from understudy.deploy.cli.commands_admin import duration
from understudy.deploy.common.options import (
    EtcdOptions,
    TlsOptions,
    address,
    etcd_options,
    examples,
    find_place,
    output_option,
    pool_option,
    show,
    tls_options,
)

if TYPE_CHECKING:
    from understudy.deploy.common.options import Place
    from understudy.deploy.drill.conditions import Kind
    from understudy.deploy.drill.drill import DrillResult, DrillSettings

_INTERRUPTED = 130
_KINDS_TOLD = """\b
Kinds:
  kill         a member, application and sidecar, by SIGKILL
  freeze       a member, by SIGSTOP
  drain        a member, and bring it back
  rolling      drain, restart and bring back all members, one by one
  etcd-leader  the leading etcd member, by SIGKILL
  control      the leading control server, by SIGKILL

"""
KINDS = ("kill", "freeze", "drain", "rolling", "etcd-leader", "control")


def _address_if_given(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Option callback: ``HOST:PORT``, or nothing."""
    if value:
        address(context, parameter, value)
    return value


@click.command(
    epilog=_KINDS_TOLD
    + examples(
        "understudy drill kill --load 300",
        "understudy drill drain --member cart-2 --for 10s",
        "understudy drill freeze --load 200 --repeat 5 -o json",
        "understudy drill kill --pool cart --etcd etcd:2379 --admin envoy:9901 \\",
        "    --command 'kubectl delete pod {name} --grace-period=0 --force'",
    )
)
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--member", default="", help="Which member (kill, freeze, drain). Default: each in turn.")
@click.option(
    "--load",
    "rate",
    type=click.IntRange(1, 5000),
    help="Bring own clients, of the example cart or (TCP) notebook: so many requests a second.",
)
@click.option("--for", "seconds", callback=duration, default="5s", show_default=True, help="How long it stays struck.")
@click.option("--repeat", type=click.IntRange(1, 1000), default=1, show_default=True, help="So many drills in a row.")
@click.option("--url", default="", help="Where --load's clients come in. Default: the local pool's front.")
@click.option(
    "--admin",
    default="",
    callback=_address_if_given,
    help="Front Envoy's admin interface. Default: the local pool's.",
)
@click.option("--command", default="", help="How to strike in a pool elsewhere; {name} is what to strike.")
@click.option("--undo", default="", help="How to undo --command, where that is needed (freeze).")
@pool_option(required=False)
@tls_options
@etcd_options
@output_option
def drill(
    kind: str,
    member: str,
    rate: int | None,
    seconds: float,
    repeat: int,
    url: str,
    admin: str,
    command: str,
    undo: str,
    pool: str | None,
    tls: TlsOptions | None,
    etcd: EtcdOptions,
    output: str,
) -> None:
    """Break a part of a running pool on purpose, and tell what its clients noticed.

    Refused unless every slot has a standby that is in sync and nothing is on the move. Watches the front Envoy's
    counters, or with --load the answers to its own clients. Undoes what it did, also on Ctrl-C. The failovers that it
    causes are marked as a drill.

    Exits with 1 if it is refused, if the pool does not recover, or if an objective of the pool spec is missed.
    """
    from understudy.deploy.drill.conditions import Kind
    from understudy.deploy.drill.drill import DrillSettings
    from understudy.deploy.drill.report import drill_table, view_of

    _refuse_wrong_use(Kind(kind), member=member, rate=rate, url=url, command=command, undo=undo)
    settings = DrillSettings(
        kind=Kind(kind),
        member=member,
        rate=rate or 0,
        seconds=seconds,
        repeat=repeat,
        url=url.rstrip("/"),
        admin=admin,
        command=command,
        undo=undo,
        tls=tls,
    )
    place = find_place(etcd, pool)
    results, interrupted = asyncio.run(_run(settings, place))
    view = view_of(place.pool, results)
    if results:
        show(output, view, drill_table)
    if interrupted:
        raise SystemExit(_INTERRUPTED)
    raise SystemExit(0 if view["ok"] else 1)


def _refuse_wrong_use(kind: "Kind", *, member: str, rate: int | None, url: str, command: str, undo: str) -> None:
    """Raise ``click.UsageError`` for options that say nothing together, or would strike another one than is told."""
    if member and not kind.of_a_member:
        of_members = ", ".join(other for other in type(kind) if other.of_a_member)
        raise click.UsageError(f"--member has no meaning for 'drill {kind}': it is for {of_members}")
    if command and "{name}" not in command and not member and kind != "drain":
        raise click.UsageError(
            f"--command {command!r} does not say what it strikes, and each drill strikes another one: "
            "put {name} where its name belongs, or fix the member with --member"
        )
    if undo and not command:
        raise click.UsageError("--undo undoes what --command did: give both, or none for a local pool")
    if url and rate is None:
        raise click.UsageError("--url is where --load's clients come in: give --load N, or leave --url out")


async def _run(settings: "DrillSettings", place: "Place") -> tuple[list["DrillResult"], bool]:
    """The results of all drills that were finished, and whether Ctrl-C or SIGTERM ended the row."""
    from understudy.deploy.common.printable import one_line
    from understudy.deploy.drill.drill import Drill
    from understudy.deploy.inspect.query import connect
    from understudy.deploy.local.up import Interrupted, stop_signal, unless

    def say(text: str) -> None:
        click.echo(one_line(text), file=sys.stderr)

    results: list[DrillResult] = []
    async with connect(place.etcd) as client, stop_signal() as stopping:
        for number in range(settings.repeat):
            if settings.repeat > 1:
                say(f"drill {number + 1} of {settings.repeat}")
            try:
                results.append(await unless(stopping, Drill(settings, place, client, say).run(number)))
            except Interrupted:
                say("interrupted; what the drill did is undone")
                return results, True
    return results, False
