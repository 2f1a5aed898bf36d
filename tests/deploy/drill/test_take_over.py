"""The drill of a take-over: which pools it is for, what stays down, how etcd joins again, and what counts as missed."""

import io
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from understudy.deploy.cli.commands_drill import drill
from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import (
    HELD_FILE,
    PROCESSES_FILE,
    FrontAddresses,
    Layout,
    MemberAddresses,
    hold,
    is_held,
)
from understudy.deploy.drill.conditions import ClientView, DrillKind, TakeOverFigures
from understudy.deploy.drill.lost_site import LostSite
from understudy.deploy.drill.report import drill_table, view_of
from understudy.deploy.drill.settings import DrillResult
from understudy.deploy.drill.take_over import missed_by
from understudy.deploy.local.etcd_join import expect, joined, joining
from understudy.deploy.local.processes import Program

ALL_IN_MEMORY = TakeOverFigures(16.0, 12.0, 0, 16, 0, 0, 0)
FROM_ETCD = TakeOverFigures(16.0, 12.0, 0, 8, 8, 0, 3)
ACCEPTED = TakeOverFigures(16.0, 12.0, 2, 16, 0, 0, 0)


@pytest.mark.parametrize(
    ("figures", "lost", "writers", "durability", "missed"),
    [
        (ALL_IN_MEMORY, 0, 0, "sync", []),
        (ALL_IN_MEMORY, 1, 0, "replicas", ["estimate: 1 writes were lost, and none were expected"]),
        (ALL_IN_MEMORY, 1, 0, "async", []),
        (FROM_ETCD, 3, 0, "sync", []),
        (ACCEPTED, 0, 0, "sync", ["sync writes: 2 were acknowledged while etcd had no majority (must be 0)"]),
        (ACCEPTED, 0, 0, "replicas", []),
        (ALL_IN_MEMORY, 0, 2, "sync", ["two writers: 2 writes of a replaced owner were acknowledged"]),
    ],
)
def test_a_take_over_may_lose_what_it_said_and_sync_writes_must_stop(
    figures: TakeOverFigures, lost: int, writers: int, durability: str, missed: list[str]
) -> None:
    assert missed_by(figures, lost, writers, durability) == missed


def test_the_outcome_says_what_was_expected_beside_what_was_lost() -> None:
    seen = ClientView(requests=100, failed=9, lost_writes=2)
    result = DrillResult(DrillKind.SITE_TAKE_OVER, "east", 0.0, 9.0, seen, (), ("ab" * 16,), take_over=FROM_ETCD)
    console = Console(file=io.StringIO(), width=400)
    console.print(drill_table(view_of("cart", [result])))
    assert isinstance(console.file, io.StringIO)
    assert (
        "site-take-over east: no etcd for 16 s, of which the take-over took 12 s; 0 writes acknowledged without a "
        "majority; expected: 8 slots go on from memory, 8 are read from etcd, 0 lose more, 3 revisions missing; lost: 2"
    ) in console.file.getvalue()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("site-take-over",), "needs --load"),
        (("site-take-over", "--load", "9", "--command", "x {name}"), "--command has no effect"),
        (("kill", "--site", "east"), "it is for site, site-offline, site-take-over"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: tuple[str, ...], why: str) -> None:
    done = CliRunner().invoke(drill, arguments)
    assert (done.exit_code, why in " ".join(done.output.split())) == (2, True), done.output


def layout_of(*sites: str) -> Layout:
    urls = tuple(f"http://127.0.0.1:{number}" for number in range(1, len(sites) + 1))
    members = tuple(
        MemberAddresses(f"cart-{number}", "", "", "", "", site=site) for number, site in ((1, "east"), (2, "west"))
    )
    return Layout("cart", os.getpid(), urls, urls, (), FrontAddresses("f", "", ""), members, etcd_sites=sites)


@pytest.mark.parametrize(
    "sites",
    [("east", "west", ""), ("east", "west"), ("", "", ""), ("",), ("east",), ("east", "west", "east", "west", "east")],
)
def test_only_a_site_that_is_lost_with_most_of_etcd_is_taken_over_from(tmp_path: Path, sites: tuple[str, ...]) -> None:
    with pytest.raises(DeployError, match="--no-witness"):
        LostSite(tmp_path, layout_of(*sites))


def test_the_site_with_two_of_three_members_of_etcd_is_the_one_to_lose(tmp_path: Path) -> None:
    lost = LostSite(tmp_path, layout_of("east", "west", "east"))
    assert (lost.site, [one.name for one in lost.etcds]) == ("east", ["etcd-1", "etcd-3"])
    assert (lost.left.name, lost.left.site, lost.has_control_elsewhere) == ("etcd-2", "west", False)


def test_a_site_of_which_something_does_not_run_is_not_killed(tmp_path: Path) -> None:
    rows = [{"name": "cart-2/app", "state": "restarting", "pid": 0}, {"name": "etcd-1", "state": "starting", "pid": 0}]
    (tmp_path / PROCESSES_FILE).write_text(json.dumps(rows))
    with pytest.raises(DeployError, match="etcd-1 does not run"):
        LostSite(tmp_path, layout_of("east", "west", "east")).kill()
    assert not (tmp_path / HELD_FILE).exists()


def test_what_is_named_stays_down_until_it_is_released(tmp_path: Path) -> None:
    lost = LostSite(tmp_path, layout_of("east", "west", "east"))
    (tmp_path / PROCESSES_FILE).write_text("[]")
    lost.kill()
    lost.stop_left()
    named = ("etcd-1", "etcd-2", "etcd-3", "cart-1/app", "cart-1/sidecar", "cart-2/app")
    assert [is_held(tmp_path, name) for name in named] == [True, True, True, True, True, False]
    lost.release("etcd-2")
    assert [is_held(tmp_path, name) for name in named] == [True, False, True, True, True, False]
    lost.release()
    assert not any(is_held(tmp_path, name) for name in named)
    hold(tmp_path)
    assert is_held(tmp_path, "anything")


def test_a_member_of_etcd_without_data_starts_as_etcd_expects_it_and_later_as_before(tmp_path: Path) -> None:
    program = Program("etcd-1", ("/etcd", "--initial-cluster", "of before"), tmp_path / "log", 0)
    other = Program("etcd-2", ("/etcd",), tmp_path / "log", 0)
    assert joining(program, tmp_path) == program
    expect(tmp_path, "etcd-1", "etcd-2=http://b,etcd-1=http://a")
    more = ("--initial-cluster-state", "existing", "--initial-cluster", "etcd-2=http://b,etcd-1=http://a")
    assert joining(program, tmp_path).command == (*program.command, *more)
    assert joining(other, tmp_path) == other
    (tmp_path / "etcd-1" / "member").mkdir(parents=True)
    assert joining(program, tmp_path) == program
    joined(tmp_path)
    joined(tmp_path)
    assert not list(tmp_path.glob("*.json"))
