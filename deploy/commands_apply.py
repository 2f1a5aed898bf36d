"""``understudy apply``, which tells a pool what it should be."""

import asyncio
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.options import EtcdOptions, etcd_options, examples, spec_file_option
from deploy.printable import say

if TYPE_CHECKING:
    from statesync.settings import EtcdSettings
    from statesync.spec import PoolSpec


@click.command(
    epilog=examples(
        "understudy apply -f pool.yaml",
        "understudy apply -f pool.yaml --etcd etcd-0:2379,etcd-1:2379,etcd-2:2379",
    )
)
@spec_file_option()
@etcd_options
def apply(spec_file: Path, etcd: EtcdOptions) -> None:
    """Check a pool spec and put it into etcd; a pool that is not there yet is made.

    A spec with any fault, or one that contradicts the running pool, changes nothing.
    """
    from deploy.layout import read_layout, state_directory
    from statesync.spec import load_spec

    spec = load_spec(spec_file)
    settings = etcd.settings(read_layout(state_directory(os.environ)))
    done, other = asyncio.run(_apply(settings, spec))
    say(f"pool {spec.pool}: {done}")
    if other:
        say(
            f"there is a pool {other} as well: if that was meant, 'understudy pools delete {spec.pool}' takes this one "
            "away again",
            err=True,
        )


async def _apply(etcd: "EtcdSettings", spec: "PoolSpec") -> tuple[str, str]:
    """What was done, and the pool of nearly the same name beside one that was made, '' for none."""
    from deploy.applying import apply_spec
    from deploy.reading import connect
    from statesync.pools import neighbour

    async with connect(etcd) as client:
        done = await apply_spec(client, spec)
        other = await neighbour(client, spec.pool) if done == "created" else ""
    return done, other if _letters(other) != _letters(spec.pool) else ""


def _letters(pool: str) -> str:
    """A name without its digits: cart-1 and cart-2 are no misspellings of each other."""
    return re.sub(r"\d", "", pool)
