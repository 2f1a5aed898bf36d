"""The load meter: what it reports of a member's slots, and how the limits of a cgroup are read."""

from pathlib import Path
from unittest.mock import MagicMock

import pytest

from understudy.proxy.health.process_usage import ProcessUsage, Usage, cpu_limit, cpu_used, memory_limit, own_cgroup
from understudy.proxy.ownership.exposure import Exposure
from understudy.proxy.replication.copy_lag import Lag
from understudy.proxy.sidecar import load_meter
from understudy.proxy.sidecar.load_meter import LoadMeter
from understudy.statesync.sessions.session import Session


def a_session(size: int) -> Session:
    """A session with a body of so many bytes."""
    return Session("text/plain", b"x" * size, 0, 1)


def a_meter(calls: list[int], slots: dict[int, int]) -> LoadMeter:
    """A meter of a member that is active for ``slots``: per slot how many sessions of ten bytes it has."""
    owned, replica, lag, usage = MagicMock(), MagicMock(), MagicMock(worst=0.02), MagicMock()
    owned.open_slots.side_effect = lambda: list(slots)
    replica.sessions_of.side_effect = lambda slot: {str(n): a_session(10) for n in range(slots.get(slot, 0))}
    replica.apps.side_effect = lambda slots: {"v1": len(slots)}
    seconds = iter(range(1, 100))
    usage.read.side_effect = lambda: Usage(next(seconds) * 2.5, 4.0, 1000, 8000)
    exposure = Exposure()
    exposure.look([], 0.0, 1000.0)
    sites = MagicMock()
    sites.copy_lag.side_effect = lambda _now: {"west": Lag(12, 3)}
    sites.exposure.oldest.side_effect = lambda _now: 4.04
    return LoadMeter(calls, owned, replica, lag, usage, exposure, sites)


def test_a_member_reports_calls_sessions_bytes_cpu_and_lag_of_its_slots() -> None:
    """After two intervals each slot has its own numbers; CPU is that of the process."""
    calls = [0] * 8
    meter = a_meter(calls, {2: 3, 5: 0})
    for look in range(4):
        calls[2] += 50
        meter.look(1000.0 + 5 * look)
    report = meter.report
    assert report is not None
    assert [(one.slot, one.sessions, one.bytes) for one in report.slots] == [(2, 3, 30), (5, 0, 0)]
    assert report.slots[0].calls == pytest.approx(10)
    assert report.slots[1].calls == 0
    assert report.versions == {"v1": 2}
    assert report.unsaved == (0, 0, 0)
    assert (report.copy_lag, report.one_site_seconds) == ({"west": (12, 3)}, 4.0)
    assert report.lag == pytest.approx(0.02)
    assert (report.cpus, report.memory, report.memory_limit) == (4.0, 1000, 8000)


def test_bodies_of_many_sessions_are_summed_over_several_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look takes long, and after some looks the bytes of every slot are known."""
    monkeypatch.setattr(load_meter, "SESSIONS_PER_LOOK", 5)
    meter = a_meter([0] * 8, dict.fromkeys(range(6), 4))
    for look in range(9):
        meter.look(1000.0 + 5 * look)
    assert meter.report is not None
    assert [one.bytes for one in meter.report.slots] == [40] * 6


def test_the_application_counts_where_its_cgroup_is_known(tmp_path: Path) -> None:
    """Its CPU is added, and its memory counts if it is nearer to its limit."""
    own = ProcessUsage().read()
    (tmp_path / "cpu.stat").write_text("usage_usec 5000000\nuser_usec 1\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.max").write_text("1000\n")
    both = ProcessUsage(tmp_path).read()
    assert both.app
    assert both.cpu_seconds >= own.cpu_seconds + 5
    assert (both.memory, both.memory_limit) == (900, 1000)
    assert not ProcessUsage(tmp_path / "none").read().app


def test_files_of_a_cgroup() -> None:
    """No limit, and no file, are no limit."""
    assert cpu_limit("150000 100000\n") == 1.5
    assert cpu_limit("max 100000\n") == cpu_limit("") == 0
    assert memory_limit("4096\n") == 4096
    assert memory_limit("max\n") == 0
    assert cpu_used("") is None
    assert own_cgroup("0::/user.slice/a\n") == Path("/sys/fs/cgroup/user.slice/a")
    assert own_cgroup("0::/\n") == Path("/sys/fs/cgroup")
