"""``make quick`` runs what starts no process, and only that."""

import subprocess
import sys

from tests.harness.places import ROOT
from tests.harness.quick import leaves_out_file

STARTS = """
import asyncio, subprocess
from tests.harness.quick import forbid_processes
forbid_processes()
for start in (lambda: subprocess.run(["true"]), lambda: asyncio.run(asyncio.create_subprocess_exec("true"))):
    try:
        start()
    except AssertionError as error:
        print(error)
"""


def test_files_are_left_out_for_what_they_and_their_imports_do() -> None:
    out = ("harness/test_quick.py", "faults/test_faults.py", "deploy/test_broken_streams.py", "model/test_model.py")
    assert all(leaves_out_file(ROOT / "tests" / file) for file in out)
    quick = ("test_layers.py", "xds/placement/test_solver.py", "proxy/ownership/test_contradictions.py")
    assert not any(leaves_out_file(ROOT / "tests" / file) for file in quick)


def test_a_quick_test_that_starts_a_process_fails() -> None:
    done = subprocess.run([sys.executable, "-c", STARTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.count("a quick test starts no process") == 2, done.stderr
