"""A chain of audit records is whole, or the check says which record is not. Without etcd."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from understudy.statesync.audit.chain import ChainEnd, Mark, addition, number_in, verify
from understudy.statesync.audit.entry import TEXT_MOST, Act, Actor, Chain, Entry, seal, unseal
from understudy.statesync.etcd.client import Kv
from understudy.statesync.pool.keys import PoolKeys

KEYS = PoolKeys("cart")
CHAIN = Chain.OPERATORS
ANNA = Actor("anna", "ops-1", "drain, pid 7", "operator")
Stored = dict[str, Kv]


def log_of(count: int, *, first: int = 1) -> Stored:
    """A whole chain of ``count`` records, of which those before ``first`` were removed by retention."""
    stored: Stored = {}
    end = ChainEnd(Mark(), 0)
    for number in range(1, count + 1):
        act = Act(f"drain cart-{number}", undo=f"understudy undrain cart-{number}")
        new = addition(KEYS, CHAIN, end, ANNA, act, before=number, time_ms=1000 * number)
        revision = 10 * number
        for put in new.puts:
            created = stored[put.key].create_revision if put.key in stored else revision
            stored[put.key] = Kv(put.key, put.value, revision, created, 0)
        end = new.end(revision)
    if first > 1:
        removed = [stored.pop(record(number)) for number in range(1, first)]
        anchor = Mark(first - 1, unseal(removed[-1].value).digest)
        stored[KEYS.audit_anchor(CHAIN)] = Kv(KEYS.audit_anchor(CHAIN), anchor.encode(), 1, 1, 0)
    return stored


def record(number: int) -> str:
    return KEYS.audit_record(CHAIN, number)


def faults(stored: Stored) -> tuple[str, ...]:
    return verify(KEYS, CHAIN, stored).faults


@pytest.mark.parametrize(("count", "first"), [(0, 1), (1, 1), (5, 1), (5, 3), (5, 5), (5, 6)])
def test_a_whole_chain_has_no_faults(count: int, first: int) -> None:
    report = verify(KEYS, CHAIN, log_of(count, first=first))
    assert report.faults == ()
    assert (report.first, report.newest.number) == (first, count)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ([2], "record 2 is missing"),
        ([2, 3, 4], "records 2 to 4 are missing"),
        ([1], "record 1 is missing"),
        ([5], "record 5 is missing at the end"),
        ([4, 5], "records 4 to 5 are missing at the end"),
    ],
)
def test_missing_records_are_named(missing: list[int], said: str) -> None:
    stored = log_of(5)
    for number in missing:
        del stored[record(number)]
    assert faults(stored) == (said,)


def altered(stored: Stored, place: int, /, **fields: object) -> Stored:
    """The record at ``place`` with other fields, and with a digest that fits them."""
    kv = stored[record(place)]
    value, _ = seal(replace(unseal(kv.value).entry, **fields))
    return {**stored, kv.key: replace(kv, value=value)}


ALTERED = {
    "a byte of the record": lambda log: {
        **log,
        record(3): replace(log[record(3)], value=log[record(3)].value.replace(b"cart-3", b"cart-9")),
    },
    "no record at all": lambda log: {**log, record(3): replace(log[record(3)], value=b"{}")},
    "a digest that follows another record": lambda log: altered(log, 3, previous="0" * 64),
    "another number": lambda log: altered(log, 3, number=2),
    "another pool": lambda log: altered(log, 3, pool="toys"),
    "another chain": lambda log: altered(log, 3, chain=Chain.DECISIONS),
    "the same, but written again": lambda log: {**log, record(3): replace(log[record(3)], mod_revision=99)},
    "the same, but deleted and put back": lambda log: {
        **log,
        record(3): replace(log[record(3)], mod_revision=99, create_revision=99),
    },
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_record_is_named(how: str) -> None:
    assert faults(ALTERED[how](log_of(5)))[0].startswith("record 3 was altered: ")


def test_a_record_whose_digest_was_made_to_fit_no_longer_fits_the_next() -> None:
    assert faults(altered(log_of(5), 3, who="nobody")) == (
        "record 4 was altered: it does not follow the record before it",
    )
    assert faults(altered(log_of(5), 5, who="nobody")) == ("the end mark has another digest than record 5",)


def test_a_newest_record_that_cannot_be_read_is_one_fault() -> None:
    log = log_of(5)
    assert faults({**log, record(5): replace(log[record(5)], value=b"{}")}) == (
        "record 5 was altered: it is not an audit record",
    )


def test_marks_that_are_gone_or_wrong_are_faults() -> None:
    whole, kept = log_of(5), log_of(5, first=3)
    end, anchor = KEYS.audit_end(CHAIN), KEYS.audit_anchor(CHAIN)
    assert faults({key: kv for key, kv in whole.items() if key != end}) == ("the end mark is missing",)
    assert faults({**whole, end: replace(whole[end], value=Mark(3, "0" * 64).encode())}) == (
        "the end mark names record 3, but there is a record 5",
    )
    for mark in (b"?", Mark(-1, "").encode(), Mark(10**12, "").encode(), Mark(5, "x" * 64).encode()):
        found = faults({**whole, end: replace(whole[end], value=mark)})
        assert [one.partition(":")[0] for one in found] == ["the end mark cannot be read"]
    assert faults({key: kv for key, kv in kept.items() if key != anchor}) == ("records 1 to 2 are missing",)
    moved = {**kept, anchor: replace(kept[anchor], value=Mark(2, "0" * 64).encode())}
    assert faults(moved) == ("record 3 was altered: it does not follow the record before it",)


def test_the_chains_of_a_pool_do_not_mix() -> None:
    assert verify(KEYS, Chain.DECISIONS, log_of(5)).faults == ()
    assert verify(KEYS, Chain.DECISIONS, log_of(5)).newest.number == 0


@given(count=st.integers(1, 8), data=st.data())
def test_any_record_that_is_removed_or_changed_shows(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, count))
    stored = log_of(count, first=first)
    key = record(data.draw(st.integers(first, count)))
    if data.draw(st.booleans()):
        del stored[key]
    else:
        value = bytearray(stored[key].value)
        at = data.draw(st.integers(0, len(value) - 1))
        value[at] ^= data.draw(st.integers(1, 255))
        stored[key] = replace(stored[key], value=bytes(value))
    assert faults(stored)


@given(text=st.text(st.characters(exclude_categories=()), max_size=2000), value=st.binary(max_size=200))
def test_any_text_can_be_recorded_and_any_bytes_can_be_read(text: str, value: bytes) -> None:
    act = Act(text, text, text, text)
    actor = Actor(text, text, text, text)
    entry = Entry.of_act(act, actor, pool="cart", chain=CHAIN, number=1, previous="", before=0, time_ms=1)
    stored, digest = seal(entry)
    assert unseal(stored).entry == entry
    assert unseal(stored).digest == digest
    assert len(entry.what) <= TEXT_MOST
    with pytest.raises(ValueError, match=r"audit record|digest|JSON"):
        unseal(value)


def test_the_keys_of_records_are_in_the_order_of_their_numbers_and_no_process_watches_them() -> None:
    keys = [record(number) for number in (1, 2, 9, 10, 99_999, 100_000)]
    assert keys == sorted(keys)
    assert [number_in(key, KEYS.audit_records(CHAIN)) for key in keys] == [1, 2, 9, 10, 99_999, 100_000]
    every = [*keys, KEYS.audit_end(CHAIN), KEYS.audit_anchor(CHAIN)]
    assert not [key for key in every for part in KEYS.records if part.start <= key < part.end]
    assert all(KEYS.everything.start <= key < KEYS.everything.end for key in every)


@pytest.mark.parametrize("time_ms", [-1, 2**62])
def test_a_record_of_an_impossible_time_cannot_be_read(time_ms: int) -> None:
    log = log_of(5)
    assert faults(altered(log, 3, time_ms=time_ms))[0].startswith("record 3 was altered: time_ms")
