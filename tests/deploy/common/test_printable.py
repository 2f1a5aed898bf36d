"""What reaches a terminal or a log has no control characters of others in it, and forges no line."""

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Group
from rich.text import Text

from understudy.deploy.cli.failures import Failure
from understudy.deploy.common.console_style import Terminal, plain_table
from understudy.deploy.common.options import show
from understudy.deploy.common.printable import LogFormatter, block, one_line, printable_view

HOSTILE = "cart-1\x1b[2J\x1b]0;owned\x07\r\n2026 ERROR forged \u202egnp.exe\u2066 [red]x[/bogus] \x9b31m \ud800 :smile:"
FORBIDDEN = "\x1b\x07\r\x9b\u202e\u2066\ud800"


def printed(*what: object, terminal: bool = True) -> str:
    console = Terminal(file=io.StringIO(), force_terminal=terminal, width=200, color_system=None)
    console.print(*what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_tables_texts_and_lines_show_control_characters_instead_of_obeying_them() -> None:
    table = plain_table("a", "b")
    table.add_row(HOSTILE, Text(HOSTILE, style="red"))
    for what in (table, Group(Text(HOSTILE), table), HOSTILE, Text.assemble(("a", "red"), HOSTILE)):
        shown = printed(what)
        assert not set(FORBIDDEN) & set(shown)
        assert "\\x1b[2J" in shown
        assert "[red]x[/bogus]" in shown


def test_a_view_is_drawn_without_control_characters_and_forges_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    view = {"members": [{"member": HOSTILE, HOSTILE: 1}], "count": 2}

    show("table", view, lambda view: Group(*(Text(str(one["member"])) for one in view["members"])))
    drawn = capsys.readouterr().out
    assert not set(FORBIDDEN) & set(drawn)
    assert not any(line.startswith("2026 ERROR") for line in drawn.splitlines())

    show("json", view, str)
    told = capsys.readouterr().out
    assert not set(FORBIDDEN) & set(told)
    assert json.loads(told) == view


def test_a_failed_command_says_so_in_its_own_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Failure(f"one\ntwo {HOSTILE[:20]}", 2).show()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "understudy: one"
    assert lines[1].startswith("understudy: two cart-1\\x1b[2J")


def test_a_log_record_is_one_line_and_its_traceback_is_indented() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LogFormatter())
    logger = logging.getLogger("tests.printable")
    logger.propagate = False  # pytest keeps what reaches the root logger, and its reports cannot carry a surrogate
    logger.addHandler(handler)

    logger.warning("member %s", HOSTILE)
    logger.error("failed", exc_info=ValueError(HOSTILE))

    first, second, *traceback = out.getvalue().splitlines()
    assert "member cart-1\\x1b[2J" in first
    assert second.endswith("failed")
    assert traceback
    assert all(line.startswith("  ") for line in traceback)
    assert not set(FORBIDDEN) & set(out.getvalue())


@given(st.text())
def test_whatever_the_text_it_can_be_printed(text: str) -> None:
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert one_line(shown) == shown
    assert block(text).split("\n") == [one_line(line) for line in text.split("\n")]
    assert printable_view({"a": [text, (text,)]}) == {"a": [shown, [shown]]}


@pytest.mark.parametrize("text", ["", "plain", "größer", "日本語", "tab\there", "emoji \U0001f600"])
def test_text_of_any_language_stays_as_it_is(text: str) -> None:
    assert one_line(text) == text
