"""Trace ids that all processes derive alike, and the header that carries them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.telemetry.tracing.ids import TraceIds, TraceparentError, is_trace_id, trace_seed

ids = st.builds(TraceIds, st.integers(1, (1 << 128) - 1), st.integers(1, (1 << 64) - 1))
HEX = "0123456789abcdef"


def test_the_documented_example_never_changes():
    seed = trace_seed("cart", "takeover", "cart-2/b1")
    assert seed.traceparent == "00-bb8c83a3398aef43471b7891b8d71e5f-26a56fd11d99026e-01"
    assert seed.hex == "bb8c83a3398aef43471b7891b8d71e5f"


@given(st.text(), st.text(), st.text())
def test_equal_facts_give_equal_ids_and_they_survive_the_header(pool, kind, subject):
    seed = trace_seed(pool, kind, subject)
    assert seed == trace_seed(pool, kind, subject)
    assert TraceIds.from_traceparent(seed.traceparent) == seed


@given(*[st.tuples(st.text("ab/"), st.text("ab/"), st.text("ab/"))] * 2)
def test_different_facts_never_share_a_trace(one, other):
    assert (trace_seed(*one).hex == trace_seed(*other).hex) == (one == other)


@given(ids)
def test_any_ids_survive_the_header(some):
    assert TraceIds.from_traceparent(some.traceparent) == some
    assert is_trace_id(some.hex)


@given(st.text() | st.text("0123456789abcdef-", max_size=60))
def test_any_text_is_read_as_the_header_it_is_or_refused_as_none(text):
    try:
        read = TraceIds.from_traceparent(text)
    except TraceparentError:
        return
    assert text[3:52] == read.traceparent[3:52]


GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "wrong layout"),
        (GOOD.upper(), "wrong layout"),
        (GOOD[:-1], "wrong layout"),
        (f" {GOOD}", "wrong layout"),
        (f"{GOOD}\n", "wrong layout"),
        (f"{GOOD}-extra", "version 00 ends after its flags"),
        (f"ff{GOOD[2:]}", "version ff is forbidden"),
        (f"01{GOOD[2:]}extra", "wrong layout"),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", "an id of zeros"),
        (f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01", "an id of zeros"),
    ],
)
def test_what_is_no_traceparent_is_refused_with_its_reason(text, reason):
    with pytest.raises(TraceparentError, match=reason):
        TraceIds.from_traceparent(text)


@pytest.mark.parametrize("text", [GOOD, GOOD[:-2] + "00", f"01{GOOD[2:]}", f"cc{GOOD[2:]}-what-comes-later"])
def test_later_versions_and_any_flags_are_read(text):
    assert TraceIds.from_traceparent(text).hex == "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(("trace_id", "span_id"), [(0, 1), (1, 0), (1 << 128, 1), (1, 1 << 64), (-1, 1)])
def test_ids_out_of_range_cannot_be_made(trace_id, span_id):
    with pytest.raises(ValueError, match="out of range"):
        TraceIds(trace_id, span_id)


@pytest.mark.parametrize("text", ["", "0" * 32, "4bf92f3577b34da6a3ce929d0e0e473", "g" * 32, f"{'a' * 31}\n"])
def test_what_is_no_trace_id_is_told(text):
    assert not is_trace_id(text)
