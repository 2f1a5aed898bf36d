"""When a member serves a pool that has a mirror on a distant site, by what its watch brings."""

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.proxy.members import view_of
from understudy.proxy.member.home_watch import HomeWatch
from understudy.statesync.etcd.client import Event, Kv
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.pool.home import Home, Role

HOME = Home("east", Role.HOME, "west")


class Watched:
    """A member whose watch is played by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.revision = 100.0, 0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.pool = view_of("a", "cart")
        self.informer = SimpleNamespace(well_since=self.now, silent_for=0.0)
        self.home = HomeWatch(self.pool, cast("Any", self.informer))

    def bring(self, key: str, value: bytes, *, reset: bool = False) -> bool:
        """The watch brings a change, or a list has it; returns whether the member serves then."""
        self.revision += 1
        batch = InformerBatch(self.revision, (Event("put", Kv(key, value, self.revision, 1, 0)),), reset=reset)
        self.pool.state.apply(batch)
        self.home.apply(batch)
        return not self.home.away

    def beat(self) -> bool:
        return self.bring(self.pool.identity.keys.home_beat, b"{}")

    def record(self, home: Home = HOME, *, reset: bool = False) -> bool:
        return self.bring(self.pool.identity.keys.home, home.encode(), reset=reset)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_a_member_that_starts_serves_once_a_beat_has_come(watched: Watched) -> None:
    assert not watched.record(reset=True)
    watched.now += 1
    assert watched.beat()


def test_a_pool_that_gets_a_mirror_is_served_meanwhile(watched: Watched) -> None:
    assert not watched.home.away
    watched.now += 60
    assert watched.record()
    assert not watched.record(Home("east", Role.FENCED, "west", 2))


def test_a_beat_from_before_an_outage_of_etcd_counts_for_nothing_however_late_it_comes(watched: Watched) -> None:
    watched.record(reset=True)
    watched.now += 1
    assert watched.beat()
    watched.now += 10
    watched.informer.well_since = watched.now
    assert watched.home.away
    watched.now += 0.1
    assert not watched.beat()  # the watch goes on where it was
    watched.now += 1
    assert watched.beat()


def test_nobody_serves_while_the_home_record_cannot_be_read(watched: Watched) -> None:
    assert not watched.bring(watched.pool.identity.keys.home, b'{"role":"new"}', reset=True)
    assert "upgrade this process" in watched.home.away
