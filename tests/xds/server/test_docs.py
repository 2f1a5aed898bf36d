"""docs/xds.md keeps its word: the example runs, and every rule that it lists has tests of its name."""

import asyncio
import re
import runpy

from tests.harness.places import ROOT
from tests.harness.waiting import free_port

PAGE = (ROOT / "docs/xds.md").read_text()


async def test_the_example_runs(tmp_path, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    main = runpy.run_path(str(tmp_path / "example.py"))["main"]
    port = free_port()
    await asyncio.wait_for(main(f"127.0.0.1:{port}"), 20)
    assert capsys.readouterr().out.splitlines() == [f"serving on port {port}", "every connected Envoy has it"]


def test_every_rule_is_listed_and_has_tests():
    listed = re.findall(r"^\| (\d\d) \|", PAGE, re.MULTILINE)
    assert listed == [f"{number:02}" for number in range(1, 31)]
    tests = "".join(path.read_text() for path in (ROOT / "tests/xds").rglob("test_*.py"))
    for number in listed:
        assert re.search(rf"def test_(rule_\d\d_and_)?rule_{number}_", tests), f"rule {number} has no test"


def test_every_file_that_the_page_names_is_there():
    there = [str(path.relative_to(ROOT)) for folder in ("xds", "tests/xds") for path in (ROOT / folder).rglob("*.py")]
    for name in re.findall(r"`((?:tests/xds/)?[\w/]+\.py)`", PAGE):
        assert any(path == name or path.endswith(f"/{name}") for path in there), name
