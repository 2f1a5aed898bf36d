"""What a client says of what it has: versions, nonces and errors, rule by rule (docs/xds.md)."""

import pytest

from tests.xds.server.talk import Incremental, Sotw
from understudy.xds.server import types
from understudy.xds.server.responses import ConfigStatus

CDS, EDS, RDS = types.CLUSTER, types.ENDPOINTS, types.ROUTES


def test_rule_02_a_nonce_from_an_earlier_stream_is_not_stale_in_a_first_request():
    talk = Sotw(CDS, a="1")
    assert talk.ask(nonce="from-elsewhere").kind == "first"
    assert talk.names() == ["a"]


def test_rule_03_equal_content_has_equal_versions_whatever_its_order_and_history():
    one, other = Sotw(CDS, a="1", b="2"), Sotw(CDS, b="2", a="0")
    for talk in (one, other):
        talk.ask()
        talk.answer()
    assert one.version != other.version
    other.change(a="1", b="2")
    other.answer()
    assert one.version == other.version


def test_rule_04_a_reconnect_with_version_and_names_gets_nothing_and_with_other_names_an_answer():
    before = Sotw(EDS, a="1", b="2", c="3")
    before.ask("a", "b")
    before.answer()

    same, other = Sotw(EDS, a="1", b="2", c="3"), Sotw(EDS, a="1", b="2", c="3")
    same.ask("a", "b", version=before.version)
    other.ask("a", "c", version=before.version)
    assert same.names() is None
    assert same.subscription.status is ConfigStatus.SYNCED
    assert other.names() == ["a", "c"]


def test_rule_04_a_wildcard_reconnect_gets_nothing_until_something_changes():
    before = Sotw(CDS, a="1", b="2")
    before.ask()
    before.answer()
    after = Sotw(CDS, a="1", b="2")
    after.ask(version=before.version)
    assert after.names() is None
    after.change(a="1", b="3")
    assert after.names() == ["a", "b"]


@pytest.mark.parametrize("version", ["", "whatever"])
def test_rule_05_error_detail_makes_a_nack_whatever_the_version_says(version: str):
    talk = Sotw(CDS, a="1")
    talk.ask()
    talk.answer()
    outcome = talk.ask(version=version or talk.version, error="no")
    assert outcome.kind == "nack"
    assert talk.subscription.status is ConfigStatus.ERROR
    assert talk.subscription.acked_version == ""


def test_rule_05_without_error_detail_it_is_an_ack_whatever_the_version_says():
    talk = Sotw(CDS, a="1")
    talk.ask()
    talk.answer()
    assert talk.ask(version="odd").kind == "ack"
    assert talk.subscription.acked_version == talk.version


def test_rule_06_sotw_after_a_nack_nothing_goes_until_the_content_changes():
    talk = Sotw(CDS, a="1")
    talk.ask()
    talk.answer()
    talk.ask(version=talk.version)
    good = talk.version
    talk.change(a="bad")
    talk.answer()
    talk.ask(version=good, error="a is bad")
    assert talk.names() is None
    assert talk.names() is None
    assert (talk.subscription.acked_version, talk.subscription.error) == (good, "a is bad")
    talk.change(a="1")
    assert talk.names() == ["a"]
    talk.ask(version=talk.version)
    assert talk.subscription.status is ConfigStatus.SYNCED


def test_rule_06_sotw_after_a_nack_a_changed_subscription_is_answered():
    talk = Sotw(CDS, a="1", b="1")
    talk.ask("a", "b")
    talk.answer()
    talk.ask("b", error="a is bad")
    assert talk.names() == ["b"]


def test_rule_06_delta_other_content_goes_on_beside_what_was_refused():
    talk = Incremental(a="bad", b="1")
    talk.ask()
    talk.answer()
    talk.reply(error="a is bad")
    assert talk.both() is None
    talk.change(a="bad", b="1", c="1")
    assert talk.both() == (["c"], [])
    talk.reply()
    assert talk.subscription.status is ConfigStatus.ERROR


def test_rule_06_delta_what_was_refused_together_is_tried_again_together():
    talk = Incremental(a="bad", b="1")
    talk.ask()
    talk.answer()
    talk.reply(error="a is bad")
    talk.change(a="good", b="1")
    assert talk.both() == (["a", "b"], [])
    talk.reply()
    assert talk.subscription.status is ConfigStatus.SYNCED


def test_rule_06_delta_leaving_the_refused_name_brings_the_rest_of_its_answer():
    talk = Incremental(a="bad", b="1")
    talk.ask("a", "b")
    talk.answer()
    talk.reply(error="a is bad", unsubscribe=("a",))
    assert talk.both() == (["b"], [])


def test_rule_06_delta_a_late_nack_of_an_earlier_answer_is_not_lost():
    talk = Incremental(a="bad")
    talk.ask()
    talk.answer()
    first = talk.nonce
    talk.change(a="bad", b="1")
    talk.answer()
    talk.reply(nonce=first, error="a is bad")
    talk.reply()
    assert talk.subscription.status is ConfigStatus.ERROR
    assert talk.subscription.error == "a is bad"
    talk.change(a="good", b="1")
    assert talk.both() == (["a"], [])


def test_rule_06_delta_renewing_one_refused_name_forgets_not_the_others():
    talk = Incremental(a="bad", b="1")
    talk.ask("a", "b")
    talk.answer()
    talk.reply(error="a is bad")
    talk.subscription.renew(["a"])
    assert talk.both() == (["a"], [])
    talk.reply()
    assert talk.subscription.status is ConfigStatus.ERROR
    talk.change(a="bad", b="2")
    assert talk.both() == (["b"], [])
    talk.reply()
    assert talk.subscription.status is ConfigStatus.SYNCED


def test_rule_06_a_refused_name_that_is_gone_is_no_error_any_more():
    talk = Sotw(EDS, a="bad")
    talk.ask("a")
    talk.answer()
    talk.ask("a", error="a is bad")
    talk.change()
    assert talk.names() is None
    assert talk.subscription.status is not ConfigStatus.ERROR


def test_rule_06_delta_a_late_nack_says_nothing_of_what_was_sent_again_since():
    talk = Incremental(a="bad")
    talk.ask()
    talk.answer()
    first = talk.nonce
    talk.change(a="good")
    talk.answer()
    talk.reply(nonce=first, error="a is bad")
    talk.reply()
    assert talk.subscription.status is ConfigStatus.SYNCED


@pytest.mark.parametrize("later", [{"a": "good", "b": "new"}, {"b": "new"}], ids=["replaced", "removed"])
@pytest.mark.parametrize("kind", [Sotw, Incremental])
def test_rule_06_what_was_refused_beside_a_name_that_is_different_by_now_is_sent_again(kind: type, later: dict):
    talk = Sotw(EDS, a="1", b="old") if kind is Sotw else Incremental(a="1", b="old")
    reply = talk.ask if kind is Sotw else lambda *_, **more: talk.reply(**more)
    talk.ask("a", "b")
    talk.answer()
    reply("a", "b")
    talk.change(a="bad", b="new")
    assert talk.names() == ["a", "b"]
    first = talk.nonce
    talk.change(**later)
    talk.answer()
    reply("a", "b", nonce=first, error="a is bad")
    assert talk.names() == ["b"]
    reply("a", "b")
    assert talk.names() is None
    assert talk.subscription.status is ConfigStatus.SYNCED


def test_rule_06_delta_what_was_refused_is_tried_again_though_the_bad_name_came_back_in_between():
    talk = Incremental(a="bad", b="new")
    talk.ask()
    talk.answer()
    first = talk.nonce
    for a in ("good", "bad"):
        talk.change(a=a, b="new")
        talk.answer()
    talk.reply(nonce=first, error="a is bad")
    assert talk.both() is None
    talk.reply(error="a is bad")
    talk.change(a="good", b="new")
    assert talk.both() == (["a", "b"], [])


def test_rule_18_delta_what_was_refused_counts_as_new_when_it_is_sent_again():
    talk = Incremental(a="bad", b="new")
    talk.ask()
    talk.answer()
    talk.reply(error="a is bad")
    talk.change(a="good", b="new")
    assert talk.answer().added == {"a", "b"}
    talk.reply()
    talk.change(a="better", b="newer")
    assert talk.answer().added == frozenset()


def test_rule_07_names_that_arrive_with_a_nack_count():
    talk = Sotw(EDS, a="bad", b="1")
    talk.ask("a")
    talk.answer()
    outcome = talk.ask("a", "b", error="a is bad")
    assert outcome.kind == "nack"
    assert outcome.subscription_changed
    assert "b" in talk.names()


def test_rule_07_names_that_arrive_with_a_stale_delta_nonce_count():
    talk = Incremental(a="1", b="1")
    talk.ask("a")
    talk.answer()
    talk.change(a="2", b="1")
    talk.answer()
    assert talk.reply(nonce="n1", subscribe=("b",)).subscription_changed
    assert talk.both() == (["b"], [])


def test_rule_08_the_newer_of_two_requests_before_an_answer_replaces_the_older():
    talk = Sotw(EDS, a="1", b="1")
    talk.ask("a", nonce="")
    talk.ask("b", nonce="")
    assert talk.names() == ["b"]


def test_rule_08_sotw_an_old_nonce_gets_no_answer_and_rolls_nothing_back():
    talk = Sotw(EDS, a="1", b="1")
    talk.ask("a")
    talk.answer()
    talk.ask("a", "b", version=talk.version)
    talk.answer()
    newest = talk.version
    talk.ask("a", "b", version=newest)
    assert talk.ask("a", nonce="n1").kind == "stale"
    assert talk.names() is None
    assert talk.subscription.names == {"a", "b"}
    assert talk.subscription.acked_version == newest


def test_rule_08_sotw_a_name_that_a_stale_request_left_out_is_due_when_it_is_named_again():
    talk = Sotw(EDS, a="1", b="1")
    talk.ask("a", "b")
    talk.answer()
    talk.change(a="1", b="2")
    talk.answer()
    talk.ask("b", nonce="n1")
    assert talk.names() is None
    talk.ask("a", "b", nonce="n2")
    assert talk.names() == ["a"]


def test_rule_08_delta_with_an_old_nonce_only_the_ack_is_ignored():
    talk = Incremental(a="1")
    talk.ask()
    talk.answer()
    talk.change(a="2")
    talk.answer()
    assert talk.reply(nonce="n1").kind == "stale"
    assert talk.subscription.acked_version == ""
    talk.reply(nonce="n2")
    assert talk.subscription.acked_version == talk.version
