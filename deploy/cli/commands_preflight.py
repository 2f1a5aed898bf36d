"""``understudy verify --preflight``: checks manifests, an etcd and a cluster, and shows the findings."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from understudy.deploy.common.options import EtcdOptions
from understudy.deploy.inspect.query import connect
from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.preflight.cluster import AREA as CLUSTER
from understudy.deploy.kubernetes.preflight.cluster import NoCluster, judge_cluster, look_at_cluster
from understudy.deploy.kubernetes.preflight.etcd import AREA as ETCD
from understudy.deploy.kubernetes.preflight.etcd import judge_etcd, look_at_etcd
from understudy.deploy.kubernetes.preflight.findings import Finding, Level
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.kubernetes.preflight.manifests import AREA as MANIFESTS
from understudy.deploy.kubernetes.preflight.manifests import judge_manifests

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red", Level.SKIPPED: "dim"}
_MARKS = {Level.OK: "ok", Level.WARN: "warn", Level.FAIL: "FAIL", Level.SKIPPED: "-"}


@dataclass(frozen=True, slots=True)
class Preflight:
    """What to check: manifests at a path, etcd if it has an address, and the cluster unless ``cluster`` is False."""

    manifests: Path | None
    etcd: EtcdOptions
    pool: str | None
    cluster: bool
    context: str


async def run_preflight(wanted: Preflight) -> list[Finding]:
    """All findings, in the order of an installation. Raises ``DeployError`` for files that cannot be used."""
    objects = load(wanted.manifests) if wanted.manifests else []
    now = datetime.now(UTC)
    if wanted.manifests:
        found = judge_manifests(objects, now)
    else:
        found = [Finding(Level.SKIPPED, MANIFESTS, "manifests", "none given", "--manifests DIR")]
    return [*found, *await _etcd(wanted), *await _cluster(wanted, objects, now)]


async def _etcd(wanted: Preflight) -> list[Finding]:
    if not wanted.etcd.endpoints:
        return [Finding(Level.SKIPPED, ETCD, "etcd", "none given", "--etcd HOST:PORT,...")]
    settings = wanted.etcd.settings(None)
    async with connect(settings) as client:
        return judge_etcd(await look_at_etcd(settings, client, wanted.pool))


async def _cluster(wanted: Preflight, objects: Sequence[Body], now: datetime) -> list[Finding]:
    if not wanted.cluster:
        return [Finding(Level.SKIPPED, CLUSTER, "cluster", "--no-cluster")]
    try:
        return judge_cluster(await look_at_cluster(objects, wanted.context), objects, now)
    except NoCluster as error:
        return [Finding(Level.SKIPPED, CLUSTER, "cluster", str(error), "kubectl config use-context, or --context")]


def preflight_table(view: dict[str, Any]) -> Any:  # noqa: ANN401 - something that rich can print
    """The findings as a table, and the result."""
    from rich.console import Group
    from rich.text import Text

    from understudy.deploy.common.console_style import plain_table

    table = plain_table("", "where", "what", "found", "what to do")
    for row in view["findings"]:
        level = Level(row["level"])
        remedy = row["remedy"] if level is not Level.OK else ""
        table.add_row(
            Text(_MARKS[level], style=_COLOURS[level]), row["area"], row["what"], Text(row["detail"]), Text(remedy)
        )
    count = view["count"]
    counts = f"{count['fail']} failed, {count['warn']} warnings, {count['ok']} passed, {count['skipped']} skipped"
    result = Text(f"ready: {counts}", style="green") if view["fine"] else Text(f"NOT READY: {counts}", style="bold red")
    return Group(table, result)
