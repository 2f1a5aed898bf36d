"""Objectives in and out as OpenSLO v1, and as rules for Sloth and Prometheus."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from understudy.telemetry.slo.model import Targets
from understudy.telemetry.slo.openslo import (
    _BUCKETS,
    OpenSloError,
    check,
    from_openslo,
    to_openslo,
    to_prometheus,
    to_sloth,
)
from understudy.xds.server.metrics import _SECONDS

DOCUMENT = to_openslo(Targets(), "cart").split("---\n")[1]


def imported(text):
    return from_openslo(list(yaml.safe_load_all(text)), Targets(), where="objectives.yaml")


def test_the_buckets_are_those_that_are_served():
    assert _BUCKETS == _SECONDS


@given(
    st.floats(0.001, 3600).map(lambda value: round(value, 6)),
    st.integers(1, 99_999).map(lambda value: value / 100_000),
)
def test_what_goes_out_comes_back(seconds, share):
    targets = Targets(rto=seconds, exposure=share, unmeasured=share)
    assert imported(to_openslo(targets, "cart.eu")) == targets


def test_an_import_changes_only_what_it_names():
    assert imported(DOCUMENT.replace("value: 1.0", "value: 0.25")) == replace(Targets(), rto=0.25)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("openslo/v1", "openslo/v2", "apiVersion"),
        ("kind: SLO", "kind: SLI?", "kind must be"),
        ("name: cart-rto", "name: Cart RTO", "RFC 1123"),
        ("duration: 30d", "duration: 30 days", "no duration"),
        ("Occurrences", "Sometimes", "budgetingMethod"),
        ("target: 0.99", "target: 1.0", "target must be in"),
        ("target: 0.99", "target: 0.95", "99th percentile"),
        ("op: lte", "op: gte", "at most"),
        ("op: lte", "op: le", "op must be"),
        ("value: 1.0", "value: soon", "number"),
        ("value: 1.0", "value: .nan", "number"),
        ("service: cart", "service: [cart]", "service"),
        ("understudy.dev/objective", "example.com/objective", "no SLO has the annotation"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_name(before, after, told):
    assert before in DOCUMENT
    with pytest.raises(OpenSloError, match=told):
        imported(DOCUMENT.replace(before, after, 1))


def test_documents_of_other_kinds_may_stand_beside():
    service = "apiVersion: openslo/v1\nkind: Service\nmetadata: {name: cart}\nspec: {}\n"
    assert imported(f"{service}---\n{DOCUMENT}") == Targets()
    with pytest.raises(OpenSloError, match="mapping"):
        check([], "x")


COMPOSITE = """
apiVersion: openslo/v1
kind: SLO
metadata: {name: shop}
spec:
  service: shop
  budgetingMethod: RatioTimeslices
  timeWindow: [{duration: 1M, isRolling: false, calendar: {startTime: 2026-01-01 00:00:00, timeZone: UTC}}]
  objectives:
  - {target: 0.98, timeSliceWindow: 1m, indicatorRef: paid, compositeWeight: 2}
  - target: 0.95
    timeSliceWindow: 1m
    indicator:
      metadata: {name: found}
      spec:
        ratioMetric:
          good: {metricSource: {type: Prometheus, spec: {query: found_total}}}
          total: {metricSource: {type: Prometheus, spec: {query: asked_total}}}
"""


def test_all_that_openslo_knows_may_stand_beside_ours():
    check(yaml.safe_load(COMPOSITE), "x")
    assert imported(f"{COMPOSITE}---\n{DOCUMENT}") == Targets()


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("indicatorRef: paid, ", "", "either indicator or indicatorRef"),
        ("  objectives:", "  indicatorRef: whole\n  objectives:", "or else each objective"),
        ("isRolling: false", "isRolling: true", "isRolling"),
        ("- {target: 0.98, timeSliceWindow: 1m", "- {target: 0.98", "timeSliceWindow"),
        ("metadata: {name: found}", "metadata: {}", "spec.indicator.metadata.name"),
        ("total: {", "bad: {", "ratioMetric"),
        ("spec: {query: asked_total}", "spec: {}", "metricSource"),
        ("good:", "raw:", "ratioMetric"),
    ],
)
def test_rules_of_composite_slos_are_kept_too(before, after, told):
    assert before in COMPOSITE
    with pytest.raises(OpenSloError, match=told):
        check(yaml.safe_load(COMPOSITE.replace(before, after, 1)), "x")


def test_rules_for_prometheus_and_sloth_name_the_series_that_exist():
    rules = yaml.safe_load(to_prometheus(Targets(propagation=0.3), "cart"))["groups"][0]["rules"]
    assert [rule["labels"]["severity"] for rule in rules if "alert" in rule] == ["page", "page", "ticket"]
    assert 'understudy_xds_ack_seconds_bucket{type="EDS",le="0.25"}[1h]' in rules[2]["expr"]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    assert all(any(name in rule["expr"] for name in recorded) for rule in rules if "alert" in rule)
    sloth = yaml.safe_load(to_sloth(Targets(), "cart"))
    assert sloth["version"] == "prometheus/v1"
    assert "[{{.window}}]" in sloth["slos"][0]["sli"]["events"]["error_query"]


# Rules for Prometheus, judged by its own tool

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool (Debian: prometheus)")


def promtool(directory: Path, *arguments: str) -> str:
    """Run promtool in a directory; what it said is the assertion's message."""
    done = subprocess.run([str(PROMTOOL), *arguments], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sloth_rules(spec: str) -> str:
    """A Sloth spec as the rules that Sloth makes of it: one ratio for each of its windows."""
    (slo,) = yaml.safe_load(spec)["slos"]
    events = slo["sli"]["events"]
    rules = [
        {
            "record": f"slo:sli_error:ratio_rate{window}",
            "expr": f"({events['error_query']})\n/\n({events['total_query']})".replace("{{.window}}", window),
        }
        for window in ("5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d")
    ]
    return yaml.safe_dump({"groups": [{"name": "sloth", "rules": rules}]})


@needs_promtool
@pytest.mark.parametrize("pool", ["cart", "cart.eu-west"])
def test_prometheus_takes_both_kinds_of_rules(tmp_path, pool):
    (tmp_path / "own.yaml").write_text(to_prometheus(Targets(), pool))
    (tmp_path / "sloth.yaml").write_text(sloth_rules(to_sloth(Targets(), pool)))
    assert "8 rules found" in promtool(tmp_path, "check", "rules", "own.yaml", "sloth.yaml")


def acknowledged(late: int, instance: str = "a") -> list[dict[str, str]]:
    """Series of a control server: a hundred acknowledgements a minute, of which so many are late."""
    labels = f'type="EDS",instance="{instance}"'
    return [
        {"series": f"understudy_xds_ack_seconds_count{{{labels}}}", "values": "0+100x400"},
        {"series": f'understudy_xds_ack_seconds_bucket{{{labels},le="1.0"}}', "values": f"0+{100 - late}x400"},
    ]


@needs_promtool
@pytest.mark.parametrize(
    ("late", "firing"),
    [(15, {"1h": "page", "6h": "page", "3d": "ticket"}), (7, {"6h": "page", "3d": "ticket"}), (1, {}), (0, {})],
)
def test_alerts_fire_as_fast_as_the_budget_burns_and_for_their_own_pool_only(tmp_path, late, firing):
    (tmp_path / "rules.yaml").write_text(to_prometheus(Targets(), "cart"))
    told = "Envoys of pool cart acknowledge changes late; see understudy status --xds"
    alerts = [
        {
            "exp_labels": {"severity": severity, "pool": "cart", "window": window},
            "exp_annotations": {"summary": told},
        }
        for window, severity in firing.items()
    ]
    pools = [("cart", "a"), ("shop", "b")]
    infos = [
        {"series": f'understudy_pool_info{{pool="{pool}",instance="{instance}"}}', "values": "1x400"}
        for pool, instance in pools
    ]
    scene = {
        "interval": "1m",
        "input_series": [*acknowledged(late), *acknowledged(100, "b"), *infos],
        "alert_rule_test": [{"eval_time": "390m", "alertname": "UnderstudyPropagationBurn", "exp_alerts": alerts}],
    }
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [scene]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document))
    promtool(tmp_path, "test", "rules", "test.yaml")
