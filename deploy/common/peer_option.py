"""The option ``--peer``: the other site of a pool whose home has a mirror, and its etcd."""

from collections.abc import Callable
from typing import TypeVar

import click

from understudy.deploy.common.etcd_clusters import read_clusters
from understudy.deploy.common.options import EtcdOptions
from understudy.statesync.etcd.settings import EtcdSettings

F = TypeVar("F", bound=Callable[..., object])


def peer_option(*, required: bool) -> Callable[[F], F]:
    """Add ``--peer``."""
    return click.option(
        "--peer",
        required=required,
        default=None if required else "",
        metavar="SITE=HOST:PORT,...",
        envvar="UNDERSTUDY_PEER",
        help="The other site and its etcd. SITE=FILE.yaml: with certificates and a login of its own."
        + ("" if required else " Default: that of the local pool; else it is not asked."),
    )


def peer_of(given: str, etcd: EtcdOptions, site: str = "") -> tuple[str, EtcdSettings]:
    """The peer's name, and how to reach its etcd. Raises ``UsageError``, ``DeployError``."""
    ((name, settings),) = read_clusters([given], etcd, "--peer").items()
    if name == site:
        raise click.UsageError(f"--peer {name}: it is the other site, and not --site")
    return name, settings
