"""Manifests and configurations as people have them, with the pool files and notes that an import makes of them.

Each folder of ``golden`` has an input and what is expected. After a change that is meant, write the expected files anew
with ``understudy import input.* --output-dir expected`` in the folder, and read the difference.
"""

from pathlib import Path

import pytest

from understudy.deploy.importing.reading import import_texts
from understudy.deploy.importing.report import notes_text
from understudy.statesync.pool.spec_reader import load_spec

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir())


def imported_of(case):
    (path,) = GOLDEN.joinpath(case).glob("input.*")
    return import_texts([(path.name, path.read_text())])


def test_there_are_twenty_cases_and_more_of_every_kind():
    assert len(CASES) >= 20
    assert {case.split("-")[0] for case in CASES} >= {"nginx", "envoy", "gateway", "istio", "haproxy"}


@pytest.mark.parametrize("case", CASES)
def test_an_import_makes_these_files(case):
    imported = imported_of(case)
    made = {f"{pool.spec.pool}.yaml": pool.text for pool in imported.pools} | {"notes.txt": notes_text(imported)}
    assert made == {path.name: path.read_text() for path in GOLDEN.joinpath(case, "expected").iterdir()}


@pytest.mark.parametrize("case", CASES)
def test_every_pool_file_is_what_apply_reads(case):
    specs = {pool.spec.pool: pool.spec for pool in imported_of(case).pools}
    assert specs == {path.stem: load_spec(path) for path in GOLDEN.joinpath(case, "expected").glob("*.yaml")}


@pytest.mark.parametrize("case", CASES)
def test_every_note_says_why_and_what_to_do(case):
    for note in imported_of(case).notes:
        assert note.remark.setting
        assert note.remark.reason.endswith(".")
        assert note.remark.remedy.endswith(".")
        assert note.place.document or note.place.line
