"""``understudy import`` as users meet it: files, streams, exit codes, and what is never overwritten."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from understudy.deploy.cli.main import cli
from understudy.statesync.pool.spec_reader import load_spec

GOLDEN = Path(__file__).parents[1] / "importing/golden"
SEVERAL = (GOLDEN / "several-sources/input.yaml").read_text()
WITHOUT_KEY = (GOLDEN / "nginx-hash-without-key/input.yaml").read_text()


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("several.yaml", SEVERAL), ("none.yaml", WITHOUT_KEY), ("broken.yaml", "kind: [")):
        (tmp_path / name).write_text(text)


def run(*arguments, stdin=None):
    return CliRunner().invoke(cli, ["import", *arguments], input=stdin)


def test_pools_go_to_stdout_and_notes_to_stderr():
    done = run("several.yaml")
    assert done.exit_code == 0
    assert done.stdout.count("\npool: ") == 2
    assert "\n---\n" in done.stdout
    assert "The cookie INGRESSCOOKIE tells ingress-nginx" in done.stderr


def test_a_stream_is_read_as_a_file_is():
    assert run("-", stdin=SEVERAL).stdout == run("several.yaml").stdout.replace("several.yaml", "stdin")


def test_files_are_written_once_and_apply_takes_each():
    done = run("several.yaml", "--output-dir", "out")
    assert done.exit_code == 0
    assert "pool shop-cart: out/shop-cart.yaml; next: understudy apply -f out/shop-cart.yaml --dry-run" in done.stdout
    assert {load_spec(path).pool for path in Path("out").glob("*.yaml")} == {"shop-cart", "staging-cart"}
    assert Path("out/notes.txt").read_text() in done.stdout

    Path("out/shop-cart.yaml").write_text("mine")
    again = run("several.yaml", "--output-dir", "out")
    assert (again.exit_code, Path("out/shop-cart.yaml").read_text()) == (2, "mine")
    assert "out/shop-cart.yaml" in again.stderr
    assert "--force" in again.stderr
    assert run("several.yaml", "--output-dir", "out", "--force").exit_code == 0
    assert load_spec(Path("out/shop-cart.yaml")).pool == "shop-cart"


def test_programs_get_pools_and_notes_as_json():
    shown = json.loads(run("several.yaml", "-o", "json", "--output-dir", "out").stdout)
    assert [(one["pool"], one["file"]) for one in shown["pools"]] == [
        ("shop-cart", "out/shop-cart.yaml"),
        ("staging-cart", "out/staging-cart.yaml"),
    ]
    assert shown["pools"][1]["spec"] == {"pool": "staging-cart", "session_key": [{"cookie": "cart"}]}
    assert {note["kind"] for note in shown["notes"]} == {"changed", "check"}
    assert shown["notes"][0]["document"] == 1


def test_an_input_without_any_pool_is_a_negative_answer():
    done = run("none.yaml", "--output-dir", "out")
    assert done.exit_code == 1
    assert "upstream-hash-by: $request_uri" in done.output
    assert not Path("out").exists()


def test_an_input_without_affinity_says_so():
    Path("empty.yaml").write_text("")
    done = run("empty.yaml")
    assert done.exit_code == 1
    assert "it has no session affinity that import reads" in done.output


def test_one_broken_file_keeps_all_from_being_written():
    done = run("several.yaml", "broken.yaml", "--output-dir", "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "broken.yaml: not YAML" in done.stderr
    assert not Path("out").exists()


def test_files_that_cannot_be_read_are_named():
    Path("latin.cfg").write_bytes(b"backend caf\xe9\n")
    done = run("absent.yaml", "latin.cfg", ".")
    assert done.exit_code == 2
    assert [line.split(" cannot")[0] for line in done.stderr.splitlines()] == [
        "understudy: absent.yaml",
        "understudy: latin.cfg",
        "understudy: .",
    ]
