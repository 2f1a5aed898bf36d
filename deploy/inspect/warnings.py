"""The warnings about a pool that ``status`` prints and the console shows among its problems. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any

from understudy.deploy.inspect.fronts import front_warnings, place_warnings
from understudy.deploy.inspect.load import balance_warnings, busy_warnings
from understudy.deploy.inspect.member_views import View, forecast_warnings
from understudy.deploy.inspect.missing_members import missing_warnings
from understudy.deploy.inspect.recovering import recovery_warnings
from understudy.deploy.inspect.versions import version_warnings
from understudy.statesync.pool.state import PoolState


def recorded_warnings(state: PoolState) -> list[str]:
    """What the records in etcd say: members that will fail soon, and versions that nobody can serve."""
    return [*forecast_warnings(state), *version_warnings(state)]


def reported_warnings(statuses: Iterable[Any], fronts: Sequence[View]) -> list[str]:
    """What control servers say (their answers of ``/v1/status``), and what front Envoys report."""
    told = list(statuses)
    return [
        *missing_warnings(told),
        *recovery_warnings(told),
        *busy_warnings(told),
        *balance_warnings(told),
        *front_warnings(fronts),
        *place_warnings(told),
    ]
