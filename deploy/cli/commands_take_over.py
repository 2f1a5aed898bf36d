"""``understudy site take-over``: a site goes on with its member of etcd alone, after the majority of etcd was lost."""

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.operator import reason_option, this_operator
from understudy.deploy.common.options import (
    TlsOptions,
    examples,
    output_option,
    require_name,
    show,
    tls_options,
)

if TYPE_CHECKING:
    from understudy.deploy.operate.lone_etcd import EtcdData, EtcdMember
    from understudy.deploy.operate.site_take_over import Estimate, Login


@click.command(
    "take-over",
    epilog=examples(
        "understudy site take-over west --data-dir /var/lib/etcd --dry-run",
        "understudy site take-over west --data-dir /var/lib/etcd --reason 'east burned down'",
        "understudy site take-over west --data-dir /var/lib/etcd --yes -- --peer-trusted-ca-file ca.pem",
    ),
)
@click.argument("name", metavar="SITE")
@click.argument("etcd_arguments", metavar="[-- ETCD_OPTION...]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--data-dir",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Data directory of the member of etcd on SITE.",
)
@click.option(
    "--etcd-binary",
    metavar="FILE",
    help="etcd, of the version that SITE runs. Default: UNDERSTUDY_ETCD_BINARY, or etcd.",
)
@click.option("--etcd-user", envvar="UNDERSTUDY_ETCD_USER", help="User name for etcd. Default: no login.")
@click.option("--dry-run", is_flag=True, help="Only check, and show what may be lost.")
@click.option("--force", is_flag=True, help="Go on although lost members of etcd accept connections; needs --reason.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@reason_option
@tls_options
@output_option
def take_over(
    name: str,
    etcd_arguments: tuple[str, ...],
    data_dir: Path,
    etcd_binary: str | None,
    etcd_user: str | None,
    dry_run: bool,
    force: bool,
    yes: bool,
    reason: str,
    tls: TlsOptions | None,
    output: str,
) -> None:
    """Let SITE go on with its one member of etcd, after the site that had the majority of etcd was lost.

    Run it where this member of etcd runs, as its user, with the member stopped. It starts etcd for itself, on loopback,
    three times: to see that no majority answers; on a copy of the data, to estimate what may be lost; and to give the
    lost members up. Then start etcd again as usual. ETCD_OPTIONs are those that etcd needs to reach its members, such
    as of TLS.

    The lost members of etcd can never come back with their data. All pools of this etcd are told so: see "Two sites
    without a third" in the documentation of sites.

    Exit code 1: a majority of etcd answers, a lost member does, or the question was answered with no.
    """
    from understudy.deploy.operate.lone_etcd import EtcdData
    from understudy.deploy.operate.site_take_over import Login, estimate_view

    require_name("SITE", name)
    if force and not reason:
        raise click.UsageError("--force needs --reason: the audit log shows why the refusal was overruled")
    if output != "table" and not (yes or dry_run):
        raise click.UsageError(f"-o {output} needs --yes or --dry-run")
    data = EtcdData(data_dir, _binary(etcd_binary), etcd_arguments)
    login = Login(etcd_user, os.environ.get("UNDERSTUDY_ETCD_PASSWORD"))
    known = asyncio.run(_look(data, name, login, tls, force=force))
    view = estimate_view(name, known, time.time())
    if dry_run or output == "table":
        show(output, view, _estimated)
    if dry_run:
        return
    if not yes:
        _confirm(name)
    lost, done = asyncio.run(_take_over(data, name, known, reason, login))
    show(output, {**view, "lost": [one.name for one in lost], **done}, lambda view: _done(view, lost))


def _binary(given: str | None) -> str:
    from understudy.deploy.local.local_pool import find_etcd

    if given is None:
        return find_etcd(os.environ)
    found = shutil.which(given)
    if found is None:
        raise DeployError(f"--etcd-binary {given}: there is no such program")
    return found


async def _look(data: "EtcdData", site: str, login: "Login", tls: TlsOptions | None, *, force: bool) -> "Estimate":
    from understudy.deploy.operate.site_take_over import check, estimate

    before = await check(data, force=force)
    return await estimate(data, site, before, login, tls)


async def _take_over(
    data: "EtcdData", site: str, known: "Estimate", reason: str, login: "Login"
) -> tuple[list["EtcdMember"], dict[str, Any]]:
    from understudy.deploy.operate.site_take_over import take_over
    from understudy.statesync.etcd.settings import EtcdSettings

    actor = this_operator("site take-over", EtcdSettings((), username=login.user))
    return await take_over(data, site, known, actor, reason, login)


def _confirm(site: str) -> None:
    try:
        agreed = click.confirm(f"Give up the other members of etcd for good, so that site {site} goes on alone?")
    except click.Abort:
        raise DeployError("no confirmation, so nothing was changed: give --yes") from None
    if not agreed:
        raise SystemExit(1)


def _estimated(view: dict[str, Any]) -> str:
    """The estimate as text."""
    age = view["last_entry_age"]
    last = "at an unknown time" if age is None else f"{age:g} s ago"
    lines = [
        f"no majority of etcd answers; its members are {', '.join(one['name'] for one in view['etcd_members'])}",
        f"this member has revision {view['revision']}, and wrote its last entry {last}",
        f"members of site {view['site']} have seen {view['missing_revisions']} later revisions, which are not in it",
    ]
    for pool in view["pools"]:
        lines += [
            f"pool {pool['pool']}, site {site or '(none)'}: {_loss(loss)}" for site, loss in pool["lost_sites"].items()
        ]
    return "\n".join(lines)


def _loss(loss: dict[str, Any]) -> str:
    """What the loss of a site costs a pool."""
    parts = [f"{loss['from_memory']} slots go on from memory, and lose nothing"] if loss["from_memory"] else []
    if loss["from_etcd"]:
        parts.append(f"{loss['from_etcd']} slots are read from this etcd, and lose the writes that it had not got yet")
    if loss["lossy"]:
        parts.append(f"{loss['lossy']} slots lose replicas writes of the last {loss['bound_ms']} ms as well")
    return "; ".join(parts) or "it served no slot"


def _done(view: dict[str, Any], lost: list["EtcdMember"]) -> str:
    """What was done, and what is left to do."""
    pools = ", ".join(f"{pool} (take-over {number})" for pool, number in view["generations"].items()) or "no pool"
    lines = [
        f"site {view['site']} has etcd to itself, at revision {view['revision']}: {pools}",
        "1. Start this member of etcd now, as usual, with the same data directory and without --force-new-cluster.",
        "2. Before these members of etcd start again, delete their data directories:",
        *(f"     {member.name}  {', '.join(member.peer_urls)}" for member in lost),
        "3. Add each of them as a new member, and start it with --initial-cluster-state existing:",
        *(f"     etcdctl member add {member.name} --peer-urls {','.join(member.peer_urls)}" for member in lost),
    ]
    return "\n".join(lines)
