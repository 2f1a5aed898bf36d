"""docs/xds.md is true: the example serves a real Envoy, the names are exported, every rule has tests of its name."""

import asyncio
import re
import runpy
import subprocess
import sys

import aiohttp
import yaml

import understudy.xds.server
from tests.harness.envoy import running_envoy
from tests.harness.places import ROOT
from tests.harness.waiting import free_port, until
from tests.xds.server.test_envoy_ads import backend
from understudy.xds.server import ResourceCache

PAGE = (ROOT / "docs/xds.md").read_text()


async def test_the_example_serves_a_real_envoy_and_a_change_moves_its_traffic(tmp_path, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "example.py").write_text("\n".join(blocks))
    example = runpy.run_path(str(tmp_path / "example.py"))
    caches: list[ResourceCache] = []
    example["main"].__globals__["ResourceCache"] = lambda **hooks: caches.append(ResourceCache(**hooks)) or caches[0]
    (bootstrap,) = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    xds, listen = free_port(), free_port()
    at = bootstrap["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    at["address"]["socket_address"]["port_value"] = xds

    async with backend("one") as one, backend("two") as two, running_envoy(bootstrap, tmp_path):
        serving = asyncio.create_task(example["main"](f"127.0.0.1:{xds}", listen, one))
        try:
            await until(lambda: get(listen, "one"), 40, "Envoy sends requests to the first backend")
            await example["move"](caches[0], two)
            await until(lambda: get(listen, "two"), 40, "Envoy sends requests to the second backend")
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"serving xDS on port {xds}"
    assert set(lines[1:]) == {f"front-1 {kind} accepted" for kind in ("CDS", "EDS", "LDS", "RDS")}


async def get(port: int, text: str) -> bool:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/") as answer:
        return await answer.text() == text


def test_every_public_name_can_be_imported_from_the_package():
    source = (ROOT / "xds/server/__init__.py").read_text()
    assert re.findall(r"import (\w+) as \1", source) == list(understudy.xds.server.PUBLIC)
    for name in understudy.xds.server.PUBLIC:
        assert getattr(understudy.xds.server, name).__name__ == name


def test_importing_the_package_loads_nothing_else():
    loaded = "sorted(m for m in sys.modules if m.startswith(('grpc', 'google', 'understudy.xds.')))"
    script = f"import sys, understudy.xds.server; print({loaded})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['understudy.xds.server']"


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
