import pytest

from understudy.statesync.pool.records import Member, MemberState
from understudy.xds.membership.failure_detector import SECOND, Finding, LivenessBook, Question, Standing

MS = SECOND // 1000
UP = MemberState.UP


def member(name: str, boot: str = "one", state: MemberState = UP) -> Member:
    return Member(name, boot, app="127.0.0.1:1", peer=f"{name}:2", state=state)


def ask(name: str, boot: str = "one", patience: int = 500 * MS) -> Question:
    return Question(name, boot, f"{name}:2", patience)


class Story:
    """A book, and the time that passes in it."""

    def __init__(self, *names: str) -> None:
        self.book = LivenessBook()
        self.now = 1_000 * SECOND
        self.members = {name: member(name) for name in names}
        self.owning: set[tuple[str, str]] = set()
        self.record()

    def record(self) -> None:
        self.book.record(self.members.values(), self.owning, self.now)

    def beat(self, *names: str, state: MemberState = UP, boot: str = "one") -> None:
        for name in names:
            self.book.beat(hash(name), name, boot, state, self.now)

    def miss(self, witness: str, name: str, boot: str = "one", *, runs: bool = False) -> None:
        """``witness`` says that it misses a pulse, or that it feels it."""
        self.book.beat(hash(witness), witness, "one", UP, self.now, pulses={(name, boot): runs})

    def close(self, name: str, boot: str = "one") -> None:
        self.book.closed(hash(name), name, boot, self.now)

    def pass_time(self, seconds: float, *beating: str) -> list[Question]:
        asked: list[Question] = []
        for _ in range(round(seconds * 10)):
            self.now += 100 * MS
            self.beat(*beating)
            asked += self.book.due(self.now)
        return asked

    def answer(self, question: Question, finding: Finding, boot: str = "") -> None:
        self.book.answered(question, finding, self.now, boot=boot)

    def standing(self, name: str, boot: str = "one") -> Standing:
        return self.book.pulses[name, boot].standing


def test_a_closed_stream_is_only_a_suspicion_and_is_probed_at_once():
    story = Story("a", "b")
    story.beat("a", "b")
    story.close("a")

    assert story.book.due(story.now) == (ask("a"),)
    assert story.standing("a") is Standing.SUSPECT
    assert not story.book.lost("a", "one")


@pytest.mark.parametrize(
    ("finding", "boot", "standing"),
    [
        (Finding.REFUSED, "", Standing.LOST),
        (Finding.SILENT, "", Standing.LOST),
        (Finding.ANSWERED, "two", Standing.LOST),
        (Finding.ANSWERED, "one", Standing.SUSPECT),
        (Finding.VOID, "", Standing.SUSPECT),
    ],
)
def test_the_probe_decides_about_a_suspect(finding, boot, standing):
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.close("a")
    story.book.due(story.now)
    story.answer(ask("a"), finding, boot)

    assert story.standing("a") is standing


def test_a_beat_settles_a_suspicion():
    story = Story("a")
    story.beat("a")
    story.close("a")
    story.beat("a")
    story.answer(ask("a"), Finding.REFUSED)

    assert story.standing("a") is Standing.ALIVE


def test_a_stream_stays_open_while_another_one_of_the_same_boot_is_there():
    story = Story("a")
    story.book.beat(1, "a", "one", UP, story.now)
    story.book.beat(2, "a", "one", UP, story.now)
    story.book.closed(1, "a", "one", story.now)

    assert story.standing("a") is Standing.ALIVE


def test_missed_beats_make_a_suspect():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")

    assert story.pass_time(0.2, "b") == []
    assert story.pass_time(0.1, "b") == [ask("a")]


def test_a_member_whose_beats_tell_of_load_is_given_more_time_up_to_a_cap():
    story = Story("a", "b", "c")
    story.pass_time(0.5, "a", "b", "c")
    story.book.beat(hash("a"), "a", "one", UP, story.now, stall=200 * MS)
    story.book.beat(hash("b"), "b", "one", UP, story.now, stall=60 * SECOND)

    assert story.pass_time(0.8, "c") == []
    assert story.pass_time(0.1, "c") == [ask("a", patience=1100 * MS)]
    assert story.pass_time(1.3, "c") == []
    assert story.pass_time(0.1, "c") == [ask("b", patience=2500 * MS)]


def test_a_pool_is_late_when_most_of_its_members_are_and_others_hear_of_it():
    story = Story("a", "b", "c")
    story.pass_time(0.5, "a", "b", "c")
    heard = story.book.version
    told = []
    for name in "abc":
        story.book.beat(hash(name), name, "one", UP, story.now, stall=300 * MS)
        told.append((story.book.late, story.book.version - heard))
    assert told == [(False, 1), (True, 2), (True, 3)]

    story.beat("a")
    story.close("b")
    assert not story.book.late, "a is in time again, and of b nothing is heard"


def test_silence_and_a_missed_pulse_condemn_without_a_probe_and_load_grants_nothing():
    story = Story("a", "b", "c")
    story.pass_time(0.5, "a", "b", "c")
    story.book.beat(hash("a"), "a", "one", UP, story.now, stall=60 * SECOND)
    story.pass_time(0.2, "b", "c")
    story.miss("b", "a")
    story.book.due(story.now)
    assert story.standing("a") is Standing.ALIVE, "its beats are not overdue"

    story.now += 100 * MS
    story.miss("b", "a")
    assert story.book.due(story.now) == ()
    assert story.book.lost("a", "one").cause == "silent, and b misses its pulse"


def test_a_member_whose_pulse_is_felt_has_as_long_as_an_application_to_answer_a_probe():
    story = Story("a", "b", "c")
    story.pass_time(0.5, "a", "b", "c")
    story.pass_time(0.2, "b", "c")
    story.now += 100 * MS
    story.miss("b", "a", runs=True)
    assert story.book.due(story.now) == (ask("a", patience=2000 * MS),)


@pytest.mark.parametrize(
    "why",
    [
        "it beats itself",
        "the witness is silent too",
        "another boot",
        "taken back",
        "another one feels it",
        "the witness is lost",
    ],
)
def test_a_missed_pulse_alone_is_no_proof(why):
    story = Story("a", "b", "c")
    story.pass_time(0.5, "a", "b", "c")
    story.miss("b", "a", boot="before" if why == "another boot" else "one")
    if why == "the witness is lost":
        story.close("b")
        story.book.due(story.now)
        story.answer(ask("b"), Finding.REFUSED)
    for _ in range(9):
        story.now += 50 * MS
        if why == "the witness is lost":
            story.miss("b", "a")
        story.beat("c", *(["a"] if why == "it beats itself" else []))
        if why == "another one feels it":
            story.miss("b", "a")
            story.miss("c", "a", runs=True)
        if why in ("another boot", "taken back"):
            story.miss("b", "a", boot="before" if why == "another boot" else "never")
        story.book.due(story.now)

    assert not story.book.lost("a", "one")


def test_a_suspect_that_answers_is_asked_again_every_second_until_it_is_heard():
    story = Story("a", "b")
    story.beat("a", "b")
    story.close("a")
    story.book.due(story.now)
    story.answer(ask("a"), Finding.ANSWERED, "one")

    assert story.pass_time(0.9, "b") == []
    assert story.pass_time(0.2, "b") == [ask("a")]
    assert story.pass_time(3, "b") == [], "the open question is not asked twice"


def test_the_last_sign_of_life_and_the_cause_are_kept_for_the_trace():
    story = Story("a", "b")
    story.beat("a", "b")
    last_sign = story.now
    story.now += 40 * MS
    story.close("a")
    story.book.due(story.now)
    story.now += 2 * MS
    story.answer(ask("a"), Finding.REFUSED)

    lost = story.book.lost("a", "one")
    assert lost is not None
    assert (lost.last_sign, lost.lost_at) == (last_sign, story.now)
    assert lost.cause == "connection refused at a:2"


def test_who_was_never_heard_is_trusted_however_silent_he_is():
    story = Story("a", "b", "c")

    assert set(story.pass_time(2.1)) == {ask("a"), ask("b"), ask("c")}
    for name in ("a", "b", "c"):
        story.answer(ask(name), Finding.SILENT)
    story.pass_time(60)

    assert {story.standing(name) for name in ("a", "b", "c")} == {Standing.TRUSTED}


def test_who_was_never_heard_is_lost_when_his_host_says_so():
    story = Story("a", "b")
    story.pass_time(2.1, "b")
    story.answer(ask("a"), Finding.REFUSED)

    assert story.book.lost("a", "one")


def test_silence_does_not_count_while_everybody_is_silent():
    story = Story("a", "b", "c")
    story.pass_time(0.5, "a", "b", "c")
    asked = story.pass_time(1.2)
    for question in asked:
        story.answer(question, Finding.SILENT)

    assert len(asked) == 3
    assert all(story.standing(name) is Standing.SUSPECT for name in ("a", "b", "c"))


def test_silence_counts_for_one_among_many_and_in_a_pool_of_one():
    for others in ([], ["b"]):
        story = Story("a", *others)
        story.pass_time(0.5, "a", *others)
        asked = story.pass_time(1.2, *others)
        for question in asked:
            story.answer(question, Finding.SILENT)

        assert asked == [ask("a")]
        assert story.book.lost("a", "one")


def test_time_in_which_this_server_stood_still_is_nobodys_silence():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.now += 20 * SECOND

    assert story.book.due(story.now) == ()
    assert story.pass_time(0.2) == []
    assert len(story.pass_time(0.1)) == 2


def test_who_was_late_itself_is_more_patient_with_everybody():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.now += 200 * MS
    story.beat("a", "b")

    assert story.book.due(story.now) == ()
    assert story.pass_time(0.5, "b") == []
    assert story.pass_time(0.1, "b") == [ask("a", patience=800 * MS)]


def test_a_vanished_record_of_an_owner_is_a_suspicion():
    story = Story("a", "b")
    story.owning = {("a", "one")}
    story.record()
    del story.members["a"]
    story.record()

    assert story.book.due(story.now) == (ask("a"),)
    story.answer(ask("a"), Finding.ANSWERED, "one")
    assert not story.book.lost("a", "one")
    story.pass_time(1.1)
    story.answer(ask("a"), Finding.SILENT)
    assert story.book.lost("a", "one")


def test_a_vanished_record_says_nothing_against_beats_that_arrive():
    story = Story("a", "b")
    story.owning = {("a", "one")}
    story.pass_time(0.5, "a", "b")
    del story.members["a"]
    story.record()

    assert story.pass_time(20, "a", "b") == []
    assert story.standing("a") is Standing.ALIVE


def test_who_left_in_order_is_forgotten():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.close("a")
    del story.members["a"]
    story.record()

    assert ("a", "one") not in story.book.pulses


def test_an_owner_of_whom_nothing_is_known_has_five_seconds_to_come_back():
    story = Story("b")
    story.owning = {("a", "one")}
    story.record()

    story.pass_time(4.9, "b")
    assert not story.book.lost("a", "one")
    story.pass_time(0.2, "b")
    assert story.book.lost("a", "one")


def test_an_owner_of_whom_nothing_is_known_comes_back():
    story = Story("b")
    story.owning = {("a", "one")}
    story.record()
    story.pass_time(4, "b")
    story.members["a"] = member("a")
    story.record()
    story.pass_time(10, "b", "a")

    assert story.standing("a") is Standing.ALIVE


def test_a_new_boot_in_the_record_ends_the_old_one_that_owned_slots():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.owning = {("a", "one")}
    story.close("a")
    story.members["a"] = member("a", "two", MemberState.INIT)
    story.record()

    assert story.book.lost("a", "one").cause == "restarted: boot two is registered"
    assert story.standing("a", "two") is Standing.TRUSTED


def test_a_lost_boot_that_beats_again_counts_after_a_second():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.close("a")
    story.book.due(story.now)
    story.answer(ask("a"), Finding.SILENT)
    story.pass_time(5, "b")

    story.pass_time(0.9, "a", "b")
    assert story.standing("a") is Standing.LOST
    story.pass_time(0.3, "a", "b")
    assert story.standing("a") is Standing.ALIVE


def test_what_a_beat_says_of_the_state_counts_at_once_and_only_while_the_stream_is_open():
    story = Story("a")
    story.beat("a")
    before = story.book.version
    story.beat("a", state=MemberState.DOWN)

    assert story.book.version > before
    assert story.book.state_of(story.members["a"]) is MemberState.DOWN
    story.close("a")
    assert story.book.state_of(story.members["a"]) is UP


def test_beats_that_say_nothing_new_change_nothing_for_others():
    story = Story("a", "b")
    story.beat("a", "b")
    before = story.book.version
    story.pass_time(5, "a", "b")

    assert story.book.version == before
