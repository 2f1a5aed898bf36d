"""What is not needed is not imported: libraries that take long would be paid for by every process and every command."""

import json
import subprocess
import sys

import pytest

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec import PoolSpec

NEVER = {"cryptography", "kubernetes", "rich.progress", "unittest", "yaml"}
"""Needed by single options or commands."""
ENVOY = {"betterproto2", "envoy_data_plane"}
"""Envoy's message classes: 0.3 s of CPU."""
HTTP = {"aiohttp"}
"""0.15 s."""
TELEMETRY = {"opentelemetry.exporter.otlp.proto.grpc", "opentelemetry.sdk.metrics"}
"""What the thread imports that first exports spans."""
COMMANDS = {"click", "rich"}


def imported_by(code: str, *arguments: str) -> set[str]:
    """The modules that a new interpreter has after ``code``."""
    code = f"import json, sys\n{code}\nsys.stdout.write('\\n' + json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("understudy.deploy.cli.main", NEVER | ENVOY | HTTP | {"grpc", "opentelemetry", "pydantic", "rich"}),
        ("understudy.xds.control.server", NEVER | ENVOY | TELEMETRY | COMMANDS),
        ("understudy.proxy.sidecar.sidecar", NEVER | ENVOY | TELEMETRY | COMMANDS | {"sqlite3"}),
        ("understudy.proxy.front.envoy", NEVER | ENVOY | TELEMETRY | COMMANDS | {"sqlite3"}),
    ],
)
def test_a_program_imports_nothing_that_it_may_never_need(module: str, without: set[str]) -> None:
    assert imported_by(f"import {module}") & without == set()


async def test_status_needs_neither_an_http_library_nor_telemetry(etcd, client: EtcdClient, pool_name: str) -> None:
    await client.put(PoolKeys(pool_name).spec, PoolSpec(pool=pool_name, slots=4).encode())
    run = "from understudy.deploy.cli.main import cli\ntry: cli(sys.argv[1:])\nexcept SystemExit: pass"
    found = imported_by(run, "status", "--pool", pool_name, "--etcd", etcd.endpoint)
    assert "understudy.deploy.inspect.controls" in found
    assert found & (NEVER | ENVOY | HTTP | {"opentelemetry", "prometheus_client", "sqlite3"}) == set()
