"""The copy's side of a stream: what it takes in, what it confirms, and what its readers see."""

import pytest

from understudy.statesync.replication.history import History, version_of
from understudy.statesync.replication.messages import (
    At,
    Behind,
    Have,
    Lead,
    LoggedWrite,
    Part,
    Refused,
    Stored,
    Unsaved,
    Writes,
)
from understudy.statesync.replication.slot_copy import Entry, SlotCopy

SLOT = 7


def v(text: str) -> int:
    epoch, index = text.split(".")
    return version_of(int(epoch), int(index))


def history(*ends: str) -> History:
    return tuple(v(end) for end in ends)


def write(text: str) -> LoggedWrite:
    return LoggedWrite("key", text.encode())


def writes(after: str, first: str, *texts: str, shown: str = "0.0", saved: str = "0.0", epoch: int = 2) -> Writes:
    return Writes(SLOT, epoch, v(after), v(first), tuple(write(text) for text in texts), v(shown), v(saved))


def copy_at(*ends: str, shown: str = "0.0", epoch: int = 2, whole: bool = True) -> SlotCopy:
    """A copy that follows the active of ``epoch`` and has the history up to ``ends``."""
    copy = SlotCopy(SLOT, history=history(*ends), shown=v(shown), whole=whole)
    copy.lead(Lead(SLOT, epoch, history(*ends)))
    return copy


def test_writes_are_confirmed_at_once_and_shown_when_they_are_acknowledged() -> None:
    copy = copy_at("2.1", shown="2.1")
    assert copy.writes(writes("2.1", "2.2", "a", "b")) == (Have(SLOT, 2, v("2.3")), [])
    answer, visible = copy.writes(writes("2.3", "2.4", "c", shown="2.3"))
    assert answer == Have(SLOT, 2, v("2.4"))
    assert visible == [Entry(v("2.2"), write("a")), Entry(v("2.3"), write("b"))]


def test_a_message_without_writes_only_tells_what_is_acknowledged() -> None:
    copy = copy_at("2.1", shown="2.1")
    copy.writes(writes("2.1", "2.2", "a"))
    _, visible = copy.writes(writes("2.2", "0.0", shown="2.2"))
    assert [entry.version for entry in visible] == [v("2.2")]


def test_what_is_acknowledged_beyond_the_copy_is_shown_when_it_comes() -> None:
    copy = copy_at("2.1", shown="2.1")
    assert copy.writes(writes("2.1", "0.0", shown="2.9"))[1] == []
    _, visible = copy.writes(writes("2.1", "2.2", "a"))
    assert visible == []  # the next message says again how far it is


@pytest.mark.parametrize("message", [writes("2.2", "2.3", "a"), writes("2.0", "2.1", "a"), writes("1.1", "2.2", "a")])
def test_a_gap_or_an_overlap_is_not_taken_in(message: Writes) -> None:
    copy = copy_at("2.1", shown="2.1")
    assert copy.writes(message) == (Behind(SLOT, 2), [])
    assert copy.have == v("2.1")


def test_messages_of_an_epoch_that_is_over_are_refused() -> None:
    copy = copy_at("2.1")
    copy.heard_of(4)
    refused = Refused(SLOT, 2, 4)
    assert copy.writes(writes("2.1", "2.2", "a")) == (refused, [])
    assert copy.part(Part(SLOT, 2, v("2.1"), history("2.1"), (), first=True, last=True)) == refused
    assert copy.lead(Lead(SLOT, 2, history("2.1"))) == refused
    assert copy.have == v("2.1")


def test_an_active_must_lead_before_it_writes() -> None:
    copy = copy_at("2.1")
    assert copy.writes(writes("2.1", "3.1", "a", epoch=3)) == (Behind(SLOT, 3), [])
    assert copy.lead(Lead(SLOT, 3, history("2.1"))) == At(SLOT, 3, v("2.1"), whole=True)
    assert copy.writes(writes("2.1", "3.1", "a", epoch=3))[0] == Have(SLOT, 3, v("3.1"))


def test_what_the_next_active_has_not_had_is_dropped() -> None:
    copy = copy_at("2.1", shown="2.1")
    copy.writes(writes("2.1", "2.2", "a", "b", "c"))
    assert copy.lead(Lead(SLOT, 3, history("2.2", "3.5"))) == At(SLOT, 3, v("2.2"), whole=True)
    assert [entry.version for entry in copy.pending] == [v("2.2")]
    _, visible = copy.writes(writes("2.2", "3.1", "d", shown="3.1", epoch=3))
    assert [entry.write.value for entry in visible] == [b"a", b"d"]


def test_a_copy_with_something_that_readers_saw_and_the_active_lacks_is_made_anew() -> None:
    copy = copy_at("2.3", shown="2.3")
    assert copy.lead(Lead(SLOT, 3, history("2.2"))) == At(SLOT, 3, v("2.2"), whole=False)


def test_a_copy_is_confirmed_when_its_last_part_is_there() -> None:
    copy = copy_at("1.9", shown="1.9", whole=False)
    copy.writes(writes("1.9", "2.1", "of another history"))
    first = Part(SLOT, 2, v("2.4"), history("1.5", "2.4"), (Stored("key", v("2.3"), b"x"),), first=True, last=False)
    assert copy.part(first) is None
    assert (copy.history, copy.shown, list(copy.pending)) == (history("1.5", "2.4"), v("2.4"), [])
    assert copy.writes(writes("2.4", "2.5", "a"))[0] is None
    assert copy.part(Part(SLOT, 2, v("2.5"), (), (), first=False, last=True)) == Have(SLOT, 2, v("2.5"))
    assert copy.writes(writes("2.5", "2.6", "b"))[0] == Have(SLOT, 2, v("2.6"))


def test_a_copy_in_one_part() -> None:
    copy = copy_at()
    part = Part(SLOT, 2, v("2.0"), history("2.0"), (), first=True, last=True)
    assert copy.part(part) == Have(SLOT, 2, v("2.0"))


def test_who_becomes_active_begins_with_what_it_does_not_know_to_be_acknowledged() -> None:
    copy = copy_at("2.1", shown="2.1")
    copy.writes(writes("2.1", "2.2", "a", "b"))
    copy.writes(writes("2.3", "0.0", shown="2.2"))
    assert copy.become_active() == [Entry(v("2.3"), write("b"))]


def unsaved(copy: SlotCopy) -> list[int]:
    return [write.version for write in copy.unsaved]


def test_a_copy_knows_what_it_would_have_to_save() -> None:
    copy = copy_at("2.1", shown="2.1")
    copy.writes(writes("2.1", "2.2", "a", "b", "c", shown="2.3"))
    assert copy.unsaved == [Unsaved(v("2.2"), "key"), Unsaved(v("2.3"), "key")]
    copy.writes(writes("2.4", "0.0", shown="2.4", saved="2.2"))
    assert (copy.saved, unsaved(copy)) == (v("2.2"), [v("2.3"), v("2.4")])
    copy.writes(writes("2.4", "2.5", "d", shown="2.5", saved="2.5"))
    assert (copy.saved, unsaved(copy)) == (v("2.5"), [])
    copy.writes(writes("2.5", "2.6", "e", shown="2.6", saved="2.4"))
    assert (copy.saved, unsaved(copy)) == (v("2.5"), [v("2.6")]), "what was saved stays saved"


def test_a_copy_keeps_the_outcome_with_what_it_would_have_to_save() -> None:
    copy = copy_at("2.1", shown="2.1")
    refusal = LoggedWrite("", None, b"refused")
    copy.writes(Writes(SLOT, 2, v("2.1"), v("2.2"), (refusal,), v("2.2")))
    assert copy.unsaved == [Unsaved(v("2.2"), "", b"refused")]


def test_the_first_part_tells_what_is_not_saved_yet() -> None:
    copy = copy_at("1.9", shown="1.9")
    copy.writes(writes("1.9", "2.1", "of another history", shown="2.1"))
    told = (Unsaved(v("2.4"), "key", b"outcome"),)
    told_first = {"saved": v("2.3"), "unsaved": told}
    first = Part(SLOT, 2, v("2.4"), history("2.4"), (), first=True, last=False, **told_first)
    copy.part(first)
    copy.part(Part(SLOT, 2, v("2.4"), (), (), first=False, last=True))
    assert (copy.have, copy.saved, copy.unsaved) == (v("2.4"), v("2.3"), [*told])


def test_after_etcd_was_set_back_every_session_that_readers_may_see_has_to_be_saved_again() -> None:
    copy = copy_at("2.4", shown="2.4")
    copy.saved, copy.unsaved = v("2.3"), [Unsaved(v("2.4"), "d", b"outcome")]
    copy.nothing_saved([(v("2.4"), "d"), (v("2.1"), "a"), (v("2.9"), "later")])
    assert (copy.saved, copy.unsaved) == (v("2.1") - 1, [Unsaved(v("2.1"), "a"), Unsaved(v("2.4"), "d", b"outcome")])


def test_sessions_that_an_etcd_has_again_are_removed_again() -> None:
    copy = copy_at("2.4", shown="2.4")
    copy.saved = v("2.4")
    copy.nothing_saved([])
    assert (copy.saved, copy.set_back) == (v("2.4"), True)
    copy.removed(["gone"])
    assert (copy.saved, copy.unsaved, copy.set_back) == (v("2.3"), [Unsaved(v("2.4"), "gone")], False)
