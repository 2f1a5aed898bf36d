"""What a user reads: the waterfall in the terminal, and the same for machines."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.telemetry.support import TRACE, root, stored
from understudy.telemetry.slo.waterfall import PhaseTime, as_json, bar, phases, total_ms, waterfall

FACTS = {
    "understudy.pool": "cart",
    "understudy.from": "cart-2",
    "understudy.to": "cart-1, cart-3",
    "understudy.slots": 85,
    "understudy.cause": "killed",
}
TAKEOVER = [
    stored("claim", 12, 8, "cart-3"),
    stored("detect", 0, 10, "control-1"),
    root(100, attributes=FACTS),
    stored("claim", 10, 20, "cart-1"),
    stored("push", 30, 50, "control-1"),
]


def read(spans, width: int = 80, encoding: str = "utf-8") -> list[str]:
    """What the terminal shows, line by line."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=screen, width=width, color_system=None).print(waterfall(spans))
    screen.flush()
    return [line.rstrip() for line in screen.buffer.getvalue().decode(encoding).splitlines()]


def test_a_takeover_reads_from_top_to_bottom_at_80_columns():
    lines = read(TAKEOVER)
    assert lines == [
        "failover took 100.0 ms: cart, cart-2 -> cart-1, cart-3, 85 slots, killed",
        f"trace {TRACE}, began 2025-06-15 15:06:40.000 UTC",
        "who                phase       start ms        ms",
        f"control-1          failover         0.0     100.0 {'━' * 30}",
        "control-1          detect           0.0      10.0 ━━━",
        "cart-1             claim           10.0      20.0    ━━━━━━",
        "cart-3             claim           12.0       8.0     ━━",
        "control-1          push            30.0      50.0          ━━━━━━━━━━━━━━━",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_line_fits_the_terminal(width):
    assert max(len(line) for line in read(TAKEOVER, width)) <= width


def test_a_terminal_without_unicode_gets_plain_bars():
    assert read(TAKEOVER, encoding="ascii")[4].endswith("10.0 ===")


def test_without_its_root_a_trace_is_shown_and_called_unmeasured():
    lines = read([span for span in TAKEOVER if span.parent_id])
    assert lines[0] == "unmeasured: the root span is missing, so nobody recorded an end"
    assert [line.split()[1] for line in lines[3:]] == ["detect", "claim", "claim", "push"]


def test_a_root_that_gave_up_is_called_unmeasured():
    given_up = [root(10_000, attributes={**FACTS, "understudy.unmeasured": True})]
    assert read(given_up)[0].startswith("unmeasured: the failover had not ended after 10000.0 ms: cart,")
    assert total_ms(given_up) is None
    assert as_json(given_up)["measured"] is False


def test_a_root_that_knows_little_says_what_it_knows():
    assert read([root(5)])[0] == "failover took 5.0 ms"
    assert read([root(5, attributes={"understudy.from": "cart-2"})])[0] == "failover took 5.0 ms: from cart-2"


def test_the_requests_before_and_after_it_are_told_whole():
    last, first = (f"00-{letter * 32}-{letter * 16}-01" for letter in "ab")
    met = {"understudy.request.last": last, "understudy.request.first": first}
    assert read([root(5, attributes=met)])[2:4] == [f"request before  {last}", f"request after   {first}"]


def test_each_process_that_rejoined_is_told_after_the_phases_and_does_not_stretch_them():
    sent = {"slots": 43, "member": "cart-2", "copy.sessions": 7, "copy.bytes": 900, "copy.longest_ms": 250.5}
    attributes = {f"understudy.{name}": value for name, value in sent.items()}
    lines = read([root(10), stored("claim", 0, 10), stored("rejoin", 4_000, 300, "cart-3", attributes=attributes)])
    told = "copies for cart-2 from cart-3: 43 slots, 7 sessions, 900 bytes, longest slot 250.5 ms"
    assert told in " ".join(line.strip() for line in lines)
    claim = next(line for line in lines if " claim " in line)
    assert claim.count("━") > 20, "the axis is that of the failover"


def test_a_loss_is_told_with_the_slots_of_all_who_claimed():
    lost = {"understudy.losses": 3, "understudy.loss_seconds": 0.5}
    lines = read([root(10), stored("claim", 0, 5, attributes=lost), stored("claim", 0, 5, "cart-3", attributes=lost)])
    assert "6 slots had lost all copies and were restored from etcd" in " ".join(lines)
    assert "of the last 0.5 s may be missing" in " ".join(lines)
    assert "restored" not in " ".join(read([root(10), stored("claim", 0, 5, attributes={"understudy.losses": 0})]))


def test_a_failed_phase_says_why():
    lines = read([root(10), stored("claim", 0, 5, error="lost to cart-3")])
    assert lines[-1].strip() == "failed: lost to cart-3"


def test_names_from_outside_cannot_steer_the_terminal_or_break_the_columns():
    lines = read([root(10), stored("cl\x1b[2Jaim", 0, 5, "カート" * 10)])
    assert "\x1b" not in "".join(lines)
    assert lines[-1].startswith("カートカートカー~ ")
    assert lines[-1].endswith(" 5.0 ━━━━━━━━━━━━━━━")


def test_markup_in_names_is_shown_as_it_stands():
    assert "[bold]x[/nope]" in read([root(10, who="[bold]x[/nope]")])[3]


def test_no_spans_are_no_picture():
    assert read([]) == ["no spans"]
    assert as_json([])["measured"] is False


def test_phases_of_several_members_reach_from_first_start_to_last_end():
    assert phases(TAKEOVER) == {
        "detect": PhaseTime(0.0, 10.0, 1),
        "claim": PhaseTime(10.0, 20.0, 2),
        "push": PhaseTime(30.0, 50.0, 1),
    }
    assert total_ms(TAKEOVER) == 100.0
    assert phases([]) == {}


def test_the_machine_form_holds_the_same_as_json():
    read_back = json.loads(json.dumps(as_json(TAKEOVER), allow_nan=False))
    assert read_back["trace_id"] == TRACE
    assert (read_back["measured"], read_back["total_ms"]) == (True, 100.0)
    assert read_back["attributes"] == FACTS
    assert read_back["phases"]["claim"] == {"start_ms": 10.0, "duration_ms": 20.0, "count": 2}
    assert [(span["who"], span["name"]) for span in read_back["spans"]][:2] == [
        ("control-1", "failover"),
        ("control-1", "detect"),
    ]


@given(
    length=st.integers(1, 10**12),
    width=st.integers(10, 300),
    data=st.data(),
)
def test_bars_stay_on_the_axis_and_are_true_to_a_cell(length, width, data):
    start = data.draw(st.integers(0, length))
    duration = data.draw(st.integers(0, length - start))
    begin, cells = bar(start, duration, length, width)
    assert 0 <= begin < width
    assert 1 <= cells <= width - begin
    assert abs(cells - duration * width / length) <= 1.01
