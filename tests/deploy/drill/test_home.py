"""Drills of the home of a pool on two distant sites: what counts as missed, how silences are measured, what is said."""

import io
import os

import pytest
from click.testing import CliRunner
from rich.console import Console

from understudy.deploy.cli.commands_drill import drill
from understudy.deploy.cli.commands_local import up
from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import HELD_FILE, DistantSite, FrontAddresses, Layout, is_held
from understudy.deploy.drill.conditions import ClientView, DrillKind, HomeFigures
from understudy.deploy.drill.fault_injectors import LocalInjector
from understudy.deploy.drill.home import missed_by
from understudy.deploy.drill.measure import longest_silences
from understudy.deploy.drill.report import drill_table, view_of
from understudy.deploy.drill.settings import DrillResult, DrillSettings
from understudy.deploy.load.history_checker import Op

PLANNED = HomeFigures(0.01, (1.2, 1.3))
MORE = HomeFigures(0.01, (1.2, 1.3), estimated=40, counted=41)
LOST = HomeFigures(0.01, (1.2, 1.3), estimated=40, counted=12)


@pytest.mark.parametrize(
    ("figures", "lost", "writers", "durability", "missed"),
    [
        (PLANNED, 0, 0, "sync", []),
        (PLANNED, 1, 0, "async", ["a planned move lost 1 acknowledged writes (must be 0)"]),
        (LOST, 12, 0, "sync", []),
        (LOST, 41, 0, "sync", ["estimate: 41 writes were lost, and at most 40 were expected"]),
        (LOST, 41, 0, "replicas", []),
        (
            HomeFigures(0.01, (1.2,), 40, 41),
            0,
            0,
            "replicas",
            ["estimate: 41 writes were lost, and at most 40 were expected"],
        ),
        (LOST, 0, 2, "sync", ["two writers: 2 writes of a replaced owner were acknowledged"]),
    ],
)
def test_a_move_may_lose_nothing_and_a_loss_no_more_than_was_said_before(
    figures: HomeFigures, lost: int, writers: int, durability: str, missed: list[str]
) -> None:
    assert missed_by(figures, lost, writers, durability) == missed


def answer(session: str, ended: float, status: int = 200) -> Op:
    return Op(session, "read", ended - 0.1, ended, status)


def test_a_silence_is_the_longest_time_without_an_answer_that_is_partly_in_the_drill() -> None:
    long_before = [answer("a", 1.0), answer("a", 9.0)]
    history = [*long_before, answer("a", 10.0), answer("a", 11.0, status=503), answer("a", 13.0), answer("a", 14.0)]
    assert longest_silences(history, 10.0, 20.0, pacing=0.5) == [2500.0]
    assert longest_silences(history, 8.0, 20.0, pacing=0.5) == [7500.0]
    assert longest_silences(history, 15.0, 20.0, pacing=0.5) == []
    assert longest_silences(history, 12.0, 20.0, pacing=0.5, since=12.0) == [500.0]


def test_the_outcome_says_for_how_long_nobody_was_the_home_and_what_was_expected() -> None:
    seen = ClientView(requests=100, failed=9)
    drills = [
        DrillResult(DrillKind.HOME_MOVE, "east", 0.0, 9.0, seen, (), ("ab" * 16,), home=PLANNED),
        DrillResult(DrillKind.HOME_LOSS, "east", 0.0, 9.0, seen, (), ("ab" * 16,), home=LOST),
    ]
    console = Console(file=io.StringIO(), width=200)
    console.print(drill_table(view_of("cart", drills)))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "home-move east: no side was the home for 1.2 s and 1.3 s; the mirror was 10 ms behind before\n" in shown
    assert "behind before; lost: at most 40 expected, 12 counted afterwards\n" in shown


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("home-move",), "need --load"),
        (("kill", "--peer-url", "http://x"), "for them alone"),
        (("home-loss", "--load", "9", "--site", "east"), "--site has no effect"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: tuple[str, ...], why: str) -> None:
    done = CliRunner().invoke(drill, arguments)
    assert (done.exit_code, why in done.output) == (2, True), done.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--distant", "east"), "names two sites"),
        (("--distant", "east,east"), "names two sites"),
        (("--distant", "east,west", "--sites", "a,b"), "share one"),
        (("--distant", "east,west", "-f", "a.yaml", "-f", "b.yaml"), "for one pool"),
    ],
)
def test_distant_sites_that_cannot_be_are_refused(arguments: tuple[str, ...], why: str) -> None:
    done = CliRunner().invoke(up, arguments)
    assert (done.exit_code, why in done.output) == (2, True), done.output


def test_the_command_that_repeats_a_drill_tells_no_addresses() -> None:
    settings = DrillSettings(DrillKind.HOME_LOSS, rate=50, url="http://east:1", peer_url="http://west:1")
    again = settings.command_again("cart", "east")
    assert again == "understudy drill home-loss --load 50 --for 5s --url URL --peer-url PEER_URL --pool cart"


def test_what_a_drill_holds_down_may_start_again_when_the_drill_is_over_or_dead(tmp_path) -> None:
    assert not is_held(tmp_path, "etcd-3")
    own = str(os.getpid())
    held = ((own, True), (f"{own}\netcd-3", True), (f"{own}\netcd-1", False), ("999999999", False), ("", False))
    for text, expected in held:
        (tmp_path / HELD_FILE).write_text(text)
        assert is_held(tmp_path, "etcd-3") is expected


async def test_a_home_of_which_something_does_not_run_is_not_killed(tmp_path) -> None:
    distant = DistantSite("east", "127.0.0.1:1", "west", ("http://127.0.0.1:2",), str(tmp_path))
    layout = Layout("cart", os.getpid(), (), (), (), FrontAddresses("f", "", ""), (), distant=distant)
    assert Layout.decode(layout.encode()) == layout
    (tmp_path / "processes.json").write_text('[{"name": "front-1", "state": "restarting", "pid": 0}]')
    with pytest.raises(DeployError, match="front-1 does not run"):
        await LocalInjector(tmp_path, layout).kill_home("east")
    assert not is_held(tmp_path, "front-1")
