"""Phases as histograms with their traces as exemplars, and rules and pictures that name only what there is."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.harness.commands import ROOT
from tests.test_pages import anchors
from understudy.telemetry.metrics.phase_metrics import PhaseMetrics, expose
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import trace_seed
from understudy.telemetry.tracing.setup import start_telemetry

OBSERVABILITY = ROOT / "deploy/observability"
RULES = yaml.safe_load((OBSERVABILITY / "rules.yaml").read_text())
DASHBOARD = json.loads((OBSERVABILITY / "dashboard.json").read_text())
PAGE = (ROOT / "docs/telemetry.md").read_text()
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TRACE = trace_seed("cart", names.KIND_TAKEOVER, "cart-2/b1")
MS = 1_000_000


def samples(registry: CollectorRegistry):
    text, content_type = expose(registry, OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    return [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]


@pytest.mark.parametrize("disabled", ["true", "false"])
def test_what_is_traced_is_measured_with_its_trace_as_exemplar(monkeypatch, disabled):
    monkeypatch.setenv("OTEL_SDK_DISABLED", disabled)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    registry = CollectorRegistry()
    telemetry = start_telemetry(names.SERVICE_CONTROL, "control-1")
    telemetry.on_span = PhaseMetrics(registry, "shop").recorded
    trace = telemetry.failover(TRACE.traceparent)
    trace.phase(names.CLAIM, 0, 7 * MS, {names.SLOT: 3, names.MEMBER: "cart-1"})
    trace.root(0, 31 * MS)
    trace.root(0, 10_000 * MS, {names.UNMEASURED: True})
    trace.phase(names.RETURNED, 0, MS, {names.RETURNED_ALIVE: True})
    trace.phase(names.RETURNED, 0, MS, {names.RETURNED_ALIVE: True, names.COULD_NOT_SERVE: "it stood still"})
    trace.phase(names.RETURNED, 0, MS, {names.RETURNED_ALIVE: False})
    telemetry.shutdown()
    found = {(one.name, tuple(sorted(one.labels.values()))): one for one in samples(registry)}
    assert found["understudy_phase_seconds_count", (names.CLAIM,)].value == 1
    bucket = found["understudy_phase_seconds_bucket", ("0.01", names.CLAIM)]
    assert bucket.exemplar.labels == {"trace_id": TRACE.hex}
    assert found["understudy_change_seconds_sum", ("failover",)].value == pytest.approx(0.031)
    assert found["understudy_changes_total", ("failover", "measured")].value == 1
    assert found["understudy_changes_total", ("failover", "unmeasured")].value == 1
    assert found["understudy_false_failovers_total", ()].value == 1
    assert "cart" not in expose(registry, "")[0].decode()


def test_a_scraper_that_knows_only_the_old_text_gets_it():
    registry = CollectorRegistry()
    PhaseMetrics(registry, "shop")
    assert expose(registry, "text/plain")[1].startswith("text/plain")


# Rules, dashboard, page


def explained() -> set[str]:
    """The metrics that the page explains."""
    return set(re.findall(r"`(understudy_[a-z_]+)`", PAGE))


def mentioned(expression: str) -> set[str]:
    """The metrics in a PromQL expression, histograms by the name of the whole."""
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\bunderstudy_[a-z_]+", expression)}


def rules() -> list[dict]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def test_every_metric_that_is_made_is_explained_and_every_one_explained_is_made():
    rooms = (
        "xds/server/metrics.py",
        "proxy/redis/metrics.py",
        "proxy/sidecar/metrics.py",
        "telemetry/metrics/phase_metrics.py",
        "telemetry/metrics/span_metrics.py",
    )
    others = (
        "xds/control/balance_metrics.py",
        "xds/control/capacity_view.py",
        "xds/control/pool_metrics.py",
        "xds/control/process_metrics.py",
        "deploy/kubernetes/webhook/server.py",
        "deploy/mirror/metrics.py",
    )
    sources = "".join((ROOT / path).read_text() for path in (*rooms, *others))
    for metric in explained():
        bare = metric.removesuffix("_total").removesuffix("_info")
        stems = (bare, bare.removeprefix("understudy_"), bare.removeprefix("understudy_xds_"))
        assert any(f'"{stem}"' in sources or f'}}{stem}"' in sources for stem in stems), metric


def test_rules_and_dashboard_name_only_metrics_that_are_explained():
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for expression in [rule["expr"] for rule in rules()] + targets:
        assert mentioned(expression) <= explained(), expression
        assert set(re.findall(r"understudy:[a-z0-9_:]+", expression)) <= recorded
        assert mentioned(expression) or "understudy:" in expression


def test_every_alert_says_what_to_do_and_is_on_the_page():
    alerts = [rule for rule in rules() if "alert" in rule]
    for alert in alerts:
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert alert["labels"]["severity"] in ("page", "ticket")
    assert re.findall(r"^\| `(Understudy[A-Za-z]+)`", PAGE, re.MULTILINE) == [alert["alert"] for alert in alerts]


def test_every_alert_leads_to_its_own_section_of_operations():
    page = (ROOT / "docs/operations.md").read_text()
    section = page.partition("## When an alert fires\n")[2].partition("\n## ")[0]
    alerts = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules() if "alert" in rule}
    assert re.findall(r"^### (.*)$", section, re.MULTILINE) == list(alerts)
    for alert, url in alerts.items():
        assert url == f"docs/operations.md#{alert.lower()}"
        assert url.partition("#")[2] in anchors(page)
    for text in section.split("\n### ")[1:]:
        assert "\n- Look at: " in text
        assert "\n- Do: " in text


def test_the_dashboard_has_the_form_that_grafana_takes():
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= DASHBOARD.keys()
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    for panel in panels:
        assert panel["description"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_grafanas_own_types_know_every_field_of_the_dashboard():
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    assert set(fields(DASHBOARD)) - set(fields(read)) == set()


def fields(part: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every value of a JSON document with where it stands."""
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in inner:
        yield from fields(value, f"{path}/{key}")
    if not isinstance(part, dict | list):
        yield path, part


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_prometheus_accepts_the_rules():
    command = ["promtool", "check", "rules", OBSERVABILITY / "rules.yaml"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr + checked.stdout


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_each_alert_speaks_when_it_should_and_is_silent_when_it_should():
    files = [OBSERVABILITY / "rules_test.yaml", OBSERVABILITY / "rules_test_days.yaml"]
    scenes = [scene for file in files for scene in yaml.safe_load(file.read_text())["tests"]]
    tested = {one["alertname"] for scene in scenes for one in scene["alert_rule_test"] if "exp_alerts" in one}
    assert tested == {rule["alert"] for rule in rules() if "alert" in rule}
    command = ["promtool", "test", "rules", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
