"""``understudy home``: where a pool with a mirror on a distant site is at home, and what moves it."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from understudy.deploy.cli.watching import watch_option
from understudy.deploy.common.operator import reason_option, this_operator, user_name
from understudy.deploy.common.options import (
    EtcdOptions,
    PoolLocation,
    etcd_options,
    examples,
    locate_pool,
    output_option,
    pool_option,
    require_name,
    show,
    shown_option,
)
from understudy.deploy.common.peer_option import peer_of, peer_option
from understudy.statesync.etcd.settings import EtcdSettings

if TYPE_CHECKING:
    from understudy.deploy.mirror.records import Side
    from understudy.deploy.mirror.switch import Moved
    from understudy.statesync.audit.log import OperatorLog


class _Peer(NamedTuple):
    name: str
    etcd: EtcdSettings


class _Pair(NamedTuple):
    """The side of ``--etcd``, the peer if it was given, and the audit logs of both."""

    side: "Side"
    peer: "Side | None"
    log: "OperatorLog"
    peer_log: "OperatorLog | None"


@asynccontextmanager
async def _connected(place: PoolLocation, peer: _Peer | None, command: str, reason: str) -> AsyncIterator[_Pair]:
    from understudy.deploy.inspect.query import connect
    from understudy.deploy.mirror.records import Side
    from understudy.statesync.audit.log import OperatorLog
    from understudy.statesync.pool.keys import PoolKeys

    keys = PoolKeys(place.pool)
    async with connect(place.etcd) as client:
        at = await Side("this side", client, keys).home()
        side = Side(at.record.site if at is not None else "this side", client, keys)
        log = OperatorLog(client, keys, this_operator(command, place.etcd), reason)
        if peer is None:
            yield _Pair(side, None, log, None)
            return
        async with connect(peer.etcd) as other:
            peer_log = OperatorLog(other, keys, this_operator(command, peer.etcd), reason)
            yield _Pair(side, Side(peer.name, other, keys), log, peer_log)


def _run(
    place: PoolLocation, peer: _Peer | None, command: str, reason: str, work: Callable[[_Pair], Awaitable[Any]]
) -> Any:  # noqa: ANN401 - whatever the work returns
    async def run() -> Any:  # noqa: ANN401 - as above
        async with _connected(place, peer, command, reason) as pair:
            return await work(pair)

    return asyncio.run(run())


def _peer(given: str, etcd: EtcdOptions, place: PoolLocation) -> _Peer | None:
    """The peer of ``--peer``, or of the local pool; None if there is none."""
    if given:
        return _Peer(*peer_of(given, etcd))
    distant = place.layout.distant if place.layout is not None else None
    return _Peer(distant.peer, EtcdSettings(distant.peer_etcd)) if distant else None


def _need_reason(*, force: bool, reason: str) -> None:
    if force and not reason:
        raise click.UsageError("--force needs --reason: the audit log shows why the refusal was overruled")


def _say(line: str) -> None:
    click.echo(line, err=True)


@click.group(
    epilog=examples(
        "understudy home status --pool cart --etcd etcd-west:2379 --peer east=etcd-east:2379",
        "understudy home move --to west --pool cart --etcd etcd-east:2379 --peer west=etcd-west:2379",
        "understudy home take-over --pool cart --etcd etcd-west:2379 --yes --reason 'east burns'",
    )
)
def home() -> None:
    """Show and move the home of a pool that has a mirror in the etcd of a distant site.

    A pool without a pair is at home in its only etcd, and needs none of these commands.
    """


@home.command(epilog=examples("understudy home status --pool cart --etcd etcd-west:2379 --peer east=etcd-east:2379"))
@watch_option
@peer_option(required=False)
@pool_option(required=False)
@etcd_options
@output_option
def status(peer: str, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Show which side is the home, how far the mirror is behind, and what would be lost if the home died now.

    Exit code 1: something is degraded.
    """
    from understudy.deploy.mirror.status import home_view, lines_of

    place = locate_pool(etcd, pool)
    view = _run(place, _peer(peer, etcd, place), "home status", "", lambda pair: home_view(pair.side, pair.peer))
    show(output, view, lambda view: "\n".join(lines_of(view)))
    if view["degraded"]:
        sys.exit(1)


@home.command(epilog=examples("understudy home pair --site east --mirror west --pool cart --etcd etcd-east:2379"))
@click.option("--site", required=True, help="Name of the site of --etcd, which is the home.")
@click.option("--mirror", required=True, metavar="SITE", help="Name of the site that gets the mirror.")
@shown_option(
    "--on-peer-lost",
    type=click.Choice(["continue", "stop"]),
    default="continue",
    help="What the home does while the other site is silent: go on until an outage of its own, or stop after 30 s.",
)
@reason_option
@pool_option(required=False)
@etcd_options
@output_option
def pair(
    site: str, mirror: str, on_peer_lost: str, reason: str, pool: str | None, etcd: EtcdOptions, output: str
) -> None:
    """Make the pool in --etcd the home of a pair. Then run 'understudy mirror' on both sides.

    All members must have this release. Members that start later serve only when 'understudy mirror' of this side runs
    and says that it is the home. Given again, it changes --on-peer-lost.
    """
    from understudy.deploy.mirror.records import Side
    from understudy.deploy.mirror.switch import pair as make_pair
    from understudy.statesync.pool.home import PeerLost

    for option, name in (("--site", site), ("--mirror", mirror)):
        require_name(option, name)
    if site == mirror:
        raise click.UsageError("--site and --mirror are two sites")

    async def work(found: _Pair) -> dict[str, Any]:
        side = Side(site, found.side.client, found.side.keys)
        at = await make_pair(side, mirror, PeerLost(on_peer_lost), found.log, user_name())
        return {"pool": side.keys.pool, "home": at.record.site, "mirror": mirror, "on_peer_lost": on_peer_lost}

    view = _run(locate_pool(etcd, pool), None, "home pair", reason, work)
    show(
        output,
        view,
        lambda view: f"pool {view['pool']} is at home on {view['home']}, with a mirror on {view['mirror']}",
    )


@home.command(epilog=examples("understudy home unpair --pool cart --etcd etcd-east:2379"))
@reason_option
@pool_option(required=False)
@etcd_options
@output_option
def unpair(reason: str, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """End the pair, at its home: the pool serves on without a mirror. Stop 'understudy mirror' on both sides first."""
    from understudy.deploy.mirror.switch import unpair as end_pair

    place = locate_pool(etcd, pool)
    _run(place, None, "home unpair", reason, lambda pair: end_pair(pair.side, pair.log))
    show(output, {"pool": place.pool}, lambda view: f"pool {view['pool']} has no mirror any more")


@home.command(
    epilog=examples("understudy home move --to west --pool cart --etcd etcd-east:2379 --peer west=etcd-west:2379")
)
@click.option("--to", "target", required=True, metavar="SITE", help="The site that becomes the home.")
@click.option("--force", is_flag=True, help="Move although the mirror is far behind. Needs --reason.")
@peer_option(required=False)
@reason_option
@pool_option(required=False)
@etcd_options
@output_option
def move(target: str, force: bool, peer: str, reason: str, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Move the home to the other site. No acknowledged write is lost; calls are refused meanwhile.

    The old home takes no calls any more and saves what is in memory. Then it is fenced, and the mirror gets the rest.
    Refused if the mirror is incomplete, or more than 5 s behind. If the command is interrupted, give it again.
    """
    from understudy.deploy.common.errors import DeployError
    from understudy.deploy.mirror.switch import Move

    _need_reason(force=force, reason=reason)

    async def work(pair: _Pair) -> "Moved":
        assert pair.peer is not None and pair.peer_log is not None  # noqa: S101, PT018 - checked below
        if target == pair.peer.name:
            source, sink, logs = pair.side, pair.peer, (pair.log, pair.peer_log)
        elif target == pair.side.name:
            source, sink, logs = pair.peer, pair.side, (pair.peer_log, pair.log)
        else:
            raise DeployError(f"--to {target}: the sites are {pair.side.name} and {pair.peer.name}")
        return await Move(source, sink, logs, user_name(), _say).run(force=force)

    place = locate_pool(etcd, pool)
    other = _peer(peer, etcd, place)
    if other is None:
        raise click.UsageError("--peer is missing: both sites must be asked")
    moved = _run(place, other, "home move", reason, work)
    show(output, _moved_view(moved), _moved_line)


@home.command(
    "take-over",
    epilog=examples(
        "understudy home take-over --pool cart --etcd etcd-west:2379",
        "understudy home take-over --pool cart --etcd etcd-west:2379 --yes --reason 'east burns'",
    ),
)
@click.option("--yes", is_flag=True, help="Take over. Without it only the estimate is shown. Needs --reason.")
@click.option(
    "--force",
    is_flag=True,
    help="Take over although the mirror is incomplete, or the old home answers. Needs --reason.",
)
@peer_option(required=False)
@reason_option
@pool_option(required=False)
@etcd_options
@output_option
def take_over(yes: bool, force: bool, peer: str, reason: str, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Make the mirror in --etcd the home, without the old home. What the mirror does not have is lost.

    With --yes you say that the old home is off, or cut off from its clients: nothing else keeps both from serving while
    neither reaches the other. When the old home is back, its 'understudy mirror' fences it, keeps what was lost in a
    file and counts it. Without --yes nothing is changed, and the exit code is 1.
    """
    from understudy.deploy.mirror.switch import estimate
    from understudy.deploy.mirror.switch import take_over as take

    if (yes or force) and not reason:
        raise click.UsageError("--yes and --force need --reason, for the audit log")

    async def work(pair: _Pair) -> "Moved | None":
        _, mirrored, loss = await estimate(pair.side)
        _say(
            f"at most {loss.writes} writes of the last {loss.seconds:.1f} s would be lost "
            f"(the mirror has revision {mirrored.revision}; in the last minute at most {mirrored.rate} writes a second)"
        )
        if not yes:
            return None
        return await take(pair.side, pair.peer, pair.log, user_name(), _say, force=force, estimated=loss)

    place = locate_pool(etcd, pool)
    moved = _run(place, _peer(peer, etcd, place), "home take-over", reason, work)
    if moved is None:
        _say("nothing was changed: give --yes and --reason to take over")
        sys.exit(1)
    show(output, _moved_view(moved), _moved_line)


@home.command(epilog=examples("understudy home confirm --force --reason 'west is gone for good' --etcd etcd-east:2379"))
@click.option("--force", is_flag=True, required=True, help="Confirm without the peer. Needs --reason.")
@reason_option
@pool_option(required=False)
@etcd_options
@output_option
def confirm(force: bool, reason: str, pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Say that --etcd is the home, when its members wait for a word of the other site, which does not answer.

    First make sure that the other site has not taken over. From then on the home goes on without the other site
    (--on-peer-lost continue).
    """
    from understudy.deploy.mirror.switch import confirm as say_so

    _need_reason(force=force, reason=reason)
    place = locate_pool(etcd, pool)
    at = _run(place, None, "home confirm", reason, lambda pair: say_so(pair.side, pair.log, user_name(), reason))
    view = {"pool": place.pool, "home": at.record.site, "term": at.record.term}
    show(output, view, lambda view: f"site {view['home']} is the home of pool {view['pool']}, in term {view['term']}")


def _moved_view(moved: "Moved") -> dict[str, Any]:
    import msgspec

    view: dict[str, Any] = msgspec.to_builtins(moved)
    return view


def _moved_line(view: dict[str, Any]) -> str:
    lost = view["lost"]
    ending = f"; at most {lost['writes']} writes of {lost['seconds']:.1f} s are lost" if lost else "; nothing is lost"
    return (
        f"site {view['site']} is the home in term {view['term']}: {view['slots']} slots, "
        f"the mirror was {view['lag_before'] * 1000:.0f} ms behind, no side served for {view['seconds']:.1f} s{ending}"
    )
