"""Objectives in and out as OpenSLO v1, and as rules for Sloth and Prometheus."""

from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from telemetry.openslo import _BUCKETS, OpenSloError, check, from_openslo, to_openslo, to_prometheus, to_sloth
from telemetry.slo_model import Targets
from xds.metrics import _SECONDS

DOCUMENT = to_openslo(Targets(), "cart").split("---\n")[1]


def test_the_buckets_are_those_that_are_served():
    assert _BUCKETS == _SECONDS


@given(
    st.floats(0.001, 3600).map(lambda value: round(value, 6)),
    st.integers(1, 99_999).map(lambda value: value / 100_000),
)
def test_what_goes_out_comes_back(seconds, share):
    targets = Targets(rto=seconds, exposure=share, unmeasured=share)
    assert from_openslo(to_openslo(targets, "cart.eu"), Targets(), where="x") == targets


def test_an_import_changes_only_what_it_names():
    assert from_openslo(DOCUMENT.replace("value: 1.0", "value: 0.25"), Targets(), where="x") == replace(
        Targets(), rto=0.25
    )


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
        ("objectives:", "objectives: {", "not YAML"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_name(before, after, told):
    assert before in DOCUMENT
    with pytest.raises(OpenSloError, match=told):
        from_openslo(DOCUMENT.replace(before, after, 1), Targets(), where="objectives.yaml")


def test_documents_of_other_kinds_may_stand_beside():
    service = "apiVersion: openslo/v1\nkind: Service\nmetadata: {name: cart}\nspec: {}\n"
    assert from_openslo(f"{service}---\n{DOCUMENT}", Targets(), where="x") == Targets()
    with pytest.raises(OpenSloError, match="mapping"):
        check([], "x")


def test_rules_for_prometheus_and_sloth_name_the_series_that_exist():
    rules = yaml.safe_load(to_prometheus(Targets(propagation=0.3), "cart"))["groups"][0]["rules"]
    assert [rule["labels"]["severity"] for rule in rules if "alert" in rule] == ["page", "page", "ticket"]
    assert 'understudy_xds_ack_seconds_bucket{type="EDS",le="0.25"}[1h]' in rules[2]["expr"]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    assert all(any(name in rule["expr"] for name in recorded) for rule in rules if "alert" in rule)
    sloth = yaml.safe_load(to_sloth(Targets(), "cart"))
    assert sloth["version"] == "prometheus/v1"
    assert "[{{.window}}]" in sloth["slos"][0]["sli"]["events"]["error_query"]
