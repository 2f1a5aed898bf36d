"""What an operator does with the home of a pool: makes a pair, moves the home, takes over, confirms.

A move loses nothing: the old home takes no calls any more, saves everything, is fenced, and the mirror has all of it
before it becomes the home. A take-over loses what the mirror does not have. In both the new home gets the next term.
Each step is safe to be the last one: a move that was interrupted goes on when the command is given again.
"""

import asyncio
import secrets
import time
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.mirror.guard import saved
from understudy.deploy.mirror.records import Side, highest_epoch, set_home, take_slots
from understudy.statesync.audit.entry import Act
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.pool.home import (
    CONFIRM_WITHIN,
    EPOCHS_SKIPPED,
    STOP_MARGIN,
    UNKNOWN,
    Home,
    Loss,
    Mirrored,
    PeerLost,
    Role,
    Tail,
    loss_now,
)
from understudy.statesync.pool.state import At

LAG_MOST = 5.0
"""Seconds of lag above which a move is refused, since calls are refused meanwhile."""
SAVE_TIMEOUT = 30.0
APPLY_TIMEOUT = 60.0
POLL_INTERVAL = 0.1
Say = Callable[[str], None]


class RefusedError(NegativeAnswer):
    """The act is refused. Nothing was changed; ``--force`` overrules it where the text says so."""


class Moved(msgspec.Struct, frozen=True):
    """What a move or a take-over did.

    ``lag_before`` is that of the mirror when it began, and ``seconds`` how long no side served. ``lost`` is the
    estimate of a take-over.
    """

    site: str
    term: int
    slots: int
    lag_before: float
    seconds: float
    lost: Loss | None = None


async def pair(side: Side, peer_name: str, on_peer_lost: PeerLost, log: OperatorLog, by: str) -> At[Home]:
    """Make ``side`` the home of a pool, with a mirror on another site. Raises :class:`RefusedError`, ``EtcdError``."""
    await side.slots()
    at = await side.home()
    if at is not None and (at.record.peer, at.record.role) != (peer_name, Role.HOME):
        raise RefusedError(
            f"site {at.record.site} is the {at.record.role} of a pair with site {at.record.peer}: "
            "'understudy home unpair' ends it"
        )
    home = Home(side.name, Role.HOME, peer_name, 1, time.time(), by)
    home = replace(at.record if at is not None else home, on_peer_lost=on_peer_lost)
    return await set_home(side, at, home, log, Act("home pair", f"site {side.name}, mirror on site {peer_name}"))


async def unpair(side: Side, log: OperatorLog) -> None:
    """End a pair at its home, which then is an ordinary pool. Raises :class:`RefusedError`, ``EtcdError``."""
    at = await side.home()
    if at is None or at.record.role is not Role.HOME:
        raise RefusedError(f"site {side.name} is not the home of pool {side.keys.pool!r}")
    await log.delete(Act("home unpair", f"site {side.name}"), side.keys.home)


async def confirm(side: Side, log: OperatorLog, by: str, why: str) -> At[Home]:
    """An operator says that ``side`` is the home, since its peer cannot: it goes on without the peer.

    Also takes back a move that did not get beyond the closing of this home.
    """
    at = await side.home()
    if at is None or at.record.role not in (Role.HOME, Role.CLOSING):
        role = at.record.role if at is not None else "not part of a pair"
        raise RefusedError(f"site {side.name} is {role}: only a home can be confirmed")
    home = replace(at.record, role=Role.HOME, on_peer_lost=PeerLost.CONTINUE, since=time.time(), by=by, why=why)
    return await set_home(side, at, home, log, Act("home confirm", f"site {side.name} is the home"))


class Move:
    """Moves the home from ``source`` to ``target``, which is its mirror. ``say`` gets a line for each step."""

    def __init__(self, source: Side, target: Side, logs: tuple[OperatorLog, OperatorLog], by: str, say: Say) -> None:
        """``logs``: the audit logs of the two sides."""
        self._source = source
        self._target = target
        self._logs = logs
        self._by = by
        self._say = say
        self._boot = f"moved-{secrets.token_hex(8)}"

    async def run(self, *, force: bool) -> Moved:
        """Move. Raises :class:`RefusedError`, ``HomeChanged``, ``EtcdError``.

        If etcd of the old home does not have everything in time, the old home serves on.
        """
        source, target = await self._both()
        mirrored = await self._target.mirrored()
        lag = loss_now(mirrored, time.time()).seconds
        if source.record.role is not Role.FENCED:
            self._refuse(mirrored, lag, force=force)
        began = time.monotonic()
        slots, last = await self._source.slots(), mirrored.revision
        if target.record.role is Role.MIRROR:
            source = await self._close(source)
            last = await self._fence(source, slots)
            await self._await_mirror(last)
        self._say(f"site {target.record.site} has everything")
        epoch = 1 + max(await highest_epoch(self._source), await highest_epoch(self._target))
        opened = await open_home(
            self._target, target, self._logs[1], epoch=epoch, by=self._by, boot=self._boot, applied=last, planned=True
        )
        return Moved(target.record.site, opened.record.term, slots, lag, time.monotonic() - began)

    async def _both(self) -> tuple[At[Home], At[Home]]:
        source, target = await self._source.home(), await self._target.home()
        if source is None or source.record.role not in (Role.HOME, Role.CLOSING, Role.FENCED):
            raise RefusedError(f"site {self._source.name} is not the home of pool {self._source.keys.pool!r}")
        if source.record.role is Role.FENCED and source.record.tail is not Tail.NONE:
            raise RefusedError(f"site {self._source.name} was fenced by a take-over: it is not the home")
        if target is None or target.record.role not in (Role.MIRROR, Role.OPENING):
            raise RefusedError(f"site {self._target.name} is no mirror: run 'understudy mirror' there")
        if target.record.role is Role.OPENING and not (target.record.planned and source.record.role is Role.FENCED):
            raise RefusedError(f"site {self._target.name} is taking over: give 'understudy home take-over' again")
        return source, target

    @staticmethod
    def _refuse(mirrored: Mirrored, lag: float, *, force: bool) -> None:
        if not mirrored.whole:
            raise RefusedError("the mirror is not complete yet: wait until 'understudy home status' says that it is")
        if lag > LAG_MOST and not force:
            raise RefusedError(
                f"the mirror is {lag:.1f} s behind (limit {LAG_MOST:g} s), and the pool takes no calls until it has "
                "everything: look whether 'understudy mirror' runs on both sides, or give --force"
            )

    async def _close(self, at: At[Home]) -> At[Home]:
        """Take no calls any more, and wait until everything is saved. If that fails, the old home serves on."""
        if at.record.role is Role.FENCED:
            return at
        site = at.record.site
        if at.record.role is Role.HOME:
            closing = replace(at.record, role=Role.CLOSING, since=time.time(), by=self._by)
            act = Act(f"home move to {self._target.name}", f"site {site} takes no calls any more")
            at = await set_home(self._source, at, closing, self._logs[0], act)
        self._say(f"site {site} takes no calls any more")
        left = await saved(self._source, SAVE_TIMEOUT)
        if left:
            home = replace(at.record, role=Role.HOME, since=time.time())
            act = Act(f"home move to {self._target.name}", f"given up: site {site} serves on")
            await set_home(self._source, at, home, self._logs[0], act)
            raise RefusedError(
                f"{len(left)} slots have writes in memory that etcd did not get within {SAVE_TIMEOUT:g} s: "
                f"site {site} serves on. Look at 'understudy status'"
            )
        return at

    async def _fence(self, at: At[Home], slots: int) -> int:
        """Fence the old home; returns the revision of its last change."""
        if at.record.role is not Role.FENCED:
            fenced = replace(at.record, role=Role.FENCED, since=time.time(), by=self._by)
            act = Act(f"home move to {self._target.name}", f"site {at.record.site} is fenced")
            at = await set_home(self._source, at, fenced, self._logs[0], act)
        last = await take_slots(self._source, at, slots, boot=self._boot, epoch=1, now=time.time())
        self._say(f"site {at.record.site} is fenced: {slots} slots at revision {last}")
        return last

    async def _await_mirror(self, last: int) -> None:
        give_up = time.monotonic() + APPLY_TIMEOUT
        while not ((found := await self._target.mirrored()).whole and found.revision >= last):
            if time.monotonic() > give_up:
                raise DeployError(
                    f"the mirror has not applied revision {last} within {APPLY_TIMEOUT:g} s, it is at "
                    f"{found.revision}: no side serves now. Let 'understudy mirror' run there, and give the "
                    "command again"
                )
            await asyncio.sleep(POLL_INTERVAL)


async def open_home(
    target: Side,
    at: At[Home],
    log: OperatorLog,
    *,
    epoch: int,
    by: str,
    boot: str,
    applied: int,
    planned: bool,
    wait: float = 0.0,
) -> At[Home]:
    """Make a mirror the home of the next term. From its first step on the mirror copies nothing any more.

    ``wait``: seconds between the first step, which old homes see, and the last. Raises ``HomeChanged``, ``EtcdError``.
    """
    site, now = at.record.site, time.time()
    if at.record.role is not Role.OPENING:
        at = await _begin(target, at, log, by, planned=planned)
    await asyncio.sleep(wait)
    await take_slots(target, at, await target.slots(), boot=boot, epoch=epoch, now=now)
    home = replace(
        at.record,
        role=Role.HOME,
        since=time.time(),
        applied=applied,
        planned=planned,
        tail=Tail.NONE,
        file="",
        lost_writes=0 if planned else UNKNOWN,
        lost_sessions=0,
    )
    detail = f"site {site} is the home of term {home.term}, with revision {applied} of site {home.peer}"
    return await set_home(target, at, home, log, Act("home move" if planned else "home take-over", detail))


async def estimate(target: Side) -> tuple[At[Home], Mirrored, Loss]:
    """What a take-over of ``target`` would lose now. Raises :class:`RefusedError` unless it is a mirror."""
    at = await target.home()
    if at is None or at.record.role not in (Role.MIRROR, Role.OPENING):
        role = at.record.role if at is not None else "not part of a pair"
        raise RefusedError(f"site {target.name} is {role}: only a mirror can take over")
    mirrored = await target.mirrored()
    return at, mirrored, loss_now(mirrored, time.time())


async def take_over(
    target: Side, source: Side | None, log: OperatorLog, by: str, say: Say, *, force: bool, estimated: Loss
) -> Moved:
    """Make a mirror the home without the old one. Raises :class:`RefusedError`, ``HomeChanged``, ``EtcdError``.

    ``source`` is asked whether it is still there, if it is given.
    """
    at, mirrored, _ = await estimate(target)
    if not force:
        if not mirrored.whole:
            raise RefusedError(
                "the mirror was being copied anew, so it has sessions of different moments side by side, and some may "
                "be missing: --force takes over all the same"
            )
        if source is not None and await _serves(source):
            raise RefusedError(
                f"etcd of site {source.name} answers, and it is the home: 'understudy home move' loses nothing. "
                "If its clients cannot reach it, make sure that it is cut off from them, and give --force"
            )
    began = time.monotonic()
    slots = await target.slots()
    wait = CONFIRM_WITHIN + STOP_MARGIN if at.record.on_peer_lost is PeerLost.STOP else 0.0
    if wait:
        say(f"waiting for {wait:g} s: by then site {at.record.peer} has stopped, since nobody confirms it")
    opening = at if at.record.role is Role.OPENING else await _begin(target, at, log, by, planned=False)
    mirrored = await target.mirrored()  # read again: now nothing more is copied
    opened = await open_home(
        target,
        opening,
        log,
        epoch=max(mirrored.epoch, await highest_epoch(target)) + EPOCHS_SKIPPED,
        by=by,
        boot=f"taken-over-{secrets.token_hex(8)}",
        applied=mirrored.revision,
        planned=False,
        wait=wait,
    )
    seconds = time.monotonic() - began
    return Moved(target.name, opened.record.term, slots, estimated.seconds, seconds, estimated)


async def _begin(target: Side, at: At[Home], log: OperatorLog, by: str, *, planned: bool) -> At[Home]:
    """The first step of the next term: this side is no mirror any more, and the old home sees that it is outranked."""
    term = at.record.term + 1
    opening = replace(at.record, role=Role.OPENING, term=term, since=time.time(), by=by, why="", planned=planned)
    return await set_home(target, at, opening, log, Act("home opens", f"site {at.record.site}, term {term}"))


async def _serves(source: Side) -> bool:
    """Whether a side answers and says that it is the home."""
    try:
        at = await source.home(timeout=2.0)
    except EtcdError:
        return False
    return at is not None and at.record.role in (Role.HOME, Role.CLOSING)
