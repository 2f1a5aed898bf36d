"""What ``understudy home status`` calls degraded."""

import time

import msgspec
import pytest
from msgspec.structs import replace

from tests.deploy.mirror.pairs import Pair
from understudy.deploy.console.home import NO_HOME, home_shown
from understudy.deploy.mirror.records import Side
from understudy.deploy.mirror.status import home_view, lines_of
from understudy.statesync.parsing.stored import compact_json
from understudy.statesync.pool.home import Home, Mirrored, Role, Tail

NOW = time.time()


async def problems(pair: Pair, *, now: float = NOW) -> list[str]:
    found: list[str] = (await home_view(pair.east, pair.west, now))["degraded"]
    return found


async def is_well(pair: Pair) -> None:
    await pair.east.client.put(pair.keys.home_beat, compact_json({"at": NOW}))
    await pair.west.client.put(pair.keys.mirrored, Mirrored(5, whole=True, complete_at=NOW, rate=40).encode())
    assert await problems(pair) == []


async def test_a_mirror_that_is_late_and_a_home_that_nobody_confirms_are_degraded(pair: Pair) -> None:
    await is_well(pair)
    home, mirror = await problems(pair, now=NOW + 60)
    assert "nobody has confirmed for 60 s that it is the home" in home
    assert "site west: the mirror is 60 s behind" in mirror
    view = await home_view(pair.west, pair.east, NOW + 1.5)
    assert "if east died now: at most 80 writes, 1500 ms (in the last minute at most 40 writes a second)" in lines_of(
        view
    )


async def test_a_mirror_that_is_copied_anew_is_degraded(pair: Pair) -> None:
    await is_well(pair)
    await pair.west.client.put(pair.keys.mirrored, Mirrored(5, complete_at=NOW).encode())
    assert "is not complete" in (await problems(pair))[0]
    assert "if east died now: not known, since the mirror is not complete" in lines_of(
        await home_view(pair.west, pair.east, NOW)
    )


@pytest.mark.parametrize(
    ("role", "problem"), [(Role.HOME, "both east and west say"), (Role.OPENING, "nobody")], ids=["two", "one"]
)
async def test_two_homes_are_degraded(pair: Pair, role: Role, problem: str) -> None:
    await is_well(pair)
    await pair.west.client.put(pair.keys.home, Home("west", role, "east", 2).encode())
    assert any(problem in one for one in await problems(pair)) is (role is Role.HOME)


async def test_no_home_is_degraded_and_a_peer_that_is_silent_is_too(pair: Pair) -> None:
    await is_well(pair)
    fenced = Home("east", Role.FENCED, "west", since=NOW - 30)
    await pair.east.client.put(pair.keys.home, fenced.encode())
    interrupted = "no side is the home: a move or a take-over was interrupted 30 s ago. Give its command again"
    assert await problems(pair) == [f"{interrupted}: 'understudy home move --to west'"]
    for planned, command in ((True, "move --to west"), (False, "take-over")):
        opening = Home("west", Role.OPENING, "east", 2, NOW - 30, planned=planned)
        await pair.west.client.put(pair.keys.home, opening.encode())
        assert await problems(pair) == [f"{interrupted}: 'understudy home {command}'"]
    await pair.west.client.put(pair.keys.home, b"broken")
    assert "site west: the record at" in (await problems(pair))[0]


async def test_a_loss_is_shown_at_the_new_home(pair: Pair) -> None:
    taken = Home("west", Role.HOME, "east", 2, planned=False, lost_writes=-1)
    await pair.west.client.put(pair.keys.home, taken.encode())
    assert await line_of(pair.west) == (
        "site west: home, term 2, by a take-over; lost: not counted yet, since the old home is not back; "
        "if east does not answer: continue"
    )
    await pair.west.client.put(pair.keys.home, replace(taken, lost_writes=7, lost_sessions=3).encode())
    assert "lost: 7 writes to 3 sessions" in await line_of(pair.west)
    kept = Home("east", Role.MIRROR, "west", 2, tail=Tail.KEPT, file="/t/x.jsonl", lost_writes=7)
    await pair.east.client.put(pair.keys.home, kept.encode())
    assert await line_of(pair.east) == "site east: mirror, term 2; tail of 7 writes kept in /t/x.jsonl"


async def line_of(side: Side) -> str:
    return lines_of(await home_view(side, None))[1]


async def test_the_console_shows_this_side_and_what_would_be_lost_by_the_etcd_of_this_site(pair: Pair) -> None:
    async def shown(side: Side) -> dict[str, str]:
        return home_shown(await home_view(side, None, NOW + 1.5))

    await is_well(pair)
    loss = "If east died now: at most 80 writes, 1500 ms (in the last minute at most 40 writes a second)."
    west = {"role": "mirror", "side": "Here: site west: mirror, term 1.", "loss": loss, "trouble": ""}
    assert await shown(pair.west) == {**west, "command": f"understudy home take-over --pool {pair.keys.pool}"}

    east = await shown(pair.east)
    assert east["loss"] == "How far the mirror is behind is not known here."
    mirrored = msgspec.to_builtins(Mirrored(5, whole=True, complete_at=NOW, rate=40))
    await pair.east.client.put(pair.keys.home_beat, compact_json({"at": NOW, "mirrored": mirrored}))
    east = await shown(pair.east)
    assert (east["loss"], east["command"]) == (loss, f"understudy home move --to west --pool {pair.keys.pool}")
    late = home_shown(await home_view(pair.east, None, NOW + 60))
    assert "site west: the mirror is 60 s behind" in late["trouble"]
    await pair.east.client.put(pair.keys.home, Home("east", Role.CLOSING, "west").encode())
    assert (await shown(pair.east))["command"] == f"understudy home status --pool {pair.keys.pool}"
    await pair.east.client.delete(pair.keys.home)
    assert await shown(pair.east) == NO_HOME
