"""The command ``slo``: are the objectives met, by the traces of real failovers and drills?"""

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import (
    EtcdOptions,
    etcd_options,
    examples,
    find_place,
    list_output_option,
    pool_option,
    show,
)
from understudy.deploy.common.printable import say
from understudy.telemetry.timing.duration import parse_duration

if TYPE_CHECKING:
    from understudy.deploy.inspect.review_inputs import Evidence
    from understudy.statesync.pool.spec import PoolSpec
    from understudy.telemetry.slo.model import Targets

_LONGEST = 366 * 86_400
MISSED, UNSHOWN = 1, 3


def _window(_: click.Context, parameter: click.Parameter, value: str) -> int:
    """Option callback: a time like ``30d``, in seconds."""
    seconds = parse_duration(value, ("m", "h", "d", "w")) or 0.0
    if not 1 <= seconds <= _LONGEST:
        raise click.BadParameter(f"{value!r} is no time like 90m, 24h, 30d or 4w (a year at the most)", param=parameter)
    return int(seconds)


@click.command(
    epilog=examples(
        "understudy slo",
        "understudy slo --window 7d --compare --html review.html",
        "understudy slo --from traces.json --spec pool.yaml -o json",
        "understudy slo --from tempo=http://127.0.0.1:3200 --pool cart",
        "understudy slo --export openslo > objectives.yaml",
    )
)
@click.option("--window", default="30d", show_default=True, callback=_window, help="How far to look back (m, h, d, w).")
@click.option("--from", "source", help="Read traces from a file, a directory, jaeger=URL or tempo=URL instead.")
@click.option(
    "--spec",
    "spec_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Take pool and objectives from this pool spec instead of etcd.",
)
@click.option(
    "--objectives",
    type=click.Path(path_type=Path, dir_okay=False),
    help="OpenSLO v1 YAML whose objectives count instead of the spec's.",
)
@click.option("--compare", is_flag=True, help="Also show the results of the window before.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the review as an HTML page. Default: none.",
)
@click.option(
    "--export",
    type=click.Choice(["openslo", "sloth", "prometheus"]),
    help="Print the objectives for other tools, and judge nothing.",
)
@pool_option(required=False)
@etcd_options
@list_output_option
def slo(
    window: int,
    source: str | None,
    spec_file: Path | None,
    objectives: Path | None,
    compare: bool,
    html: Path | None,
    export: str | None,
    pool: str | None,
    etcd: EtcdOptions,
    output: str,
) -> None:
    """Judge failovers against the pool's objectives.

    Exits with 0 when all objectives are shown to be met, 1 when one is missed, 3 when there is too little evidence.
    """
    from understudy.deploy.inspect.review_inputs import reviews, targets_of
    from understudy.telemetry.slo.model import State
    from understudy.telemetry.slo.page import page
    from understudy.telemetry.slo.view import Drawing, as_json

    end = time.time_ns()
    start = end - window * 10**9
    spec, evidence = _gather(spec_file, source, pool, etcd, 2 * start - end, end, traces=not export)
    targets = _imported(targets_of(spec.objectives), objectives)
    if export:
        click.echo(_exported(export, targets, spec.pool, window), nl=False)
        return
    now, before = reviews(evidence, targets, pool=spec.pool, slots=spec.slots, start_ns=start, end_ns=end)
    if html:
        try:
            html.write_text(page(now, before), encoding="utf-8")
        except OSError as error:
            raise DeployError(f"--html {html}: cannot be written: {error.strerror}") from None
    earlier = before if compare else None
    show(
        output,
        as_json(now, earlier),
        lambda _: Drawing(now, earlier),
        lambda view: [figure["key"] for figure in view["figures"]],
    )
    if now.state is not State.MET:
        raise SystemExit(MISSED if now.state is State.MISSED else UNSHOWN)


def _gather(
    spec_file: Path | None,
    source: str | None,
    pool: str | None,
    etcd: EtcdOptions,
    since: int,
    until: int,
    *,
    traces: bool,
) -> "tuple[PoolSpec, Evidence]":
    """The pool's spec, and what is known of the window if ``traces`` are wanted."""
    from understudy.deploy.inspect.review_inputs import Evidence, evidence_from
    from understudy.statesync.pool.spec_reader import load_spec

    found = Evidence()
    if source and traces:
        found, told = evidence_from(source, since, until)
        if told:
            say(f"understudy: {told}", err=True)
    if spec_file is None:
        read, asked = asyncio.run(_ask(etcd, pool, since, until, traces=traces and not source))
        return read, found if source else asked
    spec = load_spec(spec_file)
    if pool not in (None, spec.pool) and "UNDERSTUDY_POOL" not in os.environ:
        raise DeployError(f"--pool {pool}: the spec in {spec_file} is for pool {spec.pool!r}")
    if source is None and traces:
        _, found = asyncio.run(_ask(etcd, spec.pool, since, until, traces=True))
    return spec, found


async def _ask(
    etcd: EtcdOptions, pool: str | None, since: int, until: int, *, traces: bool
) -> "tuple[PoolSpec, Evidence]":
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.inspect.review_inputs import Evidence, read_evidence

    place = find_place(etcd, pool)
    async with connect(place.etcd) as client:
        state, _ = await read_pool(client, place.pool)
    require_pool(state, place.etcd)
    if state.spec is None:
        raise DeployError(f"pool {place.pool!r} has no spec")
    addresses = [at.record.http for at in state.controls.values()]
    evidence = await read_evidence(addresses, since, until) if traces else Evidence()
    for fault in evidence.unasked:
        say(f"understudy: requests that Envoys reported there are missing: {fault}", err=True)
    return state.spec.record, evidence


def _imported(targets: "Targets", path: Path | None) -> "Targets":
    from understudy.statesync.parsing.spec_yaml import BadYaml, read_document_file
    from understudy.telemetry.slo.openslo import OpenSloError, from_openslo

    if path is None:
        return targets
    try:
        return from_openslo(read_document_file(path), targets, where=str(path))
    except BadYaml as error:
        raise DeployError(f"--objectives {path}: {error}") from None
    except OpenSloError as error:
        raise DeployError(f"--objectives {error}") from None


def _exported(kind: str, targets: "Targets", pool: str, window: int) -> str:
    from understudy.telemetry.slo.openslo import to_openslo, to_prometheus, to_sloth

    if kind == "sloth":
        return to_sloth(targets, pool)
    if kind == "prometheus":
        return to_prometheus(targets, pool)
    return to_openslo(targets, pool, days=max(1, window // 86_400))
