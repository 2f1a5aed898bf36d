"""What one client's subscription sends, rule by rule; and both variants against a plain model of a client."""

from collections.abc import Mapping

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xds import types
from xds.snapshot import TypeSnapshot, encode
from xds.subscription import Answer, Facts, Standing, Subscription
from xds.variants import Delta, StateOfTheWorld
from xds.wire import Request

CDS, EDS, RDS = types.CLUSTER, types.ENDPOINTS, types.ROUTES
PLAIN = "type.googleapis.com/example.Plain"


def world(content: Mapping[str, str] | None = None, **more: str) -> TypeSnapshot:
    everything = {**(content or {}), **more}
    return TypeSnapshot({name: encode(PLAIN, name, text.encode()) for name, text in everything.items()})


class Talk:
    """A subscription, the content it is offered, and the client on its other end."""

    subscription: Subscription

    def __init__(self, subscription: Subscription, content: TypeSnapshot) -> None:
        self.subscription = subscription
        self.content = content
        self.nonces = 0
        self.nonce = ""
        self.version = ""

    def request(self, request: Request) -> Facts:
        return self.subscription.on_request(request, 0)

    def answer(self) -> Answer | None:
        answer = self.subscription.what_to_send(self.content)
        if answer is not None:
            self.nonces += 1
            self.nonce, self.version = f"n{self.nonces}", answer.version
            self.subscription.on_sent(answer, self.content, self.nonce, 0)
        return answer

    def names(self) -> list[str] | None:
        answer = self.answer()
        return None if answer is None else [one.name for one in answer.resources]

    def change(self, **content: str) -> None:
        self.content = world(content)


class Sotw(Talk):
    def __init__(self, type_url: str, **content: str) -> None:
        super().__init__(StateOfTheWorld(type_url), world(content))

    def ask(self, *names: str, version: str = "", nonce: str | None = None, error: str | None = None) -> Facts:
        nonce = self.nonce if nonce is None else nonce
        return self.request(Request(PLAIN, names=names, version=version, nonce=nonce, error=error))


class Incremental(Talk):
    def __init__(self, **content: str) -> None:
        super().__init__(Delta(PLAIN), world(content))

    def ask(self, *subscribe: str, leave: tuple[str, ...] = (), held: Mapping[str, str] | None = None) -> Facts:
        return self.request(Request(PLAIN, subscribe=subscribe, unsubscribe=leave, held=held or {}))

    def reply(self, nonce: str | None = None, error: str | None = None, **request: tuple[str, ...]) -> Facts:
        nonce = self.nonce if nonce is None else nonce
        return self.request(Request(PLAIN, nonce=nonce, error=error, **request))

    def both(self) -> tuple[list[str], list[str]] | None:
        answer = self.answer()
        return None if answer is None else ([one.name for one in answer.resources], list(answer.removed))


# Session and version


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
    assert same.subscription.standing is Standing.SYNCED
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
    facts = talk.ask(version=version or talk.version, error="no")
    assert facts.kind == "nack"
    assert talk.subscription.standing is Standing.ERROR
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
    assert talk.subscription.standing is Standing.SYNCED


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
    assert talk.subscription.standing is Standing.ERROR


def test_rule_06_delta_what_was_refused_together_is_tried_again_together():
    talk = Incremental(a="bad", b="1")
    talk.ask()
    talk.answer()
    talk.reply(error="a is bad")
    talk.change(a="good", b="1")
    assert talk.both() == (["a", "b"], [])
    talk.reply()
    assert talk.subscription.standing is Standing.SYNCED


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
    assert talk.subscription.standing is Standing.ERROR
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
    assert talk.subscription.standing is Standing.ERROR
    talk.change(a="bad", b="2")
    assert talk.both() == (["b"], [])
    talk.reply()
    assert talk.subscription.standing is Standing.SYNCED


def test_rule_06_a_refused_name_that_is_gone_is_no_error_any_more():
    talk = Sotw(EDS, a="bad")
    talk.ask("a")
    talk.answer()
    talk.ask("a", error="a is bad")
    talk.change()
    assert talk.names() is None
    assert talk.subscription.standing is not Standing.ERROR


def test_rule_06_delta_a_late_nack_says_nothing_of_what_was_sent_again_since():
    talk = Incremental(a="bad")
    talk.ask()
    talk.answer()
    first = talk.nonce
    talk.change(a="good")
    talk.answer()
    talk.reply(nonce=first, error="a is bad")
    talk.reply()
    assert talk.subscription.standing is Standing.SYNCED


def test_rule_07_names_that_arrive_with_a_nack_count():
    talk = Sotw(EDS, a="bad", b="1")
    talk.ask("a")
    talk.answer()
    facts = talk.ask("a", "b", error="a is bad")
    assert facts.kind == "nack"
    assert facts.subscription_changed
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


# Subscription


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
    assert talk.subscription.standing is Standing.SYNCED


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
    assert talk.subscription.standing is Standing.STALE
    talk.ask(version=talk.version)
    assert talk.subscription.standing is Standing.SYNCED
    assert not talk.subscription.unanswered


NAMES = ("a", "b", "c", "d")
some_names = st.frozensets(st.sampled_from(NAMES), max_size=3)
some_content = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(("1", "2", "3")))


class AnyClient(RuleBasedStateMachine):
    """A client that answers in order and believes what it accepts; what it refuses leaves it as it was.

    When nothing is on its way it must hold exactly what it wants of the content, except what it refused and what has
    not changed since.
    """

    talk: Talk

    def begin(self, talk: Talk) -> None:
        self.talk = talk
        self.held: dict[str, str] = {}
        self.pending: list[tuple[str, Answer]] = []
        self.refused: list[dict[str, str]] = []

    @rule(content=some_content)
    def content_changes(self, content: dict[str, str]) -> None:
        self.talk.content = world(content)

    @rule()
    def server_sends(self) -> None:
        answer = self.talk.answer()
        if answer is not None:
            names = [one.name for one in answer.resources]
            assert len(names) == len(set(names))
            assert not set(names) & set(answer.removed)
            for batch in self.refused:
                told = {name: version for name, version in batch.items() if self.server_knows_of(name)}
                if any(self.version_now(name) != version for name, version in told.items()):
                    assert {name for name in told if self.version_now(name)} <= set(names)
            self.not_refused({*names, *answer.removed})
            self.pending.append((self.talk.nonce, answer))

    @precondition(lambda self: self.pending)
    @rule()
    def client_accepts(self) -> None:
        nonce, answer = self.pending.pop(0)
        self.take(answer)
        self.refused_last = False
        self.reply(nonce, answer.version, None)

    @precondition(lambda self: self.pending)
    @rule()
    def client_refuses(self) -> None:
        nonce, answer = self.pending.pop(0)
        self.refused_last = True
        later = {one.name for _, other in self.pending for one in other.resources}
        later.update(name for _, other in self.pending for name in other.removed)
        batch = {one.name: one.version for one in answer.resources} | dict.fromkeys(answer.removed, "")
        self.refused.append({name: version for name, version in batch.items() if name not in later})
        self.reply(nonce, self.accepted_version, "no")

    accepted_version = ""
    refused_last = False

    def server_knows_of(self, name: str) -> bool:
        return self.wants(name) and self.talk.subscription.wants_any((name,))

    def version_now(self, name: str) -> str:
        found = self.talk.content.resources.get(name)
        return found.version if found else ""

    def not_refused(self, names: set[str]) -> None:
        self.refused = [{n: v for n, v in batch.items() if n not in names} for batch in self.refused]

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names

    def take(self, answer: Answer) -> None:
        raise NotImplementedError

    def reply(self, nonce: str, version: str, error: str | None) -> None:
        raise NotImplementedError

    @invariant()
    def a_client_that_rests_holds_what_it_wants(self) -> None:
        if self.pending or self.talk.subscription.what_to_send(self.talk.content) is not None:
            return
        content = {n: r.version for n, r in self.talk.content.resources.items() if self.wants(n)}
        aside = {name for batch in self.refused for name in batch}
        assert self.known(content, aside) == {n: v for n, v in content.items() if n not in aside}
        for batch in self.refused:
            for name, version in batch.items():
                assert not self.wants(name) or self.version_now(name) in ("", version)

    def known(self, content: dict[str, str], aside: set[str]) -> dict[str, str]:
        return {name: version for name, version in self.held.items() if name not in aside}


class SotwClient(AnyClient):
    """State of the world; this type's answers may carry a part, and say nothing of what is gone."""

    type_url = EDS

    @initialize(content=some_content, names=some_names)
    def begins(self, content: dict[str, str], names: frozenset[str]) -> None:
        self.begin(Sotw(self.type_url, **content))
        self.names, self.processed, self.accepted_version = names, "", ""
        self.implicit = self.wildcard = not names and self.type_url in types.FULL_STATE
        self.say(None)

    def say(self, error: str | None) -> None:
        self.talk.ask(*self.names, version=self.accepted_version, nonce=self.processed, error=error)

    @rule(names=some_names)
    def client_wants(self, names: frozenset[str]) -> None:
        self.implicit = self.implicit and not names
        self.wildcard, self.names = self.implicit, names
        self.held = {name: version for name, version in self.held.items() if self.wants(name)}
        self.say(None)

    def take(self, answer: Answer) -> None:
        self.accepted_version = answer.version
        self.held.update({one.name: one.version for one in answer.resources if self.wants(one.name)})

    def reply(self, nonce: str, version: str, error: str | None) -> None:
        self.processed = nonce
        self.say(error)

    def known(self, content: dict[str, str], aside: set[str]) -> dict[str, str]:
        return {name: version for name, version in super().known(content, aside).items() if name in content}


class SotwFullClient(SotwClient):
    """State of the world with a type whose answers are the full set."""

    type_url = CDS

    def take(self, answer: Answer) -> None:
        self.held = {}
        super().take(answer)

    def known(self, content: dict[str, str], aside: set[str]) -> dict[str, str]:
        if self.refused_last:
            return {name: version for name, version in content.items() if name not in aside}
        return self.held


class DeltaClient(AnyClient):
    """Delta, with reconnects that bring versions."""

    @initialize(content=some_content, names=some_names)
    def begins(self, content: dict[str, str], names: frozenset[str]) -> None:
        self.begin(Incremental(**content))
        self.names, self.wildcard = names, not names
        self.talk.ask(*names)

    @rule(names=some_names.filter(bool))
    def client_subscribes(self, names: frozenset[str]) -> None:
        self.names |= names
        self.talk.ask(*names)

    @rule(names=some_names)
    def client_leaves(self, names: frozenset[str]) -> None:
        self.names -= names
        self.talk.ask(leave=tuple(names))
        self.forget()

    @rule(on=st.booleans())
    def wildcard_changes(self, on: bool) -> None:
        self.wildcard = on
        self.talk.ask(*(("*",) if on else ()), leave=() if on else ("*",))
        self.forget()

    @precondition(lambda self: self.names or self.wildcard)
    @rule()
    def client_comes_again(self) -> None:
        content, held = self.talk.content, self.held
        self.begin(Incremental())
        self.talk.content, self.held = content, held
        self.talk.ask(*self.names, *(("*",) if self.wildcard else ()), held=held)

    def forget(self) -> None:
        self.held = {name: version for name, version in self.held.items() if self.wants(name)}

    def take(self, answer: Answer) -> None:
        self.held.update({one.name: one.version for one in answer.resources if self.wants(one.name)})
        for name in answer.removed:
            self.held.pop(name, None)

    def reply(self, nonce: str, version: str, error: str | None) -> None:
        self.talk.reply(nonce=nonce, error=error)


for machine in (SotwClient, SotwFullClient, DeltaClient):
    machine.TestCase.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
TestSotw = SotwClient.TestCase
TestSotwFull = SotwFullClient.TestCase
TestDelta = DeltaClient.TestCase
