"""The drills that a page lists: their figures, and the commands that repeat them."""

import pytest

from tests.deploy.console.pools import NOW, a_pool
from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.console.acts import drill_preview
from understudy.deploy.console.drill_runs import outcome_of
from understudy.deploy.console.drills import DRILLS_SHOWN, by_hand, drill_rows, statement_rows
from understudy.deploy.console.wishes import DRILL, Wish
from understudy.deploy.drill.conditions import ClientView, DrillKind
from understudy.deploy.drill.settings import DrillResult, DrillSettings
from understudy.statesync.pool.spec_reader import parse_spec
from understudy.statesync.pool.state import At
from understudy.telemetry.slo.model import Failover

KILL = Failover("t1", "cart", False, 10**9, 40.0, source="cart-1", drill="kill", requests=900, failed=2, gap_ms=38.0)


def test_a_drill_shows_its_figures_and_what_was_not_measured():
    (row,) = drill_rows([KILL, Failover("t0", "cart", False, 2 * 10**9, 50.0)], "cart")
    assert (row["trace"], row["at"], row["drill"]) == ("t1", 1.0, "kill cart-1")
    assert (row["failed"], row["waited"], row["of_clients"]) == ("2 of 900", "38 ms", True)
    assert (row["lost"], row["needless"], row["missed"]) == ("not measured", "not measured", "")


def test_the_newest_come_first_and_there_is_an_end():
    many = [Failover(f"t{at}", "cart", False, at, None, drill="control") for at in range(DRILLS_SHOWN + 5)]
    rows = drill_rows(many, "cart")
    assert len(rows) == DRILLS_SHOWN
    assert rows[0]["trace"] == f"t{DRILLS_SHOWN + 4}"
    assert rows[0]["waited"] == "not measured"


@pytest.mark.parametrize(
    ("one", "command"),
    [
        (KILL, "understudy drill kill --member cart-1 --pool cart"),
        (Failover("t", "cart", False, 0, 1.0, source="a, b", drill="kill"), "understudy drill kill --pool cart"),
        (
            Failover("t", "cart", False, 0, 1.0, source="control-1", drill="control"),
            "understudy drill control --pool cart",
        ),
        (Failover("t", "cart", False, 0, 1.0, drill="kill", command="understudy drill it"), "understudy drill it"),
    ],
)
def test_a_drill_is_repeated_by_the_command_of_its_trace_or_by_what_is_known(one, command):
    assert drill_rows([one], "cart")[0]["command"] == command


@pytest.mark.parametrize(
    ("settings", "name", "command"),
    [
        (DrillSettings(DrillKind.KILL, rate=300), "cart-1", "kill --member cart-1 --load 300 --for 5s"),
        (DrillSettings(DrillKind.SITE, seconds=90.0), "east", "site --site east --for 90s"),
        (DrillSettings(DrillKind.CONTROL, seconds=1.0), "control-1", "control --for 1s"),
        (DrillSettings(DrillKind.ROLLING, rate=5), "all members", "rolling --load 5"),
        (
            DrillSettings(DrillKind.FREEZE, url="http://me:secret@h", command="ssh x kill {name}", undo="ssh x go"),
            "cart-2",
            "freeze --member cart-2 --for 5s --url URL --command COMMAND --undo UNDO",
        ),
    ],
)
def test_a_drill_keeps_the_command_that_repeats_it_without_what_may_be_secret(settings, name, command):
    assert settings.command_again("cart", name) == f"understudy drill {command} --pool cart"


def test_a_page_starts_the_drain_and_names_the_command_of_each_other_kind():
    told = {row["command"].split()[2] for row in by_hand("cart")}
    assert told == set(DrillKind) - {DrillKind.DRAIN}
    assert f"drill {DrillKind.DRAIN}" == DRILL


@pytest.mark.parametrize(
    ("seen", "missed", "text"),
    [
        (ClientView(900, 2), ("needless_moves: 3",), "Missed: needless_moves: 3. 2 of 900 requests failed, as front"),
        (ClientView(900, 0), (), "No objective was missed. 0 of 900 requests failed, as front Envoys report."),
        (ClientView(0, 0), (), "No objective was missed. Front Envoys reported no request, so no request could fail."),
    ],
)
def test_a_drill_says_how_it_ended(seen, missed, text):
    assert outcome_of(DrillResult(DrillKind.DRAIN, "cart-1", 1.0, 9.0, seen, missed, ())).startswith(text)


def test_the_preview_of_a_drill_says_what_the_drain_would_do_and_for_how_long():
    told = drill_preview(a_pool(slots=9), None, Wish(DRILL, "cart-1", "10s"), NOW)
    assert told["command"] == "understudy drill drain --member cart-1 --for 10s --pool cart"
    assert told["effect"][0] == "cart-1 would hand over 3 slots (0, 3, 6). No request fails."
    assert told["effect"][2].startswith("10 s after that it is brought back")
    with pytest.raises(NegativeAnswer, match="no member 'cart-9'"):
        drill_preview(a_pool(), None, Wish(DRILL, "cart-9"), NOW)


def test_the_statement_names_the_drill_of_each_failure():
    rows = {row["failure"]: row for row in statement_rows([KILL], "cart")}
    assert rows["member"]["waited"] == "worst 38 ms (1 drill); p99 not yet shown"
    assert rows["site"]["command"] == "understudy drill site --load 300 --pool cart"
    assert rows["witness"]["command"] == "understudy drill witness --load 300 --pool cart"


def test_a_drill_of_a_tcp_pool_is_refused_with_the_command_that_can_measure_it():
    pool = a_pool()
    pool.spec = At(parse_spec("pool: cart\nslots: 8\nprotocol: tcp\n", where="pool.yaml"), 1)
    with pytest.raises(NegativeAnswer, match="understudy drill drain --member cart-1 --load N --pool cart"):
        drill_preview(pool, None, Wish(DRILL, "cart-1"), NOW)
