"""``understudy apply``, which tells a pool what it should be."""

import asyncio
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from understudy.deploy.common.options import EtcdOptions, etcd_options, examples, output_option, show, spec_file_option
from understudy.deploy.common.printable import say

if TYPE_CHECKING:
    from understudy.statesync.etcd.settings import EtcdSettings
    from understudy.statesync.pool.spec import PoolSpec


@click.command(
    epilog=examples(
        "understudy apply -f pool.yaml",
        "understudy apply -f pool.yaml --dry-run",
        "understudy apply -f pool.yaml --etcd etcd-0:2379,etcd-1:2379,etcd-2:2379",
    )
)
@spec_file_option()
@click.option("--dry-run", is_flag=True, help="Change nothing; show what would change, field by field.")
@etcd_options
@output_option
def apply(spec_file: Path, dry_run: bool, etcd: EtcdOptions, output: str) -> None:
    """Check a pool spec and put it into etcd; a pool that is not there yet is made.

    A spec with any fault, or one that contradicts the running pool, changes nothing. With --dry-run the exit code is
    that of 'kubectl diff': 0 when nothing would change, 1 when something would, 2 when the spec would be refused.
    """
    from understudy.deploy.common.layout import read_layout, state_directory
    from understudy.statesync.pool.spec_reader import load_spec

    spec = load_spec(spec_file)
    settings = etcd.settings(read_layout(state_directory(os.environ)))
    view, other = asyncio.run(_apply(settings, spec, dry_run=dry_run))
    if output == "table":
        _tell(view)
    else:
        show(output, view, str)
    if other:
        say(_question(spec.pool, other, dry_run=dry_run), err=True)
    if dry_run and view["result"] != "unchanged":
        raise SystemExit(1)


async def _apply(etcd: "EtcdSettings", spec: "PoolSpec", *, dry_run: bool) -> tuple[dict[str, Any], str]:
    """What was or would be done, and the pool of nearly the same name beside one that is made, '' for none."""
    from understudy.deploy.data.apply import apply_spec, compare_spec
    from understudy.deploy.inspect.query import connect
    from understudy.statesync.pool.pools import neighbour

    async with connect(etcd) as client:
        result, fields = await compare_spec(client, spec)
        if not dry_run:
            result = await apply_spec(client, spec)
        other = await neighbour(client, spec.pool) if result == "created" else ""
    view = {"pool": spec.pool, "dry_run": dry_run, "result": result, "changes": [asdict(field) for field in fields]}
    return view, other if _letters(other) != _letters(spec.pool) else ""


def _letters(pool: str) -> str:
    """A name without its digits: cart-1 and cart-2 are no misspellings of each other."""
    return re.sub(r"\d", "", pool)


def _question(pool: str, other: str, *, dry_run: bool) -> str:
    if dry_run:
        return f"there is a pool {other}: was that meant?"
    return f"there is a pool {other} as well: if that was meant, delete this one with 'understudy pools delete {pool}'"


_WOULD_BE = {
    "created": "would be created with these values, and defaults otherwise:",
    "changed": "would be changed:",
    "unchanged": "would stay as it is",
}


def _tell(view: dict[str, Any]) -> None:
    """One line, and with ``--dry-run`` one more for each field that would change."""
    if not view["dry_run"]:
        say(f"pool {view['pool']}: {view['result']}")
        return
    made = view["result"] == "created"
    said = _WOULD_BE[view["result"]] if view["changes"] or not made else "would be created with defaults"
    say(f"pool {view['pool']}: {said}")
    for change in view["changes"]:
        before = "" if made else f"{_shown(change['before'])} -> "
        say(f"  {change['field']}: {before}{_shown(change['after'])}")


def _shown(value: object) -> str:
    return "not set" if value is None else json.dumps(value)
