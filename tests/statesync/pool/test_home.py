"""Who may serve a pool that has a mirror on a distant site, by the records and by what a process has heard."""

import math

import pytest
from msgspec.structs import replace

from understudy.statesync.pool.home import (
    CONFIRM_WITHIN,
    Home,
    Loss,
    Mirrored,
    PeerLost,
    Role,
    absence,
    is_confirmed,
    loss_now,
    may_beat,
    outranked,
)

EAST = Home("east", Role.HOME, "west", term=3)
STOPPING = replace(EAST, on_peer_lost=PeerLost.STOP)


@pytest.mark.parametrize(
    ("role", "why"),
    [
        (Role.HOME, "has not confirmed yet"),
        (Role.CLOSING, "moves from site east to site west"),
        (Role.OPENING, "moves from site west to site east"),
        (Role.FENCED, "at home on site west"),
        (Role.MIRROR, "at home on site west"),
    ],
)
def test_only_a_confirmed_home_serves(role: Role, why: str) -> None:
    home = replace(EAST, role=role)
    assert why in absence(home, confirmed=False)
    assert (absence(home, confirmed=True) == "") == (role is Role.HOME)
    assert absence(None, confirmed=False) == ""


@pytest.mark.parametrize(
    ("home", "confirmed_at", "well_since", "silent_for", "so"),
    [
        (EAST, -math.inf, 10.0, 0.0, False),  # it has just started
        (EAST, 10.6, 10.0, 0.0, True),
        (EAST, 9.5, 10.0, 0.0, False),  # the beat came before the outage of etcd
        (EAST, 10.1, 10.0, 0.0, False),  # it may be one of before that the watch brought late
        (EAST, 10.6, 10.0, CONFIRM_WITHIN + 1, False),  # it is cut off now
        (EAST, 10.6, 10.0, CONFIRM_WITHIN - 1, True),
        (STOPPING, 99.0, 10.0, 0.0, True),
        (STOPPING, 100.0 - CONFIRM_WITHIN - 1, 10.0, 0.0, False),  # no beat for long
        (EAST, 100.0 - CONFIRM_WITHIN - 1, 10.0, 0.0, True),
    ],
)
def test_a_process_of_the_home_serves_once_a_beat_came_since_its_last_outage(
    home: Home, confirmed_at: float, well_since: float, silent_for: float, so: bool
) -> None:
    found = is_confirmed(home, confirmed_at=confirmed_at, well_since=well_since, silent_for=silent_for, now=100.0)
    assert found is so


@pytest.mark.parametrize(
    ("home", "asked_at", "cut_off_until", "so"),
    [
        (EAST, -math.inf, 10.0, False),
        (EAST, 9.0, 10.0, False),  # the peer was asked before this side's outage
        (EAST, 11.0, 10.0, True),  # the peer has been silent since: it goes on
        (STOPPING, 11.0, 10.0, False),
        (STOPPING, 99.0, 10.0, True),
    ],
)
def test_a_home_beats_once_it_has_asked_its_peer_since_its_last_outage(
    home: Home, asked_at: float, cut_off_until: float, so: bool
) -> None:
    assert may_beat(home, asked_at=asked_at, cut_off_until=cut_off_until, now=100.0) is so


@pytest.mark.parametrize(
    ("peer", "so"),
    [
        (None, False),
        (Home("west", Role.HOME, "east", term=4), True),
        (Home("west", Role.OPENING, "east", term=4), True),
        (Home("west", Role.MIRROR, "east", term=4), False),
        (Home("west", Role.HOME, "east", term=3), False),
        (Home("west", Role.HOME, "east", term=2), False),
    ],
)
def test_a_home_is_outranked_by_a_home_of_a_later_term(peer: Home | None, so: bool) -> None:
    assert outranked(EAST, peer) is so


def test_the_estimate_of_a_loss_is_the_worst_second_for_the_time_that_is_not_covered() -> None:
    assert loss_now(Mirrored(7, complete_at=100.0, rate=30), 101.5) == Loss(60, 1.5)
    assert loss_now(Mirrored(7, complete_at=100.0, rate=30), 99.0) == Loss(0, 0.0)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (b"[]", "expected a JSON object"),
        (b'{"site":"east","role":"king","peer":"west"}', "Home"),
        (b'{"site":"east","role":"home"}', "peer"),
    ],
)
def test_a_record_that_is_none_is_refused(value: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Home.decode(value)


def test_records_are_read_as_they_were_written() -> None:
    assert Home.decode(EAST.encode()) == EAST
    progress = Mirrored(7, whole=True, epoch=3, complete_at=1.5, applied_at=2.5, writes=9, rate=3)
    assert Mirrored.decode(progress.encode()) == progress
