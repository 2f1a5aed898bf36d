"""Busy is not dead: what is remembered of delays, what is told of them, and how much time they buy."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.heartbeat.adaptive_timeout import Delays, adaptive_timeout, stall_step
from understudy.statesync.heartbeat.heartbeat import Beat, BeatReader
from understudy.statesync.pool.records import MemberState


def test_the_worst_delay_is_that_of_the_last_ten_seconds() -> None:
    delays = Delays()
    assert delays.worst == 0.0
    for late, now in ((0.3, 100.0), (0.1, 105.0), (0.2, 106.0)):
        delays.note(late, now)
    assert delays.worst == 0.3
    delays.note(0.0, 111.0)
    assert delays.worst == 0.2
    delays.note(0.0, 130.0)
    assert delays.worst == 0.0


def test_who_was_frozen_is_not_taken_for_busy_afterwards() -> None:
    delays = Delays()
    delays.note(0.1, 100.0)
    delays.note(4.0, 104.0)
    assert delays.worst == 0.1


@pytest.mark.parametrize(
    ("delay", "told"), [(0.0, 0.0), (0.04, 0.0), (0.06, 0.1), (0.16, 0.25), (0.4, 0.5), (0.6, 1.0), (30.0, 1.0)]
)
def test_a_record_tells_of_delays_in_steps_so_that_it_is_seldom_written(delay: float, told: float) -> None:
    assert stall_step(delay) == told


@pytest.mark.parametrize(("delay", "granted"), [(0.0, 0.5), (0.1, 0.8), (0.5, 2.0), (10.0, 2.5), (-1.0, 0.5)])
def test_who_was_late_is_given_three_times_that_on_top_up_to_a_cap(delay: float, granted: float) -> None:
    assert adaptive_timeout(0.5, delay, cap=2.0) == pytest.approx(granted)


def test_a_beat_tells_whose_pulses_are_taken_and_nonsense_is_refused() -> None:
    beat = Beat("cart", "cart-1", "boot", MemberState.UP, 7, pulses=[("cart-2", "its boot", False)])
    assert Beat.decode(beat.encode()).pulses == (("cart-2", "its boot", False),)
    for nonsense in ("cart-2", [["cart-2"]], [["cart-2", "boot", 7]], {"cart-2": True}, [7], [["a", "b", "c"]]):
        told = {**json.loads(beat.encode()), "pulses": nonsense}
        with pytest.raises(ValueError, match="pulses"):
            Beat.decode(json.dumps(told).encode())


beats = st.builds(
    Beat,
    pool=st.sampled_from(["cart", 'a "sent":1, b']),
    member=st.just("cart-1"),
    boot=st.just("b"),
    state=st.just(MemberState.UP),
    applied=st.integers(0, 2),
    reason=st.sampled_from(["", '"sent":7,', '"stall":0.5,"lacking":1,"sent":7,', "\\"]),
    stall=st.sampled_from([0.0, 0.003, 1.5, 7, 1e-05, 1e300]),
    lacking=st.integers(-1, 2),
    sent=st.integers(-1, 10**20) | st.sampled_from([0, 10, 10**17]),
    answers=st.booleans(),
)


@given(st.lists(beats, max_size=8), st.lists(st.binary(max_size=30), max_size=2))
def test_a_stream_of_beats_is_read_as_if_each_were_read_alone(sent: list[Beat], noise: list[bytes]):
    reader = BeatReader()
    for raw in [*(beat.encode() for beat in sent), *noise, *(beat.encode() for beat in sent)]:
        assert _read(reader.read, raw) == _read(Beat.decode, raw)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *((b'"sent":5', number) for number in (b"007", b"1e3", b"-1", b"1.0", b" 1", b"9" * 19, b"", b'1,"sent":2')),
        *(
            (b'"stall":0.0', number)
            for number in (b"00.1", b"1e3", b"-1.0", b"1", b"1.", b".5", b"", b'1.0,"stall":2.0')
        ),
        *((b'"lacking":0', number) for number in (b"007", b"-1", b"1.0", b"", b'1,"lacking":2')),
    ],
)
def test_a_beat_with_a_strange_number_is_not_read_by_the_one_before(name: bytes, number: bytes):
    plain = Beat("cart", "cart-1", "b", MemberState.UP, 1, sent=5).encode()
    reader = BeatReader()
    assert reader.read(plain).sent == 5
    assert reader.read(plain.replace(b'"sent":5', b'"sent":6')).sent == 6
    assert name in plain
    strange = plain.replace(name, name.partition(b":")[0] + b":" + number)
    assert _read(reader.read, strange) == _read(Beat.decode, strange)


def test_a_member_at_rest_on_a_busy_machine_has_its_beats_parsed_once(monkeypatch: pytest.MonkeyPatch):
    parsed = []
    decode = Beat.decode
    monkeypatch.setattr(Beat, "decode", lambda raw: parsed.append(raw) or decode(raw))
    rest = Beat("cart", "cart-1", "b", MemberState.UP, 1)
    reader = BeatReader()
    for number in range(9):
        beat = replace(rest, stall=number / 1000, lacking=number % 2, sent=number)
        assert reader.read(beat.encode()) == beat
    assert len(parsed) == 1


def _read(read: Callable[[bytes], Beat], raw: bytes) -> Beat | str:
    try:
        return read(raw)
    except (ValueError, TypeError) as error:
        return type(error).__name__
