"""``--watch``: the output of a reading command again and again, and what it says when it cannot be made anew."""

import io
import json
import sys
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner

from understudy.deploy.cli import watching
from understudy.deploy.cli.main import cli
from understudy.deploy.cli.watching import watch_option
from understudy.deploy.common.errors import DeployError

WATCHED = (
    *("status", "table", "explain", "sessions", "failovers", "trace", "slo", "capacity", "pools", "tenants"),
    *("slots waiting", "site status", "rebalance status", "home status", "checks list"),
)


class Screen(io.StringIO):
    """A terminal, as far as ``isatty`` tells."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def counting(*, fails_at: int = 0, exit_code: int = 0) -> click.Command:
    """A command that says how often it was called, and that fails the so-manieth time."""
    calls = 0

    @click.command("count")
    @click.option("-o", "--output", default="table")
    @watch_option
    def count(output: str) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise DeployError("etcd at 10.0.0.2:2379 does not answer")
        click.echo(json.dumps({"call": calls}) if output == "json" else f"call {calls}")
        raise SystemExit(exit_code)

    return count


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[float]]:
    """Makes the pauses between outputs short, and presses Ctrl-C after so many; returns the pauses."""

    def end_after(pauses: int) -> list[float]:
        seen: list[float] = []

        def sleep(seconds: float) -> None:
            seen.append(seconds)
            if len(seen) == pauses:
                raise KeyboardInterrupt

        monkeypatch.setattr(watching.time, "sleep", sleep)
        return seen

    return end_after


def test_the_output_is_repeated_until_ctrl_c_which_is_no_failure(rounds: Callable[[int], list[float]]) -> None:
    pauses = rounds(3)
    result = CliRunner().invoke(counting(exit_code=1), ["--watch", "0.5"])
    assert result.exit_code == 0
    assert [line for line in result.output.splitlines() if line.startswith("call")] == ["call 1", "call 2", "call 3"]
    assert pauses == [0.5] * 3


def test_without_a_number_the_pause_is_two_seconds(rounds: Callable[[int], list[float]]) -> None:
    pauses = rounds(1)
    assert CliRunner().invoke(counting(), ["-w"]).exit_code == 0
    assert pauses == [2.0]


def test_without_the_option_the_command_runs_once_and_its_exit_code_counts() -> None:
    result = CliRunner().invoke(counting(exit_code=1))
    assert (result.exit_code, result.output) == (1, "call 1\n")


def test_a_later_failure_leaves_the_last_output_and_says_how_old_it_is(rounds: Callable[[int], list[float]]) -> None:
    rounds(2)
    result = CliRunner().invoke(counting(fails_at=2), ["-w"])
    last = result.output.rpartition("count, every 2 s")[2]
    assert "s old: etcd at 10.0.0.2:2379 does not answer" in last
    assert last.endswith("call 1\n\n")


def test_a_first_failure_ends_the_command(rounds: Callable[[int], list[float]]) -> None:
    pauses = rounds(9)
    result = CliRunner().invoke(counting(fails_at=1), ["-w"])
    assert result.exit_code == 2
    assert "etcd at 10.0.0.2:2379 does not answer" in result.output
    assert not pauses


def test_programs_get_one_document_after_the_other_and_errors_on_stderr(rounds: Callable[[int], list[float]]) -> None:
    rounds(3)
    result = CliRunner().invoke(counting(fails_at=2), ["-w", "-o", "json"])
    assert [json.loads(line)["call"] for line in result.stdout.splitlines()] == [1, 3]
    assert "does not answer" in result.stderr


def test_on_a_terminal_each_output_is_written_over_the_one_before_and_cut_to_its_height(
    rounds: Callable[[int], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command("long")
    @watch_option
    def long() -> None:
        click.echo("\n".join(f"line {number}" for number in range(100)))

    rounds(1)
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("LINES", "12")
    monkeypatch.setenv("COLUMNS", "80")
    long.main(["-w"], standalone_mode=False)
    frame = screen.getvalue().rpartition("\x1b[H")[2]
    assert frame.count("\n") <= 12
    assert "line 0\x1b[K" in frame
    assert frame.endswith("\x1b[J\n")


@pytest.mark.parametrize("name", WATCHED)
def test_the_reading_commands_have_it(name: str) -> None:
    command: click.Command | None = cli
    for word in name.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    assert any("--watch" in option.opts for option in command.params)
