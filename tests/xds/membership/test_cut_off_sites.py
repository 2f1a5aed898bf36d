"""The failure detector while a whole site is silent: its link may be cut, so etcd is asked before anybody is lost."""

import pytest

from understudy.statesync.pool.records import Member, MemberState
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.member_health import SECOND, LivenessState, Probe, ProbeOutcome

MS = SECOND // 1000
BOOT = "one"


class TwoSites:
    """A failure detector of a pool on two sites, and the time that passes in it."""

    def __init__(self, **sites: str) -> None:
        self.detector = FailureDetector()
        self.now = 1_000 * SECOND
        members = [
            Member(name, BOOT, "127.0.0.1:1", f"{name}:2", MemberState.UP, site=site) for name, site in sites.items()
        ]
        self.detector.update_records(members, (), self.now)

    def pass_time(self, seconds: float, *beating: str, misses: str = "") -> list[Probe]:
        """Let the members beat that are named; the first of them misses the pulse of another."""
        asked: list[Probe] = []
        for _ in range(round(seconds * 10)):
            self.now += 100 * MS
            for number, name in enumerate(beating):
                pulses = {(misses, BOOT): False} if misses and not number else {}
                self.detector.on_beat(hash(name), name, BOOT, MemberState.UP, self.now, pulses=pulses)
            asked += self.detector.due_probes(self.now)
        return asked

    def answer(self, asked: list[Probe], result: ProbeOutcome, boot: str = "") -> None:
        for probe in asked:
            self.detector.on_probe_outcome(probe, result, self.now, boot=boot)

    def liveness(self, name: str) -> LivenessState:
        return self.detector.members[name, BOOT].liveness


ALL = ("e1", "e2", "w1", "w2")


@pytest.fixture
def pool() -> TwoSites:
    made = TwoSites(e1="east", e2="east", w1="west", w2="west")
    made.pass_time(6, *ALL)
    return made


def test_a_missed_pulse_is_no_proof_while_the_whole_site_is_silent(pool: TwoSites) -> None:
    asked = pool.pass_time(0.4, "e1", "e2", misses="w1")
    assert {probe.member for probe in asked} == {"w1", "w2"}
    assert all(probe.etcd_timeout == 600 * MS for probe in asked)
    assert pool.liveness("w1") is pool.liveness("w2") is LivenessState.SUSPECT


@pytest.mark.parametrize(
    ("result", "liveness"),
    [
        (ProbeOutcome.THROUGH_ETCD, LivenessState.SUSPECT),
        (ProbeOutcome.VOID, LivenessState.SUSPECT),
        (ProbeOutcome.SILENT, LivenessState.LOST),
        (ProbeOutcome.REFUSED, LivenessState.LOST),
    ],
)
def test_what_a_member_says_through_etcd_decides(pool: TwoSites, result, liveness) -> None:
    pool.answer(pool.pass_time(0.4, "e1", "e2"), result)
    assert pool.liveness("w1") is liveness


def test_the_cause_of_a_death_says_that_etcd_was_asked(pool: TwoSites) -> None:
    pool.answer(pool.pass_time(0.4, "e1", "e2"), ProbeOutcome.SILENT)
    death = pool.detector.death_of("w1", BOOT)
    assert death is not None
    assert death.cause == "silent at w1:2 and through etcd"


def test_one_member_is_lost_at_once_while_another_one_of_its_site_is_heard(pool: TwoSites) -> None:
    assert pool.pass_time(0.3, "e1", "e2", "w2", misses="w1") == []
    assert pool.liveness("w1") is LivenessState.LOST


def test_silence_is_no_proof_if_the_rest_of_the_site_fell_silent_during_the_probe(pool: TwoSites) -> None:
    asked = pool.pass_time(0.3, "e1", "e2", "w2")
    assert [(probe.member, probe.etcd_timeout) for probe in asked] == [("w1", 0)]
    pool.pass_time(0.3, "e1", "e2")
    pool.answer(asked, ProbeOutcome.SILENT)
    assert pool.liveness("w1") is LivenessState.SUSPECT
    again = pool.pass_time(1.1, "e1", "e2")
    assert [(probe.member, bool(probe.etcd_timeout)) for probe in again] == [("w1", True)]


def test_a_link_that_carries_packets_again_proves_nothing_against_those_not_heard_yet(pool: TwoSites) -> None:
    pool.answer(pool.pass_time(0.4, "e1", "e2"), ProbeOutcome.THROUGH_ETCD)
    pool.answer(pool.pass_time(2.0, "e1", "e2"), ProbeOutcome.THROUGH_ETCD)
    asked = pool.pass_time(2.0, "e1", "e2", "w2", misses="w1")
    assert {(probe.member, bool(probe.etcd_timeout)) for probe in asked} == {("w1", True)}
    assert pool.liveness("w1") is LivenessState.SUSPECT


def test_a_member_that_is_heard_again_is_judged_as_any_other(pool: TwoSites) -> None:
    pool.answer(pool.pass_time(0.4, "e1", "e2"), ProbeOutcome.THROUGH_ETCD)
    pool.pass_time(6, *ALL)
    assert pool.liveness("w1") is LivenessState.ALIVE
    pool.pass_time(0.4, "e1", "e2", "w2", misses="w1")
    assert pool.liveness("w1") is LivenessState.LOST


def test_operators_read_that_only_etcd_reaches_the_member(pool: TwoSites) -> None:
    pool.answer(pool.pass_time(0.4, "e1", "e2"), ProbeOutcome.THROUGH_ETCD)
    assert "through etcd only" in pool.detector.members["w1", BOOT].explanation
    pool.pass_time(0.1, *ALL)
    assert pool.detector.members["w1", BOOT].explanation == ""


@pytest.mark.parametrize("sites", [{"a": "", "b": ""}, {"a": "east", "b": "east"}, {"a": "", "b": "west"}])
def test_members_without_another_site_are_judged_by_silence_alone(sites: dict[str, str]) -> None:
    pool = TwoSites(**sites)
    pool.pass_time(0.5, "a", "b")
    asked = pool.pass_time(0.4, "b")
    assert [(probe.member, probe.etcd_timeout) for probe in asked] == [("a", 0)]
    pool.answer(asked, ProbeOutcome.SILENT)
    assert pool.liveness("a") is LivenessState.LOST
