"""The command ``drill``: injects a fault into a running pool and reports what its clients saw."""

import asyncio
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

from understudy.deploy.cli.commands_drain import duration
from understudy.deploy.cli.commands_local import domain_names
from understudy.deploy.common.completion import complete_member, complete_site
from understudy.deploy.common.operator import reason_option
from understudy.deploy.common.options import (
    EtcdOptions,
    TlsOptions,
    address,
    etcd_options,
    examples,
    locate_pool,
    output_option,
    pool_option,
    show,
    shown_option,
    tls_options,
)
from understudy.deploy.common.peer_option import peer_of, peer_option

if TYPE_CHECKING:
    from understudy.deploy.common.options import PoolLocation
    from understudy.deploy.drill.conditions import DrillKind
    from understudy.deploy.drill.settings import DrillResult, DrillSettings
    from understudy.deploy.drill.windows import Window

INTERRUPTED_EXIT_CODE = 130
_KINDS_HELP = """\b
Kinds:
  kill         send SIGKILL to a member (application and sidecar)
  app          send SIGKILL to the application of a member alone, and keep it down
  sidecar      send SIGKILL to the sidecar of a member alone, and keep it down
  freeze       send SIGSTOP to a member, later SIGCONT
  drain        drain a member, later undrain it
  rolling      drain, restart and undrain all members, one after another
  etcd-leader  send SIGKILL to the etcd leader
  control      send SIGKILL to the leading control server
  site         send SIGKILL to all members of a site at once, with the control servers and etcd members there
  all-sites    send SIGKILL to all members, control servers and etcd members at once
  witness      send SIGKILL to the etcd member that is on no site, and keep it away
  link         lose all packets between two sites, in both directions or in one
  link-witness do both: etcd then has no majority, unless more than two sites have etcd members
  site-offline take a site out of service, later bring it back: the practice of a planned switch
  home-move    move the home to the other of two distant sites, and back
  home-loss    send SIGKILL to everything at the home, take over at the other distant site, and move back
  site-take-over  send SIGKILL to the site with most of etcd, take over at the other one, and bring it back

"""
KINDS = (
    *("kill", "freeze", "drain", "rolling", "etcd-leader", "control", "site", "link", "site-offline"),
    *("home-move", "home-loss", "site-take-over"),
    *("app", "sidecar", "witness", "link-witness", "all-sites"),
)
UNNAMED = ("drain", "link", "home-move", "home-loss", "witness", "link-witness", "all-sites")
"""Kinds whose --command need not name its target."""


def _address_if_given(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Option callback: ``HOST:PORT``, or nothing."""
    if value:
        address(context, parameter, value)
    return value


def _windows(_: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple["Window", ...]:
    """Option callback: times of the week."""
    from understudy.deploy.drill.windows import Window

    try:
        return tuple(map(Window.parse, value))
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None


@click.command(
    epilog=_KINDS_HELP
    + examples(
        "understudy drill kill --load 300",
        "understudy drill drain --member cart-2 --for 10s",
        "understudy drill site --site east --load 300",
        "understudy drill link --link east,west --direction one-way --load 300 --for 20s",
        "understudy drill witness --load 300 --for 20s",
        "UNDERSTUDY_DIR=.understudy/east understudy drill home-loss --load 100",
        "understudy drill site-take-over --load 100",
        "understudy drill site-offline --site east --for 10m --not 'Mon-Fri 08:00-18:00'",
        "understudy drill freeze --load 200 --repeat 5 -o json",
        "understudy drill kill --pool cart --etcd etcd:2379 --admin envoy:9901 \\",
        "    --command 'kubectl delete pod {name} --grace-period=0 --force'",
    )
)
@click.argument("kind", type=click.Choice(KINDS))
@click.option(
    "--member",
    default="",
    shell_complete=complete_member,
    help="Member to inject the fault into (kill, app, sidecar, freeze, drain). Default: another one in each drill.",
)
@click.option(
    "--site",
    default="",
    shell_complete=complete_site,
    help="Site to kill (site), or to take out of service (site-offline). Default: another one in each drill; for "
    "site-take-over the one with most of etcd.",
)
@click.option(
    "--link",
    callback=domain_names,
    metavar="SITE,SITE",
    help="The two sites whose link is cut (link, link-witness). Default: another pair in each drill.",
)
@shown_option(
    "--direction",
    type=click.Choice(["both", "one-way"]),
    default="both",
    help="What is lost (link): everything, or only what the first site of --link sends to the second.",
)
@click.option(
    "--load",
    "rate",
    type=click.IntRange(1, 5000),
    help="Requests per second of own clients, which use the example cart or, in a TCP pool, the notebook. "
    "Default: no own clients, the counters of the front Envoy are read.",
)
@shown_option(
    "--for", "seconds", callback=duration, default="5s", metavar="TIME", help="Duration of the fault, such as 5s or 1m."
)
@click.option(
    "--not",
    "blocked",
    multiple=True,
    callback=_windows,
    metavar="WINDOW",
    help="Do nothing, with exit code 0, if the drill would meet this time of the week in the local time zone, such as "
    "'Mon-Fri 08:00-18:00'; repeatable. Default: none.",
)
@shown_option(
    "--every",
    callback=duration,
    default="28d",
    metavar="TIME",
    help="How often this is practised (site-offline): 'site status' says when the last time is longer ago.",
)
@shown_option("--repeat", type=click.IntRange(1, 1000), default=1, help="Number of drills to run.")
@click.option("--url", default="", help="URL for the clients of --load. Default: the front Envoy of the local pool.")
@click.option(
    "--admin",
    default="",
    callback=_address_if_given,
    help="Admin address of the front Envoy, HOST:PORT. Default: that of the local pool; "
    "for other pools what all front Envoys report to control servers.",
)
@click.option(
    "--command",
    default="",
    help="Command that injects the fault; {name} is replaced by the target, for link and link-witness {from} and {to} "
    "by the sites. Default: signals to the local pool.",
)
@click.option(
    "--undo",
    default="",
    help="Command that undoes --command. Required for freeze, link, witness and link-witness. Default: none.",
)
@peer_option(required=False)
@click.option(
    "--peer-url",
    default="",
    help="URL for clients at the other distant site (home-move, home-loss). Default: that of the local pool, or --url.",
)
@reason_option
@pool_option(required=False)
@tls_options
@etcd_options
@output_option
def drill(
    kind: str,
    member: str,
    site: str,
    link: tuple[str, ...],
    direction: str,
    rate: int | None,
    seconds: float,
    blocked: tuple["Window", ...],
    every: float,
    repeat: int,
    url: str,
    admin: str,
    command: str,
    undo: str,
    peer: str,
    peer_url: str,
    reason: str,
    pool: str | None,
    tls: TlsOptions | None,
    etcd: EtcdOptions,
    output: str,
) -> None:
    """Inject a fault into a running pool and report what its clients saw.

    A drill starts only if every slot has a standby in sync and no slot is moving. It reads the counters of the front
    Envoy, or with --load the answers to its own clients. It undoes the fault, also on Ctrl-C. Failovers that a drill
    causes are marked as such.

    Exit code 1: the drill was refused, the pool did not recover, or an objective of the pool spec was missed.
    """
    from understudy.deploy.drill.conditions import DrillKind
    from understudy.deploy.drill.report import drill_table, view_of
    from understudy.deploy.drill.settings import DrillSettings

    _check_options(DrillKind(kind), member=member, site=site, rate=rate, url=url, command=command, undo=undo)
    _check_link(kind, link, direction, command, undo)
    of_a_home = DrillKind(kind).of_a_home
    if (peer_url and not of_a_home) or (of_a_home and rate is None):
        raise click.UsageError("home-move and home-loss need --load N, and --peer-url is for them alone")
    if kind == "site-take-over" and (rate is None or command):
        raise click.UsageError(f"drill {kind} needs --load N, and --command has no effect on it")
    settings = DrillSettings(
        kind=DrillKind(kind),
        member=member,
        site=site,
        link=link,
        one_way=direction == "one-way",
        rate=rate or 0,
        seconds=seconds,
        every=every,
        repeat=repeat,
        url=url.rstrip("/"),
        admin=admin,
        command=command,
        undo=undo,
        reason=reason,
        peer=peer_of(peer, etcd) if peer and of_a_home else None,
        peer_url=peer_url.rstrip("/"),
        tls=tls,
    )
    if window := _blocking(blocked, seconds):
        click.echo(f"nothing was done: the drill would meet --not {window!r}", file=sys.stderr)
        return
    place = locate_pool(etcd, pool)
    results, interrupted = asyncio.run(_run(settings, place))
    view = view_of(place.pool, results)
    if results:
        show(output, view, drill_table)
    if interrupted:
        raise SystemExit(INTERRUPTED_EXIT_CODE)
    raise SystemExit(0 if view["ok"] else 1)


def _blocking(blocked: tuple["Window", ...], seconds: float) -> str:
    """The window that a drill from now on would meet, '' for none."""
    from understudy.deploy.drill.windows import blocking

    return blocking(blocked, datetime.now().astimezone(), seconds)


def _check_options(
    kind: "DrillKind", *, member: str, site: str, rate: int | None, url: str, command: str, undo: str
) -> None:
    """Raise ``click.UsageError`` for options that contradict each other, or that would hit another target."""
    if member and not kind.of_a_member:
        of_members = ", ".join(other for other in type(kind) if other.of_a_member)
        raise click.UsageError(f"--member has no effect on 'drill {kind}': it is for {of_members}")
    if site and not kind.of_a_site:
        of_sites = ", ".join(other for other in type(kind) if other.of_a_site)
        raise click.UsageError(f"--site has no effect on 'drill {kind}': it is for {of_sites}")
    if command and kind == "site-offline":
        raise click.UsageError("--command has no effect on 'drill site-offline', which needs none")
    if command and "{name}" not in command and not member and not site and kind not in UNNAMED:
        raise click.UsageError(
            f"--command {command!r} does not name its target, and each drill has another target: "
            "write {name} in place of the target's name, or choose one member with --member"
        )
    if undo and not command:
        raise click.UsageError("--undo needs --command: give both, or neither for a local pool")
    if url and rate is None:
        raise click.UsageError("--url is for the clients of --load: give --load N, or leave --url out")


def _check_link(kind: str, link: tuple[str, ...], direction: str, command: str, undo: str) -> None:
    """Raise ``click.UsageError`` for options of a link that contradict each other."""
    if direction != "both" and kind != "link":
        raise click.UsageError(f"--direction has no effect on 'drill {kind}': it is for link")
    if kind not in ("link", "link-witness"):
        if link:
            raise click.UsageError(f"--link has no effect on 'drill {kind}': it is for link and link-witness")
        return
    if link and (len(link) != 2 or link[0] == link[1]):
        raise click.UsageError(f"--link names two sites, such as east,west, and not {','.join(link)!r}")
    if direction == "one-way" and not link:
        raise click.UsageError("--direction one-way needs --link FROM,TO: which site's packets are lost")
    for option, text in (("--command", command), ("--undo", undo)):
        if text and not ("{from}" in text and "{to}" in text):
            raise click.UsageError(
                f"{option} {text!r} does not say which direction: write {{from}} and {{to}} for the sites"
            )


async def _run(settings: "DrillSettings", place: "PoolLocation") -> tuple[list["DrillResult"], bool]:
    """The results of the finished drills, and whether Ctrl-C or SIGTERM interrupted them."""
    from understudy.deploy.common.printable import one_line
    from understudy.deploy.drill.drill import Drill
    from understudy.deploy.drill.home import home_drill
    from understudy.deploy.drill.take_over import TakeOverDrill
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
                if settings.kind.of_a_home:
                    async with home_drill(settings, place, client, say) as drill:
                        results.append(await unless(stopping, drill.run(number)))
                else:
                    made = TakeOverDrill if settings.kind == "site-take-over" else Drill
                    results.append(await unless(stopping, made(settings, place, client, say).run(number)))
            except Interrupted:
                say("interrupted; the fault is undone")
                return results, True
    return results, False
