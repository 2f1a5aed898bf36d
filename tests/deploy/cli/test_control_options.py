"""Which pools ``understudy control`` serves, by its options and its environment."""

import pytest
from click.testing import CliRunner

from understudy.deploy.cli.main import cli
from understudy.xds.control import server
from understudy.xds.control.http_extension import HttpExtension, no_extension
from understudy.xds.control.settings import ControlSettings


@pytest.fixture
def extensions() -> list[HttpExtension]:
    """What they add to their HTTP ports."""
    return []


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, extensions: list[HttpExtension]) -> list[ControlSettings]:
    """The settings with which control servers are started."""
    found: list[ControlSettings] = []

    async def run_control(settings: ControlSettings, extend: HttpExtension) -> int:
        found.append(settings)
        extensions.append(extend)
        return 0

    monkeypatch.setattr(server, "run_control", run_control)
    return found


@pytest.mark.parametrize(
    ("options", "pool", "pools", "only"),
    [
        (["--pool", "cart"], None, ("cart",), "cart"),
        (["--pool", "cart", "--pool", "desk", "--pool", "cart"], None, ("cart", "desk"), ""),
        ([], "cart", ("cart",), "cart"),
        (["--all-pools"], None, (), ""),
        (["--all-pools"], "cart", (), ""),
    ],
)
def test_pools_are_named_or_all(
    started: list[ControlSettings], options: list[str], pool: str | None, pools: tuple[str, ...], only: str
) -> None:
    done = CliRunner().invoke(cli, ["control", "--name", "c", *options], env={"UNDERSTUDY_POOL": pool})
    assert (done.exit_code, done.output) == (0, "")
    (settings,) = started
    assert (settings.pools, settings.only) == (pools, only)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "name the pool with --pool, or give --all-pools"),
        (["--pool", "cart", "--all-pools"], "give --pool or --all-pools, not both"),
        (["--pool", "cart", "--pool", "No Name"], "--pool 'No Name': a name has"),
    ],
)
def test_anything_else_is_refused(started: list[ControlSettings], options: list[str], told: str) -> None:
    done = CliRunner().invoke(cli, ["control", "--name", "c", *options], env={"UNDERSTUDY_POOL": None})
    assert (done.exit_code, told in done.output, started) == (2, True, [])


@pytest.mark.parametrize(
    ("options", "served"),
    [
        ([], True),
        (["--no-console"], False),
        (["--http", "10.0.0.7:18001"], False),
        (["--http", "10.0.0.7:18001", "--console"], True),
        (["--http", "[::1]:18001"], True),
    ],
)
def test_the_console_is_served_on_loopback_and_elsewhere_only_when_asked(
    started: list[ControlSettings], extensions: list[HttpExtension], options: list[str], *, served: bool
) -> None:
    done = CliRunner().invoke(cli, ["control", "--name", "c", "--pool", "cart", *options])
    assert (done.exit_code, done.output) == (0, "")
    assert [one is not no_extension for one in extensions] == [served]
