"""What a program reads from a command: whole lines in pipes, the same data as JSON and YAML, names, and any key."""

import io
import json

import click
import pytest
import yaml
from click.testing import CliRunner
from rich.text import Text

from understudy.deploy.cli.commands_read import explain
from understudy.deploy.cli.main import COMMANDS, cli
from understudy.deploy.common.console_style import Terminal, plain_table
from understudy.deploy.common.key_command import KeyCommand
from understudy.deploy.common.options import show
from understudy.deploy.inspect.tables import sessions_table
from understudy.deploy.local.processes import ProcessState

KEY = "3kXo0b9Qh2" * 20
VIEW = {
    "sessions": [
        {"slot": 7, "key": KEY, "size": 9, "content_type": "application/json", "etag": '"9"', "expires_in": 3599.5}
    ],
    "records": 1,
}
LISTING = ("status", "table", "sessions", "explain", "failovers", "trace", "slo", "pools")


class Screen(io.StringIO):
    """A terminal, as far as ``isatty`` tells."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def test_in_a_pipe_a_row_is_one_line_whatever_the_environment_says_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("COLUMNS", "80"), ("TERM", "dumb"), ("FORCE_COLOR", "1")):
        monkeypatch.setenv(name, value)
        show("table", VIEW, sessions_table)
        assert [line for line in capsys.readouterr().out.splitlines() if KEY in line and "3600" in line]


def test_on_a_terminal_lines_are_folded_to_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(file=Screen(), color_system=None)
    terminal.print(sessions_table(VIEW))
    assert isinstance(terminal.file, Screen)
    assert max(map(len, terminal.file.getvalue().splitlines())) <= 80


def test_no_line_in_a_pipe_is_filled_up_with_spaces() -> None:
    table = plain_table("member", "reason")
    table.add_row("cart-1", "")
    table.add_row("cart-2", "because " * 30)
    terminal = Terminal(file=io.StringIO())
    terminal.print(table, Text("end  "))
    assert isinstance(terminal.file, io.StringIO)
    assert all(line == line.rstrip() for line in terminal.file.getvalue().splitlines())


@pytest.mark.parametrize(
    "text", ["", "yes", "1:20", "- a: b", "größer\n\t", "\x1b[2J\u202e\ufeff", "# '\"", "word " * 50]
)
def test_yaml_holds_what_json_holds(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {text: text}
    view = {"texts": [text, texts], "same": (texts, texts), "state": ProcessState.RUNNING, "none": None, "half": 0.5}
    show("json", view, str)
    as_json = capsys.readouterr().out
    show("yaml", view, str)
    as_yaml = capsys.readouterr().out
    assert yaml.safe_load(as_yaml) == json.loads(as_json)
    assert as_yaml.isascii()
    assert "\x1b" not in as_yaml
    assert "word" not in text or text in as_yaml, "nothing is folded"


def test_names_come_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show("name", VIEW, sessions_table, lambda view: [row["key"] for row in view["sessions"]] + ["a\nb", 7])
    assert capsys.readouterr().out == f"{KEY}\na\\nb\n7\n"


def test_every_command_that_lists_or_shows_has_all_forms_of_output() -> None:
    for command in LISTING:
        assert command in COMMANDS
        assert "[table|json|yaml|name]" in CliRunner().invoke(cli, [command, "--help"]).output
    assert "[table|json|yaml|name]" in CliRunner().invoke(cli, ["checks", "list", "--help"]).output


@pytest.mark.parametrize("key", ["-abc", "--pools", "-", "-ojsonx", "-hello", "-o-", "--body-1", "a-b", "--k--"])
@pytest.mark.parametrize("others", [(), ("--body", "-o", "json", "--pool=cart"), ("-ojson", "--pool", "-x")])
def test_a_key_may_begin_with_a_dash(key: str, others: tuple[str, ...]) -> None:
    for arguments in ([key, *others], [*others, key], [*others, "--", key]):
        given = explain.make_context("explain", list(arguments)).params
        assert given["key"] == key
        assert given["output"] == ("json" if others else "table")


def test_a_key_that_reads_like_an_option_comes_after_two_dashes() -> None:
    assert explain.make_context("explain", ["-o", "json", "--", "-o"]).params["key"] == "-o"


def test_a_misspelt_option_beside_a_key_is_named() -> None:
    told = CliRunner().invoke(cli, ["explain", "key", "--bodi"])
    assert (told.exit_code, "No such option '--bodi'. Did you mean '--body'?" in told.stderr) == (2, True), told.stderr


@pytest.mark.parametrize("command", ["register", "report", "remove"])
def test_the_name_of_a_check_may_begin_with_a_dash(command: str) -> None:
    group = cli.get_command(click.Context(cli), "checks")
    assert isinstance(group, click.Group)
    assert isinstance(group.commands[command], KeyCommand)
