"""YAML that reads back as what it was made of, with comments where they were asked for."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from understudy.deploy.kubernetes.base.emit import Manifest, document, emit

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), include_characters="\n"), max_size=12)
scalars = st.none() | st.booleans() | st.integers() | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts.filter(bool), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(texts.filter(lambda text: text and "\n" not in text), values, min_size=1, max_size=4))
def test_everything_reads_back_as_it_was(body):
    assert yaml.safe_load(document(Manifest(body))) == body


def test_notes_stand_above_their_fields_and_change_nothing():
    body = {"kind": "A", "spec": {"a.b/c": 1, "list": [{"x": 1, "y": [2, 3]}, {"x": "two\nlines\n"}]}}
    notes = {"spec.a.b/c": "dots", "spec.list.0.x": "first", "spec.list.1": "second\nline", "spec.list.0.y.1": "three"}

    text = document(Manifest(body, about="all of it", notes=notes))

    assert yaml.safe_load(text) == body
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "# all of it"
    assert lines[lines.index("# dots") + 1] == "a.b/c: 1"
    assert lines[lines.index("# first") + 1] == "- x: 1"
    assert lines[lines.index("# second") + 1 :][:2] == ["# line", "- x: |"]
    assert lines[lines.index("# three") + 1] == "- 3"


def test_a_note_on_a_field_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match=r"spec\.gone"):
        document(Manifest({"kind": "A", "spec": {}}, notes={"spec.gone": "why"}))


def test_documents_of_one_file_are_kept_apart():
    bodies = [{"kind": "A", "metadata": {"name": "a"}}, {"kind": "B", "metadata": {"name": "b"}}]

    assert list(yaml.safe_load_all(emit(Manifest(body) for body in bodies))) == bodies
