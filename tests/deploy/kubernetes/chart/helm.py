"""The chart as Helm's own engine renders it: helm-python-sdk has Helm's Go library."""

import yaml
from helm_python.chart import Chart

from tests.harness.places import ROOT

CHART = ROOT / "deploy/chart"


def helm_template(values, namespace="understudy"):
    """``helm template``: the objects. Raises helm_python's error for values that the schema refuses."""
    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name="us", namespace=namespace)
    return [
        one
        for file, text in sorted(rendered.items())
        if file.endswith(".yaml")
        for one in yaml.safe_load_all(text)
        if one
    ]
