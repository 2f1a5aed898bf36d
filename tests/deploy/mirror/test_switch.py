"""Moves and take-overs of the home: what is refused, what an interruption leaves, and who can write afterwards."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.deploy.mirror.pairs import SLOTS, Pair, paired
from tests.harness.etcd import EtcdServer
from tests.harness.waiting import free_port, stays, until
from understudy.deploy.mirror import switch
from understudy.deploy.mirror.guard import Guard
from understudy.deploy.mirror.records import HomeChanged, Side, take_slots
from understudy.deploy.mirror.switch import Move, Moved, RefusedError, confirm, estimate, take_over, unpair
from understudy.deploy.mirror.switch import pair as make_pair
from understudy.deploy.mirror.tail import write_tail
from understudy.statesync.etcd.client import EtcdClient, ModRevision, Put
from understudy.statesync.pool.home import EPOCHS_SKIPPED, Home, Loss, Mirrored, PeerLost, Role, Tail
from understudy.statesync.pool.records import Owner, SyncRecord
from understudy.statesync.replication.sync_set import Process

NOTHING = Loss(0, 0.0)


class Interrupted(Exception):
    """The command was killed."""


def silent(_: str) -> None:
    """Say nothing."""


def move_of(pair: Pair, say: switch.Say = silent) -> Move:
    return Move(pair.east, pair.west, (pair.log(pair.east), pair.log(pair.west)), "anna", say)


async def own(pair: Pair, side: Side, epoch: int, *, memory: bool = False) -> list[int]:
    """Give all slots of a side an owner; returns the revisions of the records."""
    revisions = []
    for slot in range(SLOTS):
        revisions.append(await side.client.put(pair.keys.owner(slot), Owner("a", "boot", epoch).encode()))
        record = SyncRecord(epoch, (Process("a", "boot"), Process("b", "boot")), memory=memory)
        await side.client.put(pair.keys.sync_set(slot), record.encode())
    return revisions


@asynccontextmanager
async def beating(pair: Pair) -> AsyncIterator[None]:
    """East beats and west copies meanwhile, and has come near."""

    async def beat() -> None:
        while True:
            await pair.east.client.put(pair.keys.home_beat, b"{}")
            await asyncio.sleep(0.05)

    async def near() -> bool:
        found = await pair.west.mirrored()
        return found.whole and time.time() - found.complete_at < switch.LAG_MOST / 2

    task = asyncio.create_task(beat())
    try:
        async with pair.copying():
            await until(near, 40, "the mirror is near")
            yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def roles(pair: Pair) -> tuple[Role, Role]:
    return (await pair.at(pair.east)).record.role, (await pair.at(pair.west)).record.role


async def is_at_west(pair: Pair, epoch: int) -> None:
    """West is the home of term 2, with everything, and nobody of before can write on either side."""
    assert await roles(pair) == (Role.FENCED, Role.HOME)
    assert (await pair.at(pair.west)).record.term == 2
    assert await pair.sessions(pair.west) == await pair.sessions(pair.east)
    for side, least in ((pair.east, 1), (pair.west, epoch + 1)):
        for slot in range(SLOTS):
            kv = await side.client.get(pair.keys.owner(slot))
            assert kv is not None
            owner = Owner.decode(kv.value)
            assert owner.boot != "boot"
            assert owner.epoch >= least
            assert await side.client.get(pair.keys.sync_set(slot)) is None


async def test_a_move_ends_only_when_the_mirror_has_everything(pair: Pair) -> None:
    fences = await own(pair, pair.east, 7)
    await pair.write(1, "old")
    async with beating(pair):
        pass
    await pair.write(1, "new")
    moving = asyncio.create_task(move_of(pair).run(force=True))
    await until(lambda: fenced(pair), 40, "the old home is fenced")
    late = await pair.east.client.txn(
        [ModRevision(pair.keys.owner(0), fences[0])], [Put(pair.keys.session(0, "k0002"), b"too late")]
    )
    assert not late.succeeded
    await stays(lambda: not moving.done(), 0.3, "it waits for the mirror")
    async with pair.copying():
        moved = await moving
    assert (moved.site, moved.term, moved.slots, moved.lost) == ("west", 2, SLOTS, None)
    await is_at_west(pair, 7)


async def fenced(pair: Pair) -> bool:
    kv = await pair.east.client.get(pair.keys.owner(SLOTS - 1))
    return kv is not None and Owner.decode(kv.value).boot != "boot"


@pytest.mark.parametrize("step", range(4))
async def test_a_move_that_was_interrupted_goes_on_when_it_is_given_again(
    pair: Pair, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await own(pair, pair.east, 7)
    await pair.write(1, "kept")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == step + 1:
            raise Interrupted

    take = switch.take_slots

    async def taken_at_east_only(side: Side, *arguments: Any, **more: Any) -> int:
        if side is pair.west:
            raise Interrupted
        return await take(side, *arguments, **more)

    async with beating(pair):
        with monkeypatch.context() as patch:
            if step == 3:  # west is opening, and its owner records are as before
                patch.setattr(switch, "take_slots", taken_at_east_only)
            with pytest.raises(Interrupted):
                await move_of(pair, silent if step == 3 else say).run(force=False)
        assert Role.HOME not in await roles(pair)
        await move_of(pair).run(force=False)
    await is_at_west(pair, 7)


async def test_a_move_is_refused_while_the_mirror_is_incomplete_or_far_behind(pair: Pair) -> None:
    with pytest.raises(RefusedError, match="not complete yet"):
        await move_of(pair).run(force=True)
    far = Mirrored(1, whole=True, complete_at=time.time() - 60)
    await pair.west.client.put(pair.keys.mirrored, far.encode())
    with pytest.raises(RefusedError, match=r"60\.\d s behind"):
        await move_of(pair).run(force=False)
    assert await roles(pair) == (Role.HOME, Role.MIRROR)


async def test_a_home_whose_memory_is_not_saved_in_time_serves_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "SAVE_TIMEOUT", 0.2)
    await own(pair, pair.east, 7, memory=True)
    async with beating(pair):
        with pytest.raises(RefusedError, match="4 slots have writes in memory"):
            await move_of(pair).run(force=True)
    assert await roles(pair) == (Role.HOME, Role.MIRROR)


async def take(pair: Pair, *, source: Side | None = None, force: bool = False) -> Moved:
    return await take_over(pair.west, source, pair.log(pair.west), "anna", silent, force=force, estimated=NOTHING)


async def test_a_take_over_is_refused_while_the_home_answers_or_the_mirror_is_incomplete(pair: Pair) -> None:
    with pytest.raises(RefusedError, match="sessions of different moments"):
        await take(pair)
    async with beating(pair):
        with pytest.raises(RefusedError, match="'understudy home move' loses nothing"):
            await take(pair, source=pair.east)
    assert await roles(pair) == (Role.HOME, Role.MIRROR)
    with pytest.raises(RefusedError, match="site east is home: only a mirror"):
        await estimate(pair.east)


async def test_a_take_over_skips_epochs_that_the_old_home_may_have_used(pair: Pair) -> None:
    await own(pair, pair.east, 7)
    async with beating(pair):
        last = await pair.write(1, "kept")
        await pair.same(last)
    applied = (await pair.west.mirrored()).revision
    await pair.write(1, "lost")
    assert (await take(pair)).term == 2
    home = (await pair.at(pair.west)).record
    assert (home.role, home.applied, home.planned, home.lost_writes) == (Role.HOME, applied, False, -1)
    kv = await pair.west.client.get(pair.keys.owner(0))
    assert kv is not None
    assert Owner.decode(kv.value).epoch >= 7 + EPOCHS_SKIPPED
    with pytest.raises(RefusedError, match="only a mirror can take over"):
        await take(pair)


async def test_what_is_copied_until_a_take_over_begins_counts_as_applied(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = switch._begin
    last = 0

    async def late(*arguments: Any, **more: Any) -> Any:
        nonlocal last
        last = await pair.write(1, "copied in the last moment")
        await pair.same(last)
        return await begin(*arguments, **more)

    monkeypatch.setattr(switch, "_begin", late)
    async with beating(pair):
        await take(pair)
    assert (await pair.at(pair.west)).record.applied >= last


async def test_of_two_take_overs_at_once_one_is_told_that_it_was_late(pair: Pair) -> None:
    async with beating(pair):
        pass
    results = await asyncio.gather(take(pair), take(pair), return_exceptions=True)
    assert sum(isinstance(one, Moved) for one in results) == 1
    assert (await pair.at(pair.west)).record.term == 2
    assert all(isinstance(one, Moved | HomeChanged | RefusedError) for one in results)


async def test_with_stop_a_take_over_waits_until_the_old_home_has_stopped(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "CONFIRM_WITHIN", 0.5)
    monkeypatch.setattr(switch, "STOP_MARGIN", 0.0)
    async with beating(pair):
        at = await pair.at(pair.west)
        await pair.west.client.put(pair.keys.home, replace(at.record, on_peer_lost=PeerLost.STOP).encode())
    taking = asyncio.create_task(take(pair))
    await until(lambda: opening(pair), 40, "the old home can see that it is outranked")
    assert not taking.done()
    assert (await taking).seconds >= 0.5


async def opening(pair: Pair) -> bool:
    return (await roles(pair))[1] is Role.OPENING


# -- the guard of a home --


def guard_of(pair: Pair, peer: Side | None = None) -> Guard:
    return Guard(pair.east, peer or pair.west, lambda _: pair.log(pair.east), "guard-1")


async def beats(pair: Pair) -> int:
    kv = await pair.east.client.get(pair.keys.home_beat)
    return kv.mod_revision if kv else 0


async def test_a_home_that_starts_while_its_peer_is_silent_waits_for_an_operator(pair: Pair) -> None:
    async with EtcdClient([f"127.0.0.1:{free_port()}"], timeout=0.3) as nobody:
        guard = guard_of(pair, Side("west", nobody, pair.keys))
        await guard.look(await pair.at(pair.east))
        assert (await beats(pair), bool(guard.trouble)) == (0, True)
        await confirm(pair.east, pair.log(pair.east), "anna", "west is gone")
        await guard.look(await pair.at(pair.east))
        assert await beats(pair) > 0


async def test_a_peer_without_a_home_record_confirms_nothing(pair: Pair) -> None:
    await pair.west.client.delete(pair.keys.home)
    guard = guard_of(pair)
    await guard.look(await pair.at(pair.east))
    assert (await beats(pair), guard.trouble) == (0, "etcd of site west has no home record")


async def test_a_home_goes_on_while_its_peer_is_silent_and_stops_if_it_was_to(pair: Pair) -> None:
    guard = guard_of(pair)
    await guard.look(await pair.at(pair.east))
    async with EtcdClient([f"127.0.0.1:{free_port()}"], timeout=0.3) as nobody:
        guard._peer = Side("west", nobody, pair.keys)
        before = await beats(pair)
        await guard.look(await pair.at(pair.east))
        assert await beats(pair) > before
        await make_pair(pair.east, "west", PeerLost.STOP, pair.log(pair.east), "anna")
        guard._asked_at -= 10
        guard._seen = await pair.at(pair.east)
        before = await beats(pair)
        await guard.look(await pair.at(pair.east))
        assert await beats(pair) == before


async def test_an_old_home_is_fenced_and_its_tail_has_each_write_and_deletion(
    etcd_server: EtcdServer, west_etcd: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with paired(etcd_server, west_etcd) as pair:
        monkeypatch.setattr("understudy.deploy.mirror.guard.SAVED_TIMEOUT", 0.2)
        fences = await own(pair, pair.east, 7)
        async with beating(pair):
            await pair.same(await pair.write(1, "kept"))
        await take(pair)
        applied = (await pair.at(pair.west)).record.applied
        await pair.write(1, "one")
        await pair.write(1, "two")
        await pair.write(2, "three")
        await pair.east.client.delete(pair.keys.session(0, "k0001"))
        await guard_of(pair).look(await pair.at(pair.east))
        home = (await pair.at(pair.east)).record
        assert (home.role, home.term, home.tail) == (Role.FENCED, 2, Tail.PENDING)
        late = await pair.east.client.txn(
            [ModRevision(pair.keys.owner(0), fences[0])], [Put(pair.keys.session(0, "k0002"), b"too late")]
        )
        assert not late.succeeded
        until_revision = await take_slots(pair.east, await pair.at(pair.east), SLOTS, boot="guard-2", epoch=1, now=0.0)
        counted = await write_tail(pair.east, applied, until_revision, tmp_path / "tail.jsonl", "1")
        assert (counted.writes, counted.sessions, counted.every_write) == (4, 2, True)
        await pair.east.client.compact(until_revision)
        counted = await write_tail(pair.east, applied, until_revision, tmp_path / "tail.jsonl", "1")
        assert (counted.writes, counted.sessions, counted.every_write) == (1, 1, False)


async def test_a_pair_ends_at_its_home_only(pair: Pair) -> None:
    with pytest.raises(RefusedError, match="not the home"):
        await unpair(pair.west, pair.log(pair.west))
    with pytest.raises(RefusedError, match="'understudy home unpair' ends it"):
        await make_pair(pair.east, "north", PeerLost.CONTINUE, pair.log(pair.east), "anna")
    await unpair(pair.east, pair.log(pair.east))
    assert await pair.east.home() is None
    assert Home("west", Role.MIRROR, "east") == (await pair.at(pair.west)).record
