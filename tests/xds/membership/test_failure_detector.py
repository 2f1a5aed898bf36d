import pytest

from understudy.statesync.pool.records import Member, MemberState
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.member_health import SECOND, Death, LivenessState, MemberChange, Probe, ProbeOutcome

MS = SECOND // 1000
UP = MemberState.UP


def member(name: str, boot: str = "one", state: MemberState = UP) -> Member:
    return Member(name, boot, app="127.0.0.1:1", peer=f"{name}:2", state=state)


def ask(name: str, boot: str = "one", patience: int = 500 * MS) -> Probe:
    return Probe(name, boot, f"{name}:2", patience)


class Story:
    """A failure detector, and the time that passes in it."""

    def __init__(self, *names: str) -> None:
        self.changes: list[MemberChange] = []
        self.detector = FailureDetector(on_change=self.changes.append)
        self.now = 1_000 * SECOND
        self.members = {name: member(name) for name in names}
        self.owning: set[tuple[str, str]] = set()
        self.record()

    def record(self) -> None:
        self.detector.update_records(self.members.values(), self.owning, self.now)

    def beat(self, *names: str, state: MemberState = UP, boot: str = "one") -> None:
        for name in names:
            self.detector.on_beat(hash(name), name, boot, state, self.now)

    def miss(self, witness: str, name: str, boot: str = "one", *, runs: bool = False) -> None:
        """``witness`` says that it misses a pulse, or that it feels it."""
        self.detector.on_beat(hash(witness), witness, "one", UP, self.now, pulses={(name, boot): runs})

    def close(self, name: str, boot: str = "one") -> None:
        self.detector.on_stream_closed(hash(name), name, boot, self.now)

    def pass_time(self, seconds: float, *beating: str) -> list[Probe]:
        asked: list[Probe] = []
        for _ in range(round(seconds * 10)):
            self.now += 100 * MS
            self.beat(*beating)
            asked += self.detector.due_probes(self.now)
        return asked

    def answer(self, probe: Probe, result: ProbeOutcome, boot: str = "") -> None:
        self.detector.on_probe_outcome(probe, result, self.now, boot=boot)

    def liveness(self, name: str, boot: str = "one") -> LivenessState:
        return self.detector.members[name, boot].liveness


def test_a_closed_stream_is_only_a_suspicion_and_is_probed_at_once():
    story = Story("a", "b")
    story.beat("a", "b")
    story.close("a")

    assert story.detector.due_probes(story.now) == (ask("a"),)
    assert story.liveness("a") is LivenessState.SUSPECT
    assert not story.detector.death_of("a", "one")


@pytest.mark.parametrize(
    ("result", "boot", "liveness"),
    [
        (ProbeOutcome.REFUSED, "", LivenessState.LOST),
        (ProbeOutcome.SILENT, "", LivenessState.LOST),
        (ProbeOutcome.ANSWERED, "two", LivenessState.LOST),
        (ProbeOutcome.ANSWERED, "one", LivenessState.SUSPECT),
        (ProbeOutcome.VOID, "", LivenessState.SUSPECT),
    ],
)
def test_the_probe_decides_about_a_suspect(result, boot, liveness):
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.close("a")
    story.detector.due_probes(story.now)
    story.answer(ask("a"), result, boot)

    assert story.liveness("a") is liveness


def test_a_beat_settles_a_suspicion():
    story = Story("a")
    story.beat("a")
    story.close("a")
    story.beat("a")
    story.answer(ask("a"), ProbeOutcome.REFUSED)

    assert story.liveness("a") is LivenessState.ALIVE


def test_a_stream_stays_open_while_another_one_of_the_same_boot_is_there():
    story = Story("a")
    story.detector.on_beat(1, "a", "one", UP, story.now)
    story.detector.on_beat(2, "a", "one", UP, story.now)
    story.detector.on_stream_closed(1, "a", "one", story.now)

    assert story.liveness("a") is LivenessState.ALIVE


def test_missed_beats_make_a_suspect():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")

    assert story.pass_time(0.2, "b") == []
    assert story.pass_time(0.1, "b") == [ask("a")]


def test_a_member_whose_beats_tell_of_load_is_given_more_time_up_to_a_cap():
    story = Story("a", "b", "c")
    story.pass_time(0.5, "a", "b", "c")
    story.detector.on_beat(hash("a"), "a", "one", UP, story.now, stall=200 * MS)
    story.detector.on_beat(hash("b"), "b", "one", UP, story.now, stall=60 * SECOND)

    assert story.pass_time(0.8, "c") == []
    assert story.pass_time(0.1, "c") == [ask("a", patience=1100 * MS)]
    assert story.pass_time(1.3, "c") == []
    assert story.pass_time(0.1, "c") == [ask("b", patience=2500 * MS)]


def test_a_pool_is_late_when_most_of_its_members_are_and_others_hear_of_it():
    story = Story("a", "b", "c")
    story.pass_time(0.5, "a", "b", "c")
    before = len(story.changes)
    told = []
    for name in "abc":
        story.detector.on_beat(hash(name), name, "one", UP, story.now, stall=300 * MS)
        told.append((story.detector.most_late, len(story.changes) - before))
    assert told == [(False, 1), (True, 2), (True, 3)]

    story.beat("a")
    story.close("b")
    assert not story.detector.most_late, "a is in time again, and of b nothing is heard"


def test_silence_and_a_missed_pulse_condemn_without_a_probe_and_load_grants_nothing():
    story = Story("a", "b", "c")
    story.pass_time(0.5, "a", "b", "c")
    story.detector.on_beat(hash("a"), "a", "one", UP, story.now, stall=60 * SECOND)
    story.pass_time(0.2, "b", "c")
    story.miss("b", "a")
    story.detector.due_probes(story.now)
    assert story.liveness("a") is LivenessState.ALIVE, "its beats are not overdue"

    story.now += 100 * MS
    story.miss("b", "a")
    assert story.detector.due_probes(story.now) == ()
    assert story.detector.death_of("a", "one").cause == "silent, and b misses its pulse"


def test_a_member_whose_pulse_is_felt_has_as_long_as_an_application_to_answer_a_probe():
    story = Story("a", "b", "c")
    story.pass_time(0.5, "a", "b", "c")
    story.pass_time(0.2, "b", "c")
    story.now += 100 * MS
    story.miss("b", "a", runs=True)
    assert story.detector.due_probes(story.now) == (ask("a", patience=2000 * MS),)


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
        story.detector.due_probes(story.now)
        story.answer(ask("b"), ProbeOutcome.REFUSED)
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
        story.detector.due_probes(story.now)

    assert not story.detector.death_of("a", "one")


def test_a_suspect_that_answers_is_asked_again_every_second_until_it_is_heard():
    story = Story("a", "b")
    story.beat("a", "b")
    story.close("a")
    story.detector.due_probes(story.now)
    story.answer(ask("a"), ProbeOutcome.ANSWERED, "one")

    assert story.pass_time(0.9, "b") == []
    assert story.pass_time(0.2, "b") == [ask("a")]
    assert story.pass_time(3, "b") == [], "the open probe is not asked twice"


def test_the_last_sign_of_life_and_the_cause_are_kept_for_the_trace():
    story = Story("a", "b")
    story.beat("a", "b")
    last_sign = story.now
    story.now += 40 * MS
    story.close("a")
    story.detector.due_probes(story.now)
    story.now += 2 * MS
    story.answer(ask("a"), ProbeOutcome.REFUSED)

    lost = story.detector.death_of("a", "one")
    assert lost is not None
    assert (lost.last_sign, lost.found) == (last_sign, story.now)
    assert lost.cause == "connection refused at a:2"


def test_who_was_never_heard_is_trusted_however_silent_he_is():
    story = Story("a", "b", "c")

    assert set(story.pass_time(2.1)) == {ask("a"), ask("b"), ask("c")}
    for name in ("a", "b", "c"):
        story.answer(ask(name), ProbeOutcome.SILENT)
    story.pass_time(60)

    assert {story.liveness(name) for name in ("a", "b", "c")} == {LivenessState.TRUSTED}


def test_who_was_never_heard_is_lost_when_his_host_says_so():
    story = Story("a", "b")
    story.pass_time(2.1, "b")
    story.answer(ask("a"), ProbeOutcome.REFUSED)

    assert story.detector.death_of("a", "one")


def test_silence_does_not_count_while_everybody_is_silent():
    story = Story("a", "b", "c")
    story.pass_time(0.5, "a", "b", "c")
    asked = story.pass_time(1.2)
    for probe in asked:
        story.answer(probe, ProbeOutcome.SILENT)

    assert len(asked) == 3
    assert all(story.liveness(name) is LivenessState.SUSPECT for name in ("a", "b", "c"))


def test_silence_counts_for_one_among_many_and_in_a_pool_of_one():
    for others in ([], ["b"]):
        story = Story("a", *others)
        story.pass_time(0.5, "a", *others)
        asked = story.pass_time(1.2, *others)
        for probe in asked:
            story.answer(probe, ProbeOutcome.SILENT)

        assert asked == [ask("a")]
        assert story.detector.death_of("a", "one")


def test_time_in_which_this_server_stood_still_is_nobodys_silence():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.now += 20 * SECOND

    assert story.detector.due_probes(story.now) == ()
    assert story.pass_time(0.2) == []
    assert len(story.pass_time(0.1)) == 2


def test_who_was_late_itself_is_more_patient_with_everybody():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.now += 200 * MS
    story.beat("a", "b")

    assert story.detector.due_probes(story.now) == ()
    assert story.pass_time(0.5, "b") == []
    assert story.pass_time(0.1, "b") == [ask("a", patience=800 * MS)]


def test_a_vanished_record_of_an_owner_is_a_suspicion():
    story = Story("a", "b")
    story.owning = {("a", "one")}
    story.record()
    del story.members["a"]
    story.record()

    assert story.detector.due_probes(story.now) == (ask("a"),)
    story.answer(ask("a"), ProbeOutcome.ANSWERED, "one")
    assert not story.detector.death_of("a", "one")
    story.pass_time(1.1)
    story.answer(ask("a"), ProbeOutcome.SILENT)
    assert story.detector.death_of("a", "one")


def test_a_vanished_record_says_nothing_against_beats_that_arrive():
    story = Story("a", "b")
    story.owning = {("a", "one")}
    story.pass_time(0.5, "a", "b")
    del story.members["a"]
    story.record()

    assert story.pass_time(20, "a", "b") == []
    assert story.liveness("a") is LivenessState.ALIVE


def test_who_left_in_order_is_forgotten():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.close("a")
    del story.members["a"]
    story.record()

    assert ("a", "one") not in story.detector.members


def test_an_owner_of_whom_nothing_is_known_has_five_seconds_to_come_back():
    story = Story("b")
    story.owning = {("a", "one")}
    story.record()

    story.pass_time(4.9, "b")
    assert not story.detector.death_of("a", "one")
    story.pass_time(0.2, "b")
    assert story.detector.death_of("a", "one")


def test_an_owner_of_whom_nothing_is_known_comes_back():
    story = Story("b")
    story.owning = {("a", "one")}
    story.record()
    story.pass_time(4, "b")
    story.members["a"] = member("a")
    story.record()
    story.pass_time(10, "b", "a")

    assert story.liveness("a") is LivenessState.ALIVE


def test_a_new_boot_in_the_record_ends_the_old_one_that_owned_slots():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.owning = {("a", "one")}
    story.close("a")
    story.members["a"] = member("a", "two", MemberState.INIT)
    story.record()

    assert story.detector.death_of("a", "one").cause == "restarted: boot two is registered"
    assert story.liveness("a", "two") is LivenessState.TRUSTED


def test_a_lost_boot_that_beats_again_counts_after_a_second():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.close("a")
    story.detector.due_probes(story.now)
    story.answer(ask("a"), ProbeOutcome.SILENT)
    story.pass_time(5, "b")

    story.pass_time(0.9, "a", "b")
    assert story.liveness("a") is LivenessState.LOST
    story.pass_time(0.3, "a", "b")
    assert story.liveness("a") is LivenessState.ALIVE


def test_what_a_beat_says_of_the_state_counts_at_once_and_only_while_the_stream_is_open():
    story = Story("a")
    story.beat("a")
    story.changes.clear()
    story.beat("a", state=MemberState.DOWN)

    (change,) = story.changes
    assert (change.after.state, change.death) == (MemberState.DOWN, None)
    assert story.detector.state_of(story.members["a"]) is MemberState.DOWN
    story.close("a")
    assert story.detector.state_of(story.members["a"]) is UP


def test_beats_that_say_nothing_new_change_nothing_for_others():
    story = Story("a", "b")
    story.beat("a", "b")
    story.changes.clear()
    story.pass_time(5, "a", "b")

    assert story.changes == []


def test_a_death_is_passed_on_once_with_all_that_is_known_of_it():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    last_sign = story.now
    story.now += 40 * MS
    closed = story.now
    story.close("a")
    story.detector.due_probes(story.now)
    story.now += 2 * MS
    found = story.now
    story.answer(ask("a"), ProbeOutcome.REFUSED)
    story.pass_time(3, "b")

    (death,) = [change.death for change in story.changes if change.death]
    assert death == Death("one", "connection refused at a:2", last_sign, found, closed, doubt=found - last_sign)
    assert story.detector.death_of("a", "one") == death


def test_a_death_stays_as_it_was_found_until_the_member_counts_as_alive_again():
    story = Story("a", "b")
    story.pass_time(0.5, "a", "b")
    story.close("a")
    story.detector.due_probes(story.now)
    story.answer(ask("a"), ProbeOutcome.REFUSED)
    death = story.detector.death_of("a", "one")

    story.pass_time(0.9, "a", "b")
    assert story.detector.death_of("a", "one") == death
    story.changes.clear()
    story.pass_time(0.3, "a", "b")
    assert story.detector.death_of("a", "one") is None
    (back,) = story.changes
    assert (back.death, back.before.death) == (None, death)
