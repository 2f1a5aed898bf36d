"""Objectives as OpenSLO v1 YAML, in and out, and as Sloth and Prometheus rules for what a time series can carry.

OpenSLO: https://github.com/OpenSLO/OpenSLO (apiVersion ``openslo/v1``, kind SLO); its rules are checked both ways, as
its own validator has them (OpenSLO/go-sdk, ``pkg/openslo/v1``), composite SLOs included.
An objective is known by the annotation :data:`KEY`. Percentiles of failovers become ``Occurrences`` with a threshold
and a target of 0.99; shares a target of one minus what may be bad. Counts (lost writes, needless moves) have no error
budget, and a target of 1 is outside OpenSLO's [0, 1), so they are not exported. Of the rest only propagation is a time
series of ours (``understudy_xds_ack_seconds``); the other figures come from traces.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import yaml

from understudy.telemetry.slo.model import Targets

API = "openslo/v1"
KEY = "understudy.dev/objective"
TIMES = ("rto", "planned_stall", "propagation", "re_protection")
SHARES = ("failed_requests", "unavailability", "exposure", "unmeasured")
_P99 = 0.99
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DURATION = re.compile(r"[1-9][0-9]*[mhdwMQY]")
_KINDS = ("DataSource", "SLO", "SLI", "AlertPolicy", "AlertCondition", "AlertNotificationTarget", "Service")
_METHODS = ("Occurrences", "Timeslices", "RatioTimeslices")
_RAW_TYPES = ("success", "failure")
_OPERATORS = ("lte", "gte", "lt", "gt")
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The bounds of ``understudy_xds_ack_seconds``; a test keeps them equal to what the control server serves."""
_TITLES = {
    "rto": "Crash RTO",
    "planned_stall": "Planned stall",
    "propagation": "Propagation to Envoy",
    "re_protection": "Re-protection time",
    "failed_requests": "Failed requests",
    "unavailability": "Failover unavailability",
    "exposure": "Exposure",
    "unmeasured": "Unmeasured changes",
}


class OpenSloError(ValueError):
    """A text that is no OpenSLO v1, or sets no objective of ours; the text says where and what is wrong."""


def to_openslo(targets: Targets, pool: str, *, days: int = 30) -> str:
    """The objectives that have an error budget, as one YAML document each; window rolling over ``days``."""
    wanted = asdict(targets)
    documents = [_document(key, wanted[key], pool, days) for key in (*TIMES, *SHARES) if _expressible(key, wanted[key])]
    for number, document in enumerate(documents):
        check(document, f"document {number + 1}")
    return yaml.safe_dump_all(documents, sort_keys=False, explicit_start=True)


def from_openslo(documents: Sequence[Any], targets: Targets, *, where: str) -> Targets:
    """``targets`` with what the SLOs among ``documents`` set; those of other kinds are checked and left out.

    ``documents`` is parsed YAML.

    Raises:
        OpenSloError: it breaks a rule of OpenSLO, or holds no objective that is ours.
    """
    found: dict[str, Any] = {}
    for number, document in enumerate(documents, 1):
        place = f"{where}, document {number}"
        check(document, place)
        if document["kind"] != "SLO":
            continue
        key = (document["metadata"].get("annotations") or {}).get(KEY)
        if key not in (*TIMES, *SHARES):
            continue
        if key in found:
            raise OpenSloError(f"{place}: {key} is set twice")
        found[key] = _read(key, document["spec"]["objectives"][0], place)
    if not found:
        known = ", ".join((*TIMES, *SHARES))
        raise OpenSloError(f"{where}: no SLO has the annotation {KEY} with one of: {known}")
    return replace(targets, **found)


def check(document: object, where: str) -> None:
    """Raise :class:`OpenSloError` unless ``document`` keeps the rules of OpenSLO v1, for an SLO all of them."""
    if not isinstance(document, dict):
        raise OpenSloError(f"{where}: an OpenSLO document is a mapping with apiVersion, kind, metadata and spec")
    _need(document.get("apiVersion") == API, where, f"apiVersion must be {API}, not {document.get('apiVersion')!r}")
    _need(document.get("kind") in _KINDS, where, f"kind must be one of {', '.join(_KINDS)}")
    _check_metadata(document, where, "")
    spec = document.get("spec")
    _need(isinstance(spec, dict), where, "spec is missing")
    if document["kind"] == "SLO" and isinstance(spec, dict):
        _check_slo(spec, where)


def _check_metadata(document: Mapping[str, Any], where: str, at: str) -> None:
    metadata = document.get("metadata")
    _need(isinstance(metadata, dict), where, f"{at}metadata is missing")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    sound = isinstance(name, str) and _NAME.fullmatch(name) is not None
    _need(sound, where, f"{at}metadata.name {name!r}: see RFC 1123")
    notes = metadata.get("annotations") if isinstance(metadata, dict) else None
    _need(notes is None or isinstance(notes, dict), where, f"{at}metadata.annotations must be a mapping")


def _check_slo(spec: Mapping[str, Any], where: str) -> None:
    _need(len(str(spec.get("description", ""))) <= 1050, where, "spec.description has more than 1050 characters")
    _need(isinstance(spec.get("service"), str), where, "spec.service must be text")
    method = spec.get("budgetingMethod")
    _need(method in _METHODS, where, f"spec.budgetingMethod must be one of {', '.join(_METHODS)}")
    windows = spec.get("timeWindow", [])
    _need(isinstance(windows, list) and len(windows) <= 1, where, "spec.timeWindow takes exactly one item")
    for window in windows:
        duration = window.get("duration") if isinstance(window, dict) else None
        sound = isinstance(duration, str) and _DURATION.fullmatch(duration)
        _need(bool(sound), where, f"spec.timeWindow: {duration!r} is no duration like 30d")
        rolling = isinstance(window, dict) and bool(window.get("isRolling")) != ("calendar" in window)
        _need(rolling, where, "spec.timeWindow is either isRolling: true or has a calendar")
    objectives = spec.get("objectives")
    _need(isinstance(objectives, list) and bool(objectives), where, "spec.objectives needs at least one objective")
    listed = objectives if isinstance(objectives, list) else []
    for objective in listed:
        _need(isinstance(objective, dict), where, "an objective is a mapping")
    # A composite SLO has an indicator in each objective, any other has one for the whole.
    composite = any(_indicators(objective) for objective in listed)
    _need(composite != bool(_indicators(spec)), where, "spec, or else each objective, needs indicator or indicatorRef")
    threshold = False if composite else _check_indicator(spec, where)
    _need(not threshold or len(listed) == 1, where, "with a thresholdMetric exactly one objective may be given")
    for objective in listed:
        inner = _check_indicator(objective, where) if composite else threshold
        _check_objective(objective, where, threshold=inner, method=str(method))


def _indicators(part: Mapping[str, Any]) -> set[str]:
    return {"indicator", "indicatorRef"} & part.keys()


def _check_indicator(part: Mapping[str, Any], where: str) -> bool:
    """Whether the indicator of an SLO, or of an objective, is a threshold metric; if it only refers to one, False."""
    _need(len(_indicators(part)) == 1, where, "there must be either indicator or indicatorRef")
    if "indicatorRef" in part:
        return False
    indicator = part["indicator"]
    spec = indicator.get("spec") if isinstance(indicator, dict) else None
    _need(isinstance(spec, dict), where, "spec.indicator.spec is missing")
    _check_metadata(indicator, where, "spec.indicator.")
    found = spec if isinstance(spec, dict) else {}
    either = ("thresholdMetric" in found) != ("ratioMetric" in found)
    _need(either, where, "spec.indicator needs either thresholdMetric or ratioMetric")
    if "ratioMetric" in found:
        ratio = found["ratioMetric"]
        parts = set(ratio) if isinstance(ratio, dict) else set()
        raw = "raw" in parts and ratio.get("rawType") in _RAW_TYPES and not parts & {"good", "bad", "total"}
        counted = "total" in parts and ("good" in parts) != ("bad" in parts) and "raw" not in parts
        _need(raw or counted, where, "ratioMetric needs total with good or bad, or else raw with rawType")
        metrics = [ratio[part] for part in sorted(parts & {"raw", "good", "bad", "total"})]
    else:
        metrics = [found["thresholdMetric"]]
    for metric in metrics:
        source = metric.get("metricSource") if isinstance(metric, dict) else None
        inside = source.get("spec") if isinstance(source, dict) else None
        _need(isinstance(inside, dict) and bool(inside), where, "a metric needs a metricSource with a spec")
    return "thresholdMetric" in found


def _check_objective(given: Mapping[str, Any], where: str, *, threshold: bool, method: str) -> None:
    _need(("target" in given) != ("targetPercent" in given), where, "an objective has either target or targetPercent")
    name, most = ("target", 1) if "target" in given else ("targetPercent", 100)
    _need(_is_number(given[name]) and 0 <= given[name] < most, where, f"{name} must be in [0, {most})")
    if threshold:
        _need(given.get("op") in _OPERATORS, where, f"op must be one of {', '.join(_OPERATORS)}")
        _need(_is_number(given.get("value")), where, "value must be a number, for a thresholdMetric")
    if method == "Timeslices":
        share = given.get("timeSliceTarget")
        _need(_is_number(share) and 0 < share <= 1, where, "Timeslices needs timeSliceTarget in (0, 1]")  # type: ignore[operator]
    if method != "Occurrences":
        slice_ = given.get("timeSliceWindow")
        sound = isinstance(slice_, str) and _DURATION.fullmatch(slice_) is not None
        _need(sound, where, f"{method} needs timeSliceWindow, a duration like 1m")


def to_sloth(targets: Targets, pool: str) -> str:
    """A Sloth spec (``prometheus/v1``, https://sloth.dev) of the objectives that a time series carries."""
    bad, total = _propagation(targets, pool, "{{.window}}")
    slo = {
        "name": "propagation",
        "objective": 99.0,
        "description": f"Envoys acknowledge a change within {targets.propagation:g} s.",
        "sli": {"events": {"error_query": bad, "total_query": total}},
        "alerting": {
            "name": "UnderstudyPropagationBurn",
            "page_alert": {"labels": {"severity": "page"}},
            "ticket_alert": {"labels": {"severity": "ticket"}},
        },
    }
    head = {"version": "prometheus/v1", "service": f"understudy-{pool}", "labels": {"pool": pool}, "slos": [slo]}
    return yaml.safe_dump(head, sort_keys=False, width=1000)


def to_prometheus(targets: Targets, pool: str) -> str:
    """Prometheus rules with multi-window, multi-burn-rate alerts (SRE workbook, table 5-8), as :func:`to_sloth`."""
    windows = ("5m", "30m", "1h", "6h", "3d")
    recorded: list[dict[str, Any]] = []
    for window in windows:
        bad, total = _propagation(targets, pool, window)
        recorded.append({"record": f"understudy:propagation:error_ratio_{window}", "expr": f"({bad}) / ({total})"})
    for rule in recorded:
        rule["labels"] = {"pool": pool}
    alerts = [
        {
            "alert": "UnderstudyPropagationBurn",
            "expr": (
                f'understudy:propagation:error_ratio_{long}{{pool="{pool}"}} > ({rate} * {1 - _P99:.2g})'
                f' and understudy:propagation:error_ratio_{short}{{pool="{pool}"}} > ({rate} * {1 - _P99:.2g})'
            ),
            "labels": {"severity": severity, "pool": pool, "window": long},
            "annotations": {"summary": f"Envoys of pool {pool} acknowledge changes late; see understudy status --xds"},
        }
        for long, short, rate, severity in (
            ("1h", "5m", 14.4, "page"),
            ("6h", "30m", 6, "page"),
            ("3d", "6h", 1, "ticket"),
        )
    ]
    groups = [{"name": "understudy-slo-propagation", "rules": [*recorded, *alerts]}]
    return yaml.safe_dump({"groups": groups}, sort_keys=False, width=1000)


def _propagation(targets: Targets, pool: str, window: str) -> tuple[str, str]:
    """Queries of late and of all acknowledgements of a pool; the bound is the bucket at or below the objective."""
    bound = max((bound for bound in _BUCKETS if bound <= targets.propagation), default=_BUCKETS[0])
    metric = "understudy_xds_ack_seconds"
    of_pool = f'* on (instance, job) group_left () understudy_pool_info{{pool="{pool}"}}'
    total = f'sum(rate({metric}_count{{type="EDS"}}[{window}]) {of_pool})'
    return f'{total} - sum(rate({metric}_bucket{{type="EDS",le="{bound}"}}[{window}]) {of_pool})', total


def _document(key: str, wanted: float, pool: str, days: int) -> dict[str, Any]:
    source = {
        "metricSource": {"type": "understudy", "spec": {"command": f"understudy slo --pool {pool}", "figure": key}}
    }
    times = key in TIMES
    metric: dict[str, Any] = (
        {"thresholdMetric": source} if times else {"ratioMetric": {"rawType": "failure", "raw": source}}
    )
    objective: dict[str, Any] = (
        {"op": "lte", "value": wanted, "target": _P99} if times else {"target": round(1 - wanted, 12)}
    )
    name = f"{pool.replace('.', '-')[:40]}-{key.replace('_', '-')}"
    return {
        "apiVersion": API,
        "kind": "SLO",
        "metadata": {"name": name, "displayName": _TITLES[key], "annotations": {KEY: key}},
        "spec": {
            "description": f"{_TITLES[key]} of pool {pool}" + (", in seconds, by failover." if times else "."),
            "service": pool,
            "indicator": {"metadata": {"name": f"{name}-sli"}, "spec": metric},
            "timeWindow": [{"duration": f"{days}d", "isRolling": True}],
            "budgetingMethod": "Occurrences",
            "objectives": [objective],
        },
    }


def _expressible(key: str, wanted: float) -> bool:
    """Whether OpenSLO can say it: a target must be in [0, 1)."""
    return key in TIMES or 0 < wanted <= 1


def _read(key: str, objective: Mapping[str, Any], where: str) -> float:
    target = objective["target"] if "target" in objective else objective["targetPercent"] / 100
    if key in SHARES:
        return round(1 - float(target), 12)
    _need(abs(target - _P99) < 1e-9, where, f"{key} is judged at the 99th percentile: target must be {_P99}")
    _need(objective.get("op") in ("lte", "lt"), where, f"{key} must be at most its value: op lte")
    value = float(objective.get("value", 0))
    _need(0 < value <= 3600, where, f"value of {key} must be in seconds, above 0 and at most 3600")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # noqa: PLR0124 - NaN


def _need(held: bool, where: str, rule: str) -> None:
    if not held:
        raise OpenSloError(f"{where}: {rule}")
