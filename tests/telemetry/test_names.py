"""The page that explains names, and the module that defines them, say the same."""

import re
from pathlib import Path

from telemetry import names, otlp, otlp_http, setup

PAGE = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()


def table(heading: str) -> list[str]:
    """The first column of the table under a heading of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_every_root_span_is_explained():
    assert table("Root spans") == list(names.ROOTS)


def test_every_phase_is_explained():
    assert table("Phases") == list(names.PHASES)


def test_every_attribute_is_explained():
    assert table("Attributes") == list(names.ATTRIBUTES)


def test_every_metric_of_front_envoys_is_explained():
    assert table("Requests through Envoy") == list(names.METRICS)


def test_the_tuples_name_every_constant():
    defined = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    kinds = {names.KIND_TAKEOVER, names.KIND_HANDOVER, names.SCOPE}
    words = {*names.ROOTS, *names.PHASES, *names.ATTRIBUTES, *names.METRICS, names.NODE_NAME}
    listed = {*words, *names.CONVENTIONS, *names.SERVICES, names.SERVICE_ENVOY}
    assert defined == listed | kinds


def test_our_own_attributes_have_our_prefix_and_the_others_are_mentioned():
    assert all(name.startswith("understudy.") for name in names.ATTRIBUTES)
    assert all(f"`{name}`" in PAGE for name in (*names.CONVENTIONS, *names.SERVICES))


def test_every_variable_that_is_read_is_explained():
    read = set()
    for module in (setup, otlp, otlp_http):
        read |= set(re.findall(r'"(OTEL_[A-Z_]+)"', Path(module.__file__).read_text()))
    explained = re.findall(r"`(OTEL_[A-Z_]+)`", PAGE.split("\n## Environment variables\n")[1].split("\n## ")[0])
    general = {name.replace("_TRACES_", "_") for name in read if name.startswith("OTEL_EXPORTER_OTLP_")}
    assert {name for name in read if not name.startswith("OTEL_EXPORTER_OTLP_")} | general <= set(explained)
