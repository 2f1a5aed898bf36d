"""``understudy apply``: writes a pool spec to etcd."""

import asyncio
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from understudy.deploy.common.operator import reason_option, this_operator
from understudy.deploy.common.options import EtcdOptions, etcd_options, examples, output_option, show, spec_file_option
from understudy.deploy.common.printable import say

if TYPE_CHECKING:
    from understudy.statesync.etcd.client import EtcdClient
    from understudy.statesync.etcd.settings import EtcdSettings
    from understudy.statesync.pool.spec import PoolSpec


_Before = Callable[[str, list[dict[str, Any]]], None]


@click.command(
    epilog=examples(
        "understudy apply -f pool.yaml",
        "understudy apply -f pool.yaml --dry-run",
        "understudy apply -f pool.yaml --reason 'more sessions for the sale'",
        "understudy apply -f pool.yaml --etcd etcd-0:2379,etcd-1:2379,etcd-2:2379",
    )
)
@spec_file_option()
@click.option(
    "--dry-run", is_flag=True, help="Change nothing; print each field that would change, and what would move."
)
@reason_option
@etcd_options
@output_option
def apply(spec_file: Path, dry_run: bool, reason: str, etcd: EtcdOptions, output: str) -> None:
    """Validate a pool spec and write it to etcd. The pool is created if it does not exist.

    A spec with an error, or one that contradicts the running pool, changes nothing.

    Exit codes with --dry-run are those of 'kubectl diff': 0 nothing would change, 1 something would change, 2 the spec
    would be refused.
    """
    from understudy.deploy.common.layout import read_layout, state_directory
    from understudy.statesync.pool.spec_reader import load_spec

    spec = load_spec(spec_file)
    settings = etcd.settings(read_layout(state_directory(os.environ)))
    before = _announce if output == "table" else _say_nothing
    view, other = asyncio.run(_apply(settings, spec, reason, before, dry_run=dry_run))
    if output == "table":
        _print_result(view)
    else:
        show(output, view, str)
    if other:
        say(_similar_name(spec.pool, other, dry_run=dry_run), err=True)
    if dry_run and view["result"] != "unchanged":
        raise SystemExit(1)


async def _apply(
    etcd: "EtcdSettings", spec: "PoolSpec", reason: str, before: _Before, *, dry_run: bool
) -> tuple[dict[str, Any], str]:
    """The result, and for a new pool the name of a similar pool that exists, '' for none.

    ``before`` is called with the effects before anything is written.
    """
    from understudy.deploy.data.apply import apply_spec, compare_spec
    from understudy.deploy.inspect.query import connect
    from understudy.statesync.pool.pools import neighbour

    async with connect(etcd) as client:
        result, fields = await compare_spec(client, spec)
        effects = await _effects(client, spec, may_skip=not dry_run) if result == "changed" else []
        if not dry_run:
            before(spec.pool, effects)
            result = await apply_spec(client, spec, this_operator("apply", etcd), reason)
        other = await neighbour(client, spec.pool) if result == "created" else ""
    view = {"pool": spec.pool, "dry_run": dry_run, "result": result, "changes": [asdict(field) for field in fields]}
    view["effects"] = effects
    return view, other if _without_digits(other) != _without_digits(spec.pool) else ""


async def _effects(client: "EtcdClient", spec: "PoolSpec", *, may_skip: bool) -> list[dict[str, Any]]:
    """What the spec would do to the running pool, as data.

    ``may_skip``: it is left out for a user of etcd who may write the spec and not read the whole pool.
    """
    from understudy.deploy.inspect.query import read_pool
    from understudy.deploy.inspect.spec_effects import effects_of
    from understudy.statesync.etcd.client import Rejected
    from understudy.statesync.etcd.key_range import prefix_range
    from understudy.statesync.pool.groups import read_group
    from understudy.statesync.pool.keys import PoolKeys

    try:
        state, _ = await read_pool(client, spec.pool)
        sessions = await client.range(prefix_range(PoolKeys(spec.pool).sessions), limit=1, keys_only=True)
        group = await read_group(client, spec)
    except Rejected:
        if not may_skip:
            raise
        return []
    return [asdict(effect) for effect in effects_of(state, spec, sessions.count, time.time(), group)]


def _without_digits(pool: str) -> str:
    """A name without its digits. The names cart-1 and cart-2 are similar on purpose, not by mistake."""
    return re.sub(r"\d", "", pool)


def _similar_name(pool: str, other: str, *, dry_run: bool) -> str:
    if dry_run:
        return f"there is a pool {other}: did you mean that one?"
    return f"there is also a pool {other}: if you meant that one, delete this one: 'understudy pools delete {pool}'"


def _announce(pool: str, effects: list[dict[str, Any]]) -> None:
    """Print what the spec does to the running pool."""
    if effects:
        say(f"pool {pool}: by the members of now, this spec has these effects:")
    for effect in effects:
        say(f"  {effect['kind']}: {effect['detail']}")


def _say_nothing(pool: str, effects: list[dict[str, Any]]) -> None:
    """For JSON, which has the effects in the result."""


_DRY_RUN_RESULTS = {
    "created": "would be created with these values and defaults for the rest:",
    "changed": "would be changed:",
    "unchanged": "would not change",
}


def _print_result(view: dict[str, Any]) -> None:
    """Print one line, and with ``--dry-run`` one more for each field that would change."""
    if not view["dry_run"]:
        say(f"pool {view['pool']}: {view['result']}")
        return
    created = view["result"] == "created"
    result = _DRY_RUN_RESULTS[view["result"]] if view["changes"] or not created else "would be created with defaults"
    say(f"pool {view['pool']}: {result}")
    for change in view["changes"]:
        before = "" if created else f"{_value(change['before'])} -> "
        say(f"  {change['field']}: {before}{_value(change['after'])}")
    for effect in view["effects"]:
        say(f"  {effect['kind']}: {effect['detail']}")


def _value(value: object) -> str:
    return "not set" if value is None else json.dumps(value)
