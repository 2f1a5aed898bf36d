"""Pods that nobody would write: whatever comes, the answer is a clean yes or no, and a patch means what it says."""

import copy
import json
import random
from typing import Any

import jsonpatch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.deploy.kubernetes.injection.harness import CLASSIC_FORM, PLAIN, SECURED, applied, patched, review, sidecars
from tests.deploy.kubernetes.injection.shapes import SHAPES
from tests.harness.examples import examples
from understudy.deploy.kubernetes.base.injection_settings import InjectionSettings
from understudy.deploy.kubernetes.injection.workloads import read_objects, write_objects
from understudy.deploy.kubernetes.webhook.review import answer, read_review

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["understudy", "understudy-tls", "app", "8080", "web", "true", "$(X)", "/", "~", "a/b~c", "-d", "7601"]
    ),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
SETTINGS = st.sampled_from([PLAIN, SECURED, CLASSIC_FORM])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in inside for place in places(inner, (*path, key)))]


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value at a place."""
    if not path:
        return value
    changed = copy.copy(document)
    changed[path[0]] = put(document[path[0]], path[1:], value)
    return changed


@st.composite
def odd_pods(draw: st.DrawFn) -> Any:
    """A pod of a known shape with some of its parts exchanged."""
    pod = copy.deepcopy(draw(st.sampled_from(list(SHAPES.values()))).pod)
    for _ in range(draw(st.integers(1, 3))):
        pod = put(pod, draw(st.sampled_from(places(pod))), draw(VALUES))
    return pod


@settings(max_examples=examples(400))
@given(pod=odd_pods(), told=SETTINGS)
def test_any_pod_gets_an_answer_and_an_injected_one_is_done(pod: Any, told: InjectionSettings) -> None:
    asked = read_review(json.dumps(review(pod, namespace="shop")).encode())
    answered, outcome = answer(asked, told)
    response = json.loads(json.dumps(answered, allow_nan=False))["response"]
    assert response["allowed"] is (outcome != "denied")
    if outcome == "injected":
        after = patched(asked["object"], response)
        assert len(sidecars(after)) == 1
        again, outcome = answer({**asked, "object": after}, told)
        assert "patch" not in again["response"]
        assert again["response"]["allowed"]


@settings(max_examples=examples(300))
@given(before=VALUES, after=VALUES)
@example(before={"a": [1, 0]}, after={"a": [True, False]})
@example(before=[1, 2, 3], after=[3])
@example(before={"a/b": 1, "a~b": 1, "~1": 1}, after={"a/b": 2, "a~b": 3})
def test_a_patch_leads_from_any_document_to_any_other(before: Any, after: Any) -> None:
    """Versions of jsonpatch before 1.47 moved list entries to wrong places."""
    assert same(applied(before, jsonpatch.make_patch(before, after).patch), after)


@settings(max_examples=examples(200))
@given(before=VALUES, seed=st.integers(0, 2**32), value=VALUES)
def test_a_change_at_one_place_is_a_patch_at_that_place(before: Any, seed: int, value: Any) -> None:
    place = random.Random(seed).choice(places(before))
    after = put(before, place, value)
    assert same(applied(before, jsonpatch.make_patch(before, after).patch), after)


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is 1.0, and is not true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


@settings(max_examples=examples(300))
@given(document=st.dictionaries(TEXTS, VALUES, max_size=5), output=st.sampled_from(["yaml", "json"]))
def test_files_are_written_as_they_were_read(document: dict[str, Any], output: str) -> None:
    documents = [{**document, "kind": "Thing"}, {"kind": "Other", "text": "089", "more": "1e3"}]
    written = read_objects(write_objects(documents, output), "test")
    assert same(written[0]["items"] if output == "json" else written, documents)
