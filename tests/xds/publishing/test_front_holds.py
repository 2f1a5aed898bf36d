"""One pool's rejected part is found and held, and every other pool goes on."""

import functools
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from tests.xds.publishing.test_front_parts import part
from understudy.xds.envoy.front_listener import table_name
from understudy.xds.publishing.front_holds import FIRST_PAUSE, PROVEN_SECONDS, SEARCH_PAUSE, FrontHolds
from understudy.xds.publishing.front_parts import Composer, Composition, FrontPart
from understudy.xds.server.events import AckEvent
from understudy.xds.server.types import CLUSTER, ROUTES

ERROR = "invalid regex"
TABLE = table_name(80)


class Envoy:
    """Takes tables as long as no pool in it is ``bad``, and knows the last one that it took."""

    def __init__(self, name: str, is_bad: Callable[[FrontPart], bool]) -> None:
        self.name, self.is_bad = name, is_bad
        self.has: Mapping[str, FrontPart] = {}
        self.rejections = 0
        self.lost: set[str] = set()

    def take(self, version: str, chosen: Mapping[str, FrontPart]) -> AckEvent:
        error = ERROR if any(map(self.is_bad, chosen.values())) else None
        if error:
            self.rejections += 1
        else:
            self.lost |= self.has.keys() - chosen.keys()
            self.has = dict(chosen)
        return AckEvent(self.name, ROUTES, version, 0, 0, error, {TABLE: version})


class Plane:
    """The holds, and Envoys that answer whatever is new at once."""

    def __init__(self, *envoys: Envoy) -> None:
        self.holds, self.envoys, self.now = FrontHolds(), envoys, 0.0
        self._composer, self._sent = Composer(), {envoy.name: "" for envoy in envoys}

    def restart(self) -> None:
        """Another control server takes over: it knows nothing of what Envoys answered."""
        self.holds = FrontHolds()

    def compose(self, newest: Mapping[str, FrontPart]) -> tuple[Composition, dict[str, FrontPart]]:
        chosen = self.holds.choose(newest, self.now)
        made = self._composer.compose(chosen.values())
        self.holds.offered(made.pools_of)
        return made, chosen

    def settle(self, *parts: FrontPart, seconds: float = 0.0) -> None:
        """Publish and answer until nothing changes any more."""
        newest = {one.pool: one for one in parts}
        self.now += seconds
        for _ in range(100):
            made, chosen = self.compose(newest)
            version = made.resources[ROUTES][TABLE].version if TABLE in made.resources[ROUTES] else ""
            behind = [envoy for envoy in self.envoys if self._sent[envoy.name] != version and version]
            if not behind:
                return
            for envoy in behind:
                self._sent[envoy.name] = version
                self.holds.answered(envoy.take(version, chosen), self.now)
        raise AssertionError("it does not settle")


def bad_paths(*paths: str) -> Callable[[FrontPart], bool]:
    return lambda one: bool(set(paths) & set(one.front.paths))


def served(envoy: Envoy) -> dict[str, str]:
    return {pool: one.front.paths[0] for pool, one in envoy.has.items()}


def test_a_rejected_part_is_held_at_what_was_accepted_and_the_others_go_on():
    envoy = Envoy("front-1", bad_paths("/bad"))
    front = Plane(envoy)
    front.settle(part("a", paths=["/a"]), part("b", paths=["/b"]))
    front.settle(part("a", paths=["/bad"]), part("b", paths=["/b2"]), part("c", paths=["/c"]))
    assert served(envoy) == {"a": "/a", "b": "/b2", "c": "/c"}
    assert front.holds.fault("a") == (
        "Envoy front-1 rejects its configuration, so its last accepted routes stay in force: invalid regex"
    )
    assert (front.holds.fault("b"), front.holds.fault("c")) == ("", "")
    front.settle(part("a", paths=["/bad"]), part("b", paths=["/b3"]), part("c", paths=["/c"]))
    assert served(envoy) == {"a": "/a", "b": "/b3", "c": "/c"}
    assert envoy.lost == set()


def test_a_held_part_is_offered_again_when_it_is_another_and_some_time_has_passed():
    envoy = Envoy("front-1", bad_paths("/bad", "/worse"))
    front = Plane(envoy)
    front.settle(part("a", paths=["/a"]), part("b", paths=["/b"]))
    front.settle(part("a", paths=["/bad"]), part("b", paths=["/b"]))
    rejections = envoy.rejections
    front.settle(part("a", paths=["/worse"]), part("b", paths=["/b"]))
    front.settle(part("a", paths=["/bad"]), part("b", paths=["/b"]), seconds=FIRST_PAUSE)
    assert (envoy.rejections, front.holds.wake_in(front.now)) == (rejections, None)
    front.settle(part("a", paths=["/worse"]), part("b", paths=["/b"]))
    assert (envoy.rejections, front.holds.wake_in(front.now)) == (rejections + 1, FIRST_PAUSE * 2)
    front.settle(part("a", paths=["/good"]), part("b", paths=["/b"]))
    assert served(envoy)["a"] == "/a"
    front.settle(part("a", paths=["/good"]), part("b", paths=["/b"]), seconds=FIRST_PAUSE * 2)
    assert (served(envoy)["a"], front.holds.fault("a")) == ("/good", "")


def test_a_spec_that_is_taken_back_is_served_at_once():
    envoy = Envoy("front-1", bad_paths("/bad"))
    front = Plane(envoy)
    front.settle(part("a", paths=["/a"]))
    front.settle(part("a", paths=["/bad"]))
    assert front.holds.fault("a")
    front.settle(part("a", paths=["/a"]))
    assert (served(envoy), front.holds.fault("a")) == ({"a": "/a"}, "")


def test_a_pool_that_is_new_and_rejected_has_no_routes_and_says_so():
    envoy = Envoy("front-1", bad_paths("/bad"))
    front = Plane(envoy)
    front.settle(part("a", paths=["/a"]))
    front.settle(part("a", paths=["/a"]), part("b", paths=["/bad"]))
    assert served(envoy) == {"a": "/a"}
    assert "it has no routes there" in front.holds.fault("b")
    front.settle(part("a", paths=["/a"]))
    assert front.holds.fault("b") == ""


def test_a_held_pool_gives_way_to_a_pool_that_has_its_former_place_now():
    envoy = Envoy("front-1", bad_paths("/bad"))
    front = Plane(envoy)
    front.settle(part("a", paths=["/a"]))
    front.settle(part("a", paths=["/bad"]), part("b", paths=["/a"]))
    assert served(envoy) == {"b": "/a"}


def test_a_held_part_follows_the_health_of_its_members():
    front = Plane(Envoy("front-1", bad_paths("/bad")))
    front.settle(part("a", paths=["/a"]))
    front.settle(part("a", paths=["/bad"]))
    ill = part("a", paths=["/bad"], healthy=False)
    _, chosen = front.compose({"a": ill})
    assert chosen["a"].front.paths == ("/a",)
    assert dict(chosen["a"].endpoints.resources) == dict(ill.endpoints.resources)


def test_after_a_start_the_pool_at_fault_is_found_without_taking_routes_from_another():
    parts = [part(name, paths=[f"/{name}"]) for name in "abcd"]
    envoy = Envoy("front-1", bad_paths("/bad"))
    envoy.has = {one.pool: one for one in parts}
    front = Plane(envoy)
    bad = part("c", paths=["/bad"])
    front.settle(parts[0], part("b", paths=["/b2"]), bad, parts[3])
    assert served(envoy) == {"a": "/a", "b": "/b2", "d": "/d"}
    assert envoy.lost == {"c"}
    assert "it has no routes there" in front.holds.fault("c")


def test_after_a_start_two_pools_at_fault_are_searched_for_once_in_a_while():
    envoy = Envoy("front-1", bad_paths("/bad-a", "/bad-b"))
    envoy.has = {name: part(name) for name in "abc"}
    front = Plane(envoy)
    parts = [part("a", paths=["/bad-a"]), part("b", paths=["/bad-b"]), part("c", paths=["/c"])]
    front.settle(*parts)
    rejections = envoy.rejections
    front.settle(*parts[:2], part("c", paths=["/c2"]))
    assert (envoy.lost, envoy.rejections) == (set(), rejections + 1)
    front.settle(*parts, seconds=SEARCH_PAUSE)
    assert envoy.rejections > rejections + 2
    assert envoy.lost == set()


def proven(one: FrontPart) -> FrontPart:
    """A part whose spec Envoys accepted before this process began."""
    return msgspec.structs.replace(one, proven=True)


def after(one: FrontPart, older: FrontPart) -> FrontPart:
    """A part whose spec Envoys have not accepted yet, and the part of the one that they accepted last."""
    return msgspec.structs.replace(one, older=proven(older))


def test_after_a_start_two_pools_at_fault_keep_the_routes_of_their_accepted_specs_and_hold_up_nobody():
    envoy = Envoy("front-1", bad_paths("/bad-a", "/bad-b"))
    envoy.has = {name: part(name, paths=[f"/{name}"]) for name in "abc"}
    front = Plane(envoy)
    a, b = (after(part(name, paths=[f"/bad-{name}"]), part(name, paths=[f"/{name}"])) for name in "ab")
    front.settle(a, b, proven(part("c", paths=["/c2"])), part("d", paths=["/d"]))
    assert served(envoy) == {"a": "/a", "b": "/b", "c": "/c2", "d": "/d"}
    assert (envoy.lost, sorted(front.holds.held)) == (set(), ["a", "b"])
    assert "its last accepted routes stay in force" in front.holds.fault("a")
    moved = after(part("a", paths=["/bad-a"]), part("a", paths=["/a"], healthy=False))
    front.settle(moved, b, proven(part("c", paths=["/c3"])), part("d", paths=["/d"]))
    assert served(envoy) == {"a": "/a", "b": "/b", "c": "/c3", "d": "/d"}


def test_a_proven_spec_that_is_rejected_all_the_same_is_found_too():
    envoy = Envoy("front-1", bad_paths("/bad"))
    envoy.has = {name: part(name, paths=[f"/{name}"]) for name in "abc"}
    front = Plane(envoy)
    front.settle(*(proven(part(name, paths=["/bad" if name == "c" else f"/{name}2"])) for name in "abc"))
    assert served(envoy) == {"a": "/a2", "b": "/b2"}
    assert "it has no routes there" in front.holds.fault("c")


@pytest.mark.parametrize("known", [False, True])
def test_a_stand_in_that_is_rejected_too_is_not_offered_again(known: bool):
    envoy = Envoy("front-1", bad_paths("/bad", "/worse"))
    front = Plane(envoy)
    other = proven(part("b", paths=["/b"]))
    if known:
        front.settle(other)
    front.settle(after(part("a", paths=["/bad"]), part("a", paths=["/worse"])), other)
    assert served(envoy) == {"b": "/b"}
    rejections = envoy.rejections
    front.settle(after(part("a", paths=["/bad"]), part("a", paths=["/worse"])), other, seconds=100.0)
    assert (envoy.rejections, list(front.holds.held)) == (rejections, ["a"])


def test_a_spec_is_proven_when_envoys_have_accepted_it_for_some_time():
    front = Plane(Envoy("front-1", bad_paths("/bad")))
    a, b, c = part("a", paths=["/a"]), part("b", paths=["/bad"]), proven(part("c", paths=["/c"]))
    front.settle(a, b, c)
    assert (front.holds.proven(front.now), front.holds.proven_in(front.now)) == ([], PROVEN_SECONDS)
    front.settle(a, b, c, seconds=PROVEN_SECONDS)
    assert (front.holds.proven(front.now), front.holds.proven_in(front.now)) == ([a], None)
    front.settle(proven(a), b, c)
    assert front.holds.proven(front.now) == []
    bad = part("a", paths=["/bad"])
    front.settle(bad, b, c)
    assert front.holds.proven(front.now) == [a]
    front.settle(after(bad, a), b, c)
    assert front.holds.proven(front.now) == []


def test_an_envoy_that_rejects_what_another_accepts_takes_nothing_from_pools_that_it_knows_nothing_of():
    old, new = Envoy("old", bad_paths("/new")), Envoy("new", bad_paths())
    front = Plane(new, old)
    front.settle(part("a", paths=["/a"]), part("b", paths=["/b"]))
    front.settle(part("a", paths=["/new"]), part("b", paths=["/b"]))
    assert served(new) == served(old) == {"a": "/a", "b": "/b"}
    assert front.holds.fault("a").startswith("Envoy old ")


def test_a_rejected_cluster_holds_the_pool_that_the_error_names():
    front = Plane(Envoy("front-1", bad_paths()))
    parts = [part(name, paths=[f"/{name}"]) for name in ("a", "b", "c")]
    made, chosen = front.compose({one.pool: one for one in parts})
    cluster = min(chosen["b"].clusters.resources)
    versions = {name: one.version for name, one in made.resources[CLUSTER].items()}
    error = f"Error adding/updating cluster(s) {cluster}: no such thing"
    assert front.holds.answered(AckEvent("front-1", CLUSTER, "1", 0, 0, error, versions), 0.0)
    _, chosen = front.compose({one.pool: one for one in parts})
    assert (sorted(chosen), list(front.holds.held)) == (["a", "c"], ["b"])


@functools.cache
def at(pool: str, path: str) -> FrontPart:
    return part(pool, paths=[path])


@pytest.mark.parametrize("envoys", [1, 2])
@settings(max_examples=examples(30))
@given(
    rounds=st.lists(st.sets(st.sampled_from("abcdefg"), max_size=7), min_size=1, max_size=4),
    bad=st.sets(st.sampled_from("abcdefg"), max_size=3),
)
def test_whatever_is_bad_all_other_pools_get_their_newest_part(
    envoys: int, rounds: list[AbstractSet[str]], bad: AbstractSet[str]
):
    front = Plane(*(Envoy(f"front-{number}", lambda one: "bad" in one.front.paths[0]) for number in range(envoys)))
    parts = {name: at(name, f"/{name}") for name in "abcdefg"}
    front.settle(*parts.values())
    for number, changed in enumerate(rounds):
        for name in changed:
            parts[name] = at(name, f"/{name}{number}{'-bad' if name in bad else ''}")
        front.settle(*parts.values(), seconds=100.0)
    touched = set().union(*rounds)
    for envoy in front.envoys:
        assert envoy.lost == set()
        for name, one in parts.items():
            wanted = f"/{name}" if name in bad & touched else one.front.paths[0]
            assert envoy.has[name].front.paths[0] == wanted
    assert set(front.holds.held) == bad & touched


@settings(max_examples=examples(30))
@given(
    rounds=st.lists(st.sets(st.sampled_from("abcde"), max_size=5), min_size=1, max_size=4),
    bad=st.sets(st.sampled_from("abcde"), max_size=3),
    restarts=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_whenever_a_control_server_starts_no_pool_loses_its_routes_and_all_good_ones_get_their_newest_part(
    rounds: list[AbstractSet[str]], bad: AbstractSet[str], restarts: list[bool]
):
    envoy = Envoy("front-1", lambda one: "bad" in one.front.paths[0])
    front = Plane(envoy)
    good = {name: at(name, f"/{name}") for name in "abcde"}
    newest = dict(good)
    front.settle(*newest.values())
    for number, changed in enumerate(rounds):
        for name in changed:
            newest[name] = at(name, f"/{name}{number}{'-bad' if name in bad else ''}")
        if restarts[number]:
            front.restart()
        told = [proven(one) if one is good[name] else after(one, good[name]) for name, one in newest.items()]
        front.settle(*told, seconds=100.0)
        good |= {name: one for name, one in newest.items() if "bad" not in one.front.paths[0]}
        assert envoy.lost == set()
        assert served(envoy) == {name: one.front.paths[0] for name, one in good.items()}
