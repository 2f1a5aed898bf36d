"""No input crashes an import: it makes pools that ``apply`` takes, or it names a fault."""

import json
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from understudy.deploy.importing.findings import ImportFault
from understudy.deploy.importing.reading import import_texts
from understudy.deploy.importing.report import import_view, notes_text
from understudy.statesync.pool.spec_reader import parse_spec

GOLDEN = Path(__file__).parent / "golden"
OBJECTS = [
    one
    for path in sorted(GOLDEN.glob("*/input.yaml"))
    for one in yaml.safe_load_all(path.read_text())
    if one is not None
]
LINES = [line for path in sorted(GOLDEN.glob("*/input.cfg")) for line in path.read_text().splitlines()]
WORDS = sorted({word for line in LINES for word in line.split()} | {"'", '"', "\\", "$", "${X}", "()", "a(b", "é"})
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=8),
    st.sampled_from(["", "cookie", "ConsistentHash", "Cookie", "x" * 300, "a:b", "-", "*.x", "é"]),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)


def survives(text, kind="auto"):
    try:
        imported = import_texts([("input", text)], kind)
    except ImportFault:
        return
    for pool in imported.pools:
        assert parse_spec(pool.text, where="made") == pool.spec
    assert len({pool.spec.pool for pool in imported.pools}) == len(imported.pools)
    json.dumps(import_view(imported, {}))
    notes_text(imported).encode("utf-8", "surrogatepass")


def with_one_value_changed(draw, value):
    """A copy of a value of an object in which something below has another value, or is gone."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 9)):
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: with_one_value_changed(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], with_one_value_changed(draw, value[place]), *value[place + 1 :]]
    return draw(ODD)


@st.composite
def changed_objects(draw):
    chosen = draw(st.lists(st.sampled_from(OBJECTS), min_size=1, max_size=3))
    return [with_one_value_changed(draw, one) for one in chosen]


@settings(max_examples=examples(100), deadline=None)
@given(changed_objects())
def test_manifests_with_odd_values(objects):
    survives(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.one_of(st.sampled_from(LINES), st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join))))
def test_lines_and_words_of_haproxy_in_any_order(lines):
    survives("\n".join(["defaults", "  mode http", *lines]), "haproxy")


@settings(max_examples=examples(60), deadline=None)
@given(st.text(max_size=60), st.sampled_from(["auto", "kubernetes", "haproxy"]))
def test_any_text(text, kind):
    survives(text, kind)
