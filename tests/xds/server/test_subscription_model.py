"""Both variants of the protocol against a plain model of a client, whatever is said in whatever order."""

from typing import NamedTuple

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.harness.examples import examples
from tests.xds.server.talk import Incremental, Sotw, Talk, world
from understudy.xds.server import types
from understudy.xds.server.responses import Response

CDS, EDS, RDS = types.CLUSTER, types.ENDPOINTS, types.ROUTES
NAMES = ("a", "b", "c", "d")
some_names = st.frozensets(st.sampled_from(NAMES), max_size=3)
some_content = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(("1", "2", "3")))


class Nacked(NamedTuple):
    """An answer that was refused: all that was in it, and the names of it that were not sent again since."""

    versions: dict[str, str]
    names: set[str]


class AnyClient(RuleBasedStateMachine):
    """A client that answers in order and believes what it accepts; what it refuses leaves it as it was.

    When nothing is on its way it must hold exactly what it wants of the content, except what it refused and what has
    not changed since.
    """

    talk: Talk

    def begin(self, talk: Talk) -> None:
        self.talk = talk
        self.held: dict[str, str] = {}
        self.pending: list[tuple[str, Response]] = []
        self.refused: list[Nacked] = []

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
                if self.is_outdated(batch):
                    assert {n for n in batch.names if self.server_knows_of(n) and self.version_now(n)} <= set(names)
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
        self.refused.append(Nacked(batch, batch.keys() - later))
        self.reply(nonce, self.accepted_version, "no")

    accepted_version = ""
    refused_last = False

    def server_knows_of(self, name: str) -> bool:
        return self.wants(name) and self.talk.subscription.wants_any((name,))

    def version_now(self, name: str) -> str:
        found = self.talk.content.resources.get(name)
        return found.version if found else ""

    def not_refused(self, names: set[str]) -> None:
        self.refused = [Nacked(batch.versions, batch.names - names) for batch in self.refused]

    def is_outdated(self, batch: Nacked) -> bool:
        told = {name: version for name, version in batch.versions.items() if self.server_knows_of(name)}
        return any(self.version_now(name) != version for name, version in told.items())

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names

    def take(self, answer: Response) -> None:
        raise NotImplementedError

    def reply(self, nonce: str, version: str, error: str | None) -> None:
        raise NotImplementedError

    @invariant()
    def a_client_that_rests_holds_what_it_wants(self) -> None:
        if self.pending or self.talk.subscription.next_response(self.talk.content) is not None:
            return
        content = {n: r.version for n, r in self.talk.content.resources.items() if self.wants(n)}
        aside = {name for batch in self.refused for name in batch.names}
        assert self.known(content, aside) == {n: v for n, v in content.items() if n not in aside}
        for batch in self.refused:
            for name in batch.names:
                assert not self.wants(name) or self.version_now(name) in ("", batch.versions[name])
            if any(self.wants(name) and self.version_now(name) for name in batch.names):
                assert not self.is_outdated(batch)

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

    def take(self, answer: Response) -> None:
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

    def take(self, answer: Response) -> None:
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

    def take(self, answer: Response) -> None:
        self.held.update({one.name: one.version for one in answer.resources if self.wants(one.name)})
        for name in answer.removed:
            self.held.pop(name, None)

    def reply(self, nonce: str, version: str, error: str | None) -> None:
        self.talk.reply(nonce=nonce, error=error)


for machine in (SotwClient, SotwFullClient, DeltaClient):
    machine.TestCase.settings = settings(max_examples=examples(120), stateful_step_count=30, deadline=None)
TestSotw = SotwClient.TestCase
TestSotwFull = SotwFullClient.TestCase
TestDelta = DeltaClient.TestCase
