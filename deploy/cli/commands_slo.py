"""The command ``slo``: checks the traces of real failovers and drills against the pool's objectives."""

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.deploy.cli.every_pool import pools_option
from understudy.deploy.cli.watching import watch_option
from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import (
    EtcdOptions,
    etcd_options,
    examples,
    list_output_option,
    locate_pool,
    show,
    shown_option,
)
from understudy.deploy.common.printable import say
from understudy.telemetry.timing.duration import parse_duration

if TYPE_CHECKING:
    from understudy.deploy.inspect.review_inputs import Evidence
    from understudy.statesync.pool.spec import PoolSpec

_LONGEST = 366 * 86_400
MISSED_EXIT_CODE, NO_EVIDENCE_EXIT_CODE = 1, 3


def _window(_: click.Context, parameter: click.Parameter, value: str) -> int:
    """Option callback: a time like ``30d``, in seconds."""
    seconds = parse_duration(value, ("m", "h", "d", "w")) or 0.0
    if not 1 <= seconds <= _LONGEST:
        raise click.BadParameter(
            f"{value!r} is not a duration of at most a year; examples: 90m, 24h, 30d, 4w", param=parameter
        )
    return int(seconds)


@click.command(
    epilog=examples(
        "understudy slo",
        "understudy slo --window 7d --compare --html review.html",
        "understudy slo --statement --window 90d",
        "understudy slo --from traces.json --spec pool.yaml -o json",
        "understudy slo --from tempo=http://127.0.0.1:3200 --pool cart",
    )
)
@shown_option("--window", default="30d", callback=_window, metavar="TIME", help="Time to look back, in m, h, d or w.")
@click.option(
    "--from",
    "source",
    help="Source of traces: a file, a directory, jaeger=URL or tempo=URL. Default: the control servers.",
)
@click.option(
    "--spec",
    "spec_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Pool spec to take pool and objectives from. Default: the spec in etcd.",
)
@click.option("--compare", is_flag=True, help="Also show the results of the window before.")
@click.option(
    "--statement",
    is_flag=True,
    help="Show, for each kind of failure, what happens and what drills measured. Exit code 0.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the review as an HTML page. Default: none.",
)
@watch_option
@etcd_options
@list_output_option
@pools_option(source="--from", spec_file="--spec", html="--html")
def slo(
    window: int,
    source: str | None,
    spec_file: Path | None,
    compare: bool,
    statement: bool,
    html: Path | None,
    pool: str | None,
    etcd: EtcdOptions,
    output: str,
) -> None:
    """Check failovers against the pool's objectives.

    Exit codes: 0 the evidence shows that all objectives are met, 1 an objective is missed, 3 there is too little
    evidence.
    """
    from understudy.deploy.inspect.review_inputs import reviews, targets_of
    from understudy.telemetry.slo.model import State
    from understudy.telemetry.slo.page import page
    from understudy.telemetry.slo.view import Drawing, as_json

    end = time.time_ns()
    start = end - window * 10**9
    spec, evidence, degraded = _gather(spec_file, source, pool, etcd, 2 * start - end, end)
    targets = targets_of(spec.objectives)
    now, before = reviews(evidence, targets, pool=spec.pool, slots=spec.slots, start_ns=start, end_ns=end)
    if html:
        try:
            html.write_text(page(now, before, degraded), encoding="utf-8")
        except OSError as error:
            raise DeployError(f"--html {html}: cannot be written: {error.strerror}") from None
    if statement:
        from understudy.telemetry.slo import statement as of_drills

        show(
            output,
            of_drills.as_json(now, degraded),
            lambda _: of_drills.StatementDrawing(now, degraded),
            lambda view: [row["name"] for row in view["failures"]],
        )
        return
    earlier = before if compare else None
    show(
        output,
        as_json(now, earlier),
        lambda _: Drawing(now, earlier),
        lambda view: [figure["key"] for figure in view["figures"]],
    )
    if now.state is not State.MET:
        raise SystemExit(MISSED_EXIT_CODE if now.state is State.MISSED else NO_EVIDENCE_EXIT_CODE)


def _gather(
    spec_file: Path | None,
    source: str | None,
    pool: str | None,
    etcd: EtcdOptions,
    since: int,
    until: int,
) -> "tuple[PoolSpec, Evidence, list[str] | None]":
    """The pool's spec, what is known of the window, and what is degraded now; None with evidence from elsewhere."""
    from understudy.deploy.inspect.review_inputs import evidence_from
    from understudy.statesync.pool.spec_reader import load_spec

    spec = None
    if spec_file is not None:
        spec = load_spec(spec_file)
        if pool not in (None, spec.pool) and "UNDERSTUDY_POOL" not in os.environ:
            raise DeployError(f"--pool {pool}: the spec in {spec_file} is for pool {spec.pool!r}")
        pool = spec.pool
    if not source:
        read, found, degraded = asyncio.run(_ask(etcd, pool, since, until, traces=True))
        return spec or read, found, degraded
    found, refused = evidence_from(source, since, until)
    if refused:
        say(f"understudy: {refused}", err=True)
    return spec or asyncio.run(_ask(etcd, pool, since, until, traces=False))[0], found, None


async def _ask(
    etcd: EtcdOptions, pool: str | None, since: int, until: int, *, traces: bool
) -> "tuple[PoolSpec, Evidence, list[str]]":
    from understudy.deploy.inspect.present_state import read_degraded
    from understudy.deploy.inspect.query import connect, read_pool, require_pool
    from understudy.deploy.inspect.review_inputs import Evidence, read_evidence

    place = locate_pool(etcd, pool)
    async with connect(place.etcd) as client:
        state, revision = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        if state.spec is None:
            raise DeployError(f"pool {place.pool!r} has no spec")
        degraded = await read_degraded(client, state, revision) if traces else []
    addresses = [at.record.http for at in state.controls.values()]
    evidence = await read_evidence(addresses, since, until) if traces else Evidence()
    for fault in evidence.unasked:
        say(f"understudy: the requests that Envoys reported to this control server are missing: {fault}", err=True)
    return state.spec.record, evidence, degraded
