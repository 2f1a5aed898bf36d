"""What is not needed is not imported: libraries that take long would be paid for by every process and every command."""

import json
import subprocess
import sys

import pytest

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec import PoolSpec

NEVER = {"cryptography", "kubernetes", "rich.progress", "statistics", "unittest", "yaml"}
"""Needed by single options or commands."""
ENVOY = {"betterproto2", "envoy_data_plane"}
"""Envoy's message classes: 0.3 s of CPU."""
HTTP = {"aiohttp"}
"""0.15 s."""
TELEMETRY = {"opentelemetry.exporter.otlp.proto.grpc", "opentelemetry.sdk.metrics"}
"""What the thread imports that first exports spans."""
COMMANDS = {"click", "rich"}
MOST_DATACLASSES = 57
"""Of ours, in a control server: each takes about 1 ms of CPU at import, where a msgspec struct takes 0.02 ms."""


def output_of(code: str, expression: str, *arguments: str) -> list[str]:
    """The list that ``expression`` gives in a new interpreter after ``code``."""
    code = f"import json, sys\n{code}\nsys.stdout.write('\\n' + json.dumps({expression}))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def imported_by(code: str, *arguments: str) -> set[str]:
    """The modules that a new interpreter has after ``code``."""
    return set(output_of(code, "list(sys.modules)", *arguments))


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


def test_a_control_server_compiles_few_classes_at_its_start() -> None:
    made = output_of(
        "import dataclasses\nmake, made = dataclasses._process_class, []\n"
        "def counted(cls, *rest): made.append(f'{cls.__module__}.{cls.__name__}'); return make(cls, *rest)\n"
        "dataclasses._process_class = counted\nimport understudy.xds.control.server",
        "made",
    )
    ours = [name for name in made if name.startswith("understudy.")]
    assert len(ours) <= MOST_DATACLASSES, sorted(ours)


def test_the_validators_of_a_spec_are_built_when_they_are_used() -> None:
    built = "[name for name, kind in vars(spec).items() if getattr(kind, '__pydantic_complete__', False)]"
    assert output_of("from understudy.statesync.pool import spec\nimport understudy.xds.control.server", built) == []


async def test_status_needs_neither_an_http_library_nor_telemetry(etcd, client: EtcdClient, pool_name: str) -> None:
    await client.put(PoolKeys(pool_name).spec, PoolSpec(pool=pool_name, slots=4).encode())
    run = "from understudy.deploy.cli.main import cli\ntry: cli(sys.argv[1:])\nexcept SystemExit: pass"
    found = imported_by(run, "status", "--pool", pool_name, "--etcd", etcd.endpoint)
    assert "understudy.deploy.inspect.controls" in found
    assert found & (NEVER | ENVOY | HTTP | {"opentelemetry", "prometheus_client", "sqlite3"}) == set()
    assert not {name for name in found if name.startswith(("understudy.proxy", "understudy.xds"))}
