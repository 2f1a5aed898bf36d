"""The page that explains names, and the module that defines them, say the same."""

import re
from pathlib import Path

from understudy.telemetry.tracing import names, setup
from understudy.telemetry.tracing import otlp_grpc_exporter as otlp
from understudy.telemetry.tracing import otlp_http_exporter as otlp_http

PAGE = (Path(__file__).parents[3] / "docs" / "telemetry.md").read_text()


def table(heading: str) -> list[str]:
    """The first column of the table under a heading of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_every_root_span_is_explained():
    assert table("Root spans") == [*names.ROOTS, *names.SITE_SPANS]


def test_every_phase_is_explained():
    assert table("Phases") == list(names.PHASES)


def test_every_attribute_is_explained():
    assert table("Attributes") == list(names.ATTRIBUTES)


def test_every_metric_of_front_envoys_is_explained():
    assert table("Requests through Envoy") == list(names.METRICS)


def test_the_tuples_name_every_constant():
    defined = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    kinds = {names.KIND_TAKEOVER, names.KIND_HANDOVER, names.SCOPE}
    words = {
        *names.ROOTS,
        *names.SITE_SPANS,
        *names.PHASES,
        *names.ATTRIBUTES,
        *names.METRICS,
        names.NODE_NAME,
        names.KEYLESS_ROUTES,
        names.KEYED_ROUTES,
        names.SITE_PREFIX,
    }
    listed = {*words, *names.CONVENTIONS, *names.SERVICES, names.SERVICE_ENVOY}
    assert defined == listed | kinds


def test_our_own_attributes_have_our_prefix_and_the_others_are_mentioned():
    assert all(name.startswith("understudy.") for name in names.ATTRIBUTES)
    assert all(f"`{name}`" in PAGE for name in (*names.CONVENTIONS, *names.SERVICES))


READERS = re.compile(r"telemetry/(tracing/names|slo/\w+|store/\w+|otlp/(logs|counts))\.py")
"""Modules that read what others have recorded."""


def test_every_name_is_emitted_by_some_code():
    root = Path(__file__).parents[3]
    files = [f for room in ("telemetry", "statesync", "xds", "proxy", "deploy") for f in (root / room).rglob("*.py")]
    code = "\n".join(file.read_text() for file in files if not READERS.fullmatch(str(file.relative_to(root))))
    used = set(re.findall(r"\b[A-Z][A-Z_]+\b", code))
    spans = {*names.ROOTS, *names.SITE_SPANS, *names.PHASES}
    listed = {*spans, *names.ATTRIBUTES, *names.CONVENTIONS, *names.SERVICES, names.SERVICE_ENVOY}
    unused = {name for name, value in vars(names).items() if isinstance(value, str) and value in listed} - used
    assert not unused


def test_every_variable_that_is_read_is_explained():
    read = set()
    for module in (setup, otlp, otlp_http):
        read |= set(re.findall(r'"(OTEL_[A-Z_]+)"', Path(module.__file__).read_text()))
    explained = re.findall(r"`(OTEL_[A-Z_]+)`", PAGE.split("\n## Environment variables\n")[1].split("\n## ")[0])
    general = {name.replace("_TRACES_", "_") for name in read if name.startswith("OTEL_EXPORTER_OTLP_")}
    assert {name for name in read if not name.startswith("OTEL_EXPORTER_OTLP_")} | general <= set(explained)
