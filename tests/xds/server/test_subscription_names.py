"""What a client wants and so is sent: names, wildcards, removals, reconnects, rule by rule (docs/xds.md)."""

import pytest

from tests.xds.server.talk import Incremental, Sotw, world
from understudy.xds.server import types
from understudy.xds.server.responses import ConfigStatus

CDS, EDS, RDS = types.CLUSTER, types.ENDPOINTS, types.ROUTES


def test_rule_09_sotw_wildcard_by_an_empty_first_request_and_what_ends_it():
    talk = Sotw(CDS, a="1", b="1")
    talk.ask()
    assert talk.names() == ["a", "b"]
    talk.ask("*")
    talk.change(a="1", b="2")
    assert talk.names() == ["a", "b"]
    talk.ask("*", "a")
    assert talk.names() == ["a", "b"]
    talk.ask("a")
    talk.change(a="1", b="3")
    assert talk.names() is None
    talk.change(a="2", b="3")
    assert talk.names() == ["a"]
    talk.ask()
    talk.change(a="3", b="4")
    assert talk.names() is None


@pytest.mark.parametrize("type_url", [EDS, RDS])
def test_rule_09_sotw_an_empty_first_request_of_other_types_wants_nothing(type_url: str):
    talk = Sotw(type_url, a="1")
    talk.ask()
    assert talk.names() is None


def test_rule_09_an_empty_wildcard_is_answered_with_an_empty_set():
    talk = Sotw(CDS)
    talk.ask()
    assert talk.names() == []
    assert talk.names() is None


def test_rule_10_delta_wildcard_and_names():
    talk = Incremental(a="1", b="1")
    talk.ask()
    assert talk.both() == (["a", "b"], [])
    talk.ask("a")
    assert talk.both() == (["a"], [])
    talk.ask(leave=("*",))
    talk.change(a="2", b="2")
    assert talk.both() == (["a"], [])


def test_rule_10_delta_a_first_request_with_names_is_no_wildcard():
    talk = Incremental(a="1", b="1")
    talk.ask("a")
    assert talk.both() == (["a"], [])
    talk.change(a="1", b="2", c="1")
    assert talk.both() is None


@pytest.mark.parametrize("left", ["a", "*"])
def test_rule_10_delta_a_first_request_that_only_leaves_something_is_no_wildcard(left: str):
    talk = Incremental(a="1", b="1")
    talk.ask(leave=(left,), held={"a": "1"})
    assert talk.both() is None
    talk.ask("b")
    assert talk.both() == (["b"], [])
    talk.change(a="2", b="1")
    assert talk.both() is None


def test_rule_12_sotw_a_newly_named_resource_is_sent_though_a_wildcard_answer_held_it():
    talk = Sotw(CDS, a="1", b="1")
    talk.ask()
    talk.answer()
    talk.ask("*", "a", version=talk.version)
    assert talk.names() == ["a", "b"]


def test_rule_12_delta_subscribing_again_is_answered_though_nothing_changed():
    talk = Incremental(a="1")
    talk.ask("a")
    talk.answer()
    talk.reply()
    talk.ask("a")
    assert talk.both() == (["a"], [])


def test_rule_13_unsubscribing_gets_no_answer_and_the_unknown_is_ignored():
    talk = Incremental(a="1")
    talk.ask("a")
    talk.answer()
    talk.ask(leave=("never",))
    talk.ask(leave=("a",))
    assert talk.both() is None
    talk.change(a="2")
    assert talk.both() is None


def test_rule_13_under_wildcard_and_name_the_resource_or_its_removal_is_said_again():
    talk = Incremental(a="1")
    talk.ask("*", "a", "gone")
    talk.answer()
    talk.ask(leave=("a",))
    assert talk.both() == (["a"], [])
    talk.ask(leave=("gone",))
    assert talk.both() == ([], ["gone"])


def test_rule_14_sotw_a_missing_name_is_sent_when_it_is_born():
    talk = Sotw(EDS)
    talk.ask("later")
    assert talk.names() is None
    talk.change(later="1", other="1")
    assert talk.names() == ["later"]


def test_rule_14_delta_a_missing_name_is_told_removed_and_sent_when_it_is_born():
    talk = Incremental()
    talk.ask("later")
    assert talk.both() == ([], ["later"])
    assert talk.both() is None
    talk.change(later="1")
    assert talk.both() == (["later"], [])


@pytest.mark.parametrize("names", [(), ("*",), ("same", "changed", "gone", "new")])
def test_rule_15_delta_reconnect_with_versions_brings_only_what_is_different(names: tuple[str, ...]):
    old = world(same="1", changed="1", gone="1")
    talk = Incremental(same="1", changed="2", new="1")
    talk.ask(*names, held={name: one.version for name, one in old.resources.items()})
    assert talk.both() == (["changed", "new"], ["gone"])


def test_rule_15_delta_reconnect_with_everything_unchanged_gets_nothing():
    talk = Incremental(a="1", b="1")
    talk.ask(held={name: one.version for name, one in talk.content.resources.items()})
    assert talk.both() is None
    assert talk.subscription.status is ConfigStatus.SYNCED


def test_rule_15_clients_that_hold_the_same_share_what_is_known_of_it():
    one, other, third = (Incremental(a="2") for _ in range(3))
    for talk, version in ((one, "1"), (other, "1"), (third, "0")):
        talk.ask(held={"a": version})
    assert one.subscription.offered is other.subscription.offered
    assert one.subscription.offered is not third.subscription.offered
    shared = one.subscription.offered
    for talk in (one, other):
        assert talk.both() == (["a"], [])
    late = Incremental(a="2")
    late.ask(held={"a": "1"})
    assert late.subscription.offered is shared


# Content


def test_rule_16_sotw_absence_deletes_clusters_and_nothing_is_said_of_endpoints():
    clusters, assignments = Sotw(CDS, a="1", b="1"), Sotw(EDS, a="1", b="1")
    clusters.ask()
    assignments.ask("a", "b")
    for talk in (clusters, assignments):
        talk.answer()
        talk.change(a="1")
    assert clusters.names() == ["a"]
    assert assignments.names() is None


def test_rule_16_sotw_endpoints_may_come_in_part():
    talk = Sotw(EDS, a="1", b="1")
    talk.ask("a", "b")
    talk.answer()
    talk.change(a="1", b="2")
    assert talk.names() == ["b"]


def test_rule_17_of_a_hundred_resources_one_changed_delta_sends_one():
    content = {f"r{number:03}": "1" for number in range(100)}
    talk = Incremental(**content)
    talk.ask()
    assert len(talk.both()[0]) == 100
    talk.change(**{**content, "r042": "2"})
    assert talk.both() == (["r042"], [])


def test_rule_20_a_renewed_name_is_sent_though_equal_and_an_unwanted_one_is_not():
    talk = Sotw(EDS, a="1", b="1")
    talk.ask("a")
    talk.answer()
    talk.subscription.renew(["a", "b"])
    assert talk.names() == ["a"]
    assert talk.names() is None


def test_rule_21_one_ack_covers_the_versions_before_it_and_a_missing_one_is_stale():
    talk = Sotw(CDS, a="1")
    talk.ask()
    talk.answer()
    talk.change(a="2")
    talk.answer()
    assert talk.subscription.status is ConfigStatus.STALE
    talk.ask(version=talk.version)
    assert talk.subscription.status is ConfigStatus.SYNCED
    assert not talk.subscription.unacknowledged
