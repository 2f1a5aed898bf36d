"""The last hour of a pool for the overview: requests, errors, retries and changes of active, step by step. Pure.

Front Envoys report to one control server each, so the steps of all of them are added
(:mod:`understudy.telemetry.receiver.front_series`). A step of which nothing is known is None, never 0.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from understudy.telemetry.receiver.front_series import FIELDS, STEP_SECONDS, STEPS

View = dict[str, Any]
STEPS_PER_MINUTE = 60 // STEP_SECONDS
RECENT_STEPS = 4
CHANGES = ("takeover", "handover")


class Traffic(msgspec.Struct, frozen=True):
    """What control servers answered at ``/v1/traffic``.

    Attributes:
        now: the step that has not ended.
        steps: the counts of each step that an Envoy reported in, in the order of ``FIELDS``.
        silent: control servers that gave no such answer.
    """

    now: int = 0
    steps: Mapping[int, Sequence[int]] = msgspec.field(default_factory=dict)
    silent: int = 0


def added(answers: Iterable[Any]) -> Traffic:
    """The sum of the answers; one that is text is a fault, and one with other steps is of another release."""
    now, silent = 0, 0
    steps: dict[int, tuple[int, ...]] = {}
    for answer in answers:
        if not isinstance(answer, dict) or (answer["step_seconds"], tuple(answer["fields"])) != (STEP_SECONDS, FIELDS):
            silent += 1
            continue
        now = max(now, answer["now"])
        for step, *counts in answer["steps"]:
            known = steps.get(step, (0,) * len(FIELDS))
            steps[step] = tuple(one + more for one, more in zip(known, counts, strict=True))
    return Traffic(now, steps, silent)


def traffic_view(traffic: Traffic, failovers: Iterable[View], now: float) -> View:
    """The last hour before ``now`` (wall time in seconds), whether or not somebody has reported."""
    end = traffic.now or int(now // STEP_SECONDS)
    wanted = range(end - STEPS, end)
    known = {step: dict(zip(FIELDS, counts, strict=True)) for step, counts in traffic.steps.items() if step in wanted}
    changes: dict[str, Counter[int]] = {kind: Counter() for kind in CHANGES}
    for row in failovers:
        changes[row["kind"]][int(row["started"] // STEP_SECONDS)] += 1
    series: dict[str, list[Any]] = {
        name: [known[step][name] if step in known else None for step in wanted] for name in FIELDS[1:]
    }
    series["rate"] = [_rate(count, STEP_SECONDS) for count in series["requests"]]
    moved = {kind: [changes[kind][step] for step in wanted] for kind in CHANGES}
    return {
        "step_seconds": STEP_SECONDS,
        "times": [step * STEP_SECONDS for step in wanted],
        "series": {**series, **moved},
        "summaries": _summaries(series, moved, traffic.silent),
        "minutes": _minutes(wanted, series, moved),
    }


def recent_rate(traffic: Traffic) -> float | None:
    """Requests a second in the last :data:`RECENT_STEPS` steps with a report; None if none had one."""
    told = [traffic.steps[step] for step in range(traffic.now - RECENT_STEPS, traffic.now) if step in traffic.steps]
    requests = sum(counts[FIELDS.index("requests")] for counts in told)
    return round(requests / (len(told) * STEP_SECONDS), 1) if told else None


def _rate(count: int | None, seconds: float) -> float | None:
    return None if count is None else round(count / seconds, 1)


def _summaries(series: Mapping[str, Sequence[Any]], moved: Mapping[str, Sequence[int]], silent: int) -> dict[str, str]:
    """What each chart shows, in a sentence."""
    rates = [rate for rate in series["rate"] if rate is not None]
    lacking = f" {_count(silent, 'control server')} did not answer, so some requests may be missing." if silent else ""
    takeovers, handovers = (sum(moved[kind]) for kind in CHANGES)
    changes = f"{_count(takeovers, 'takeover')} and {_count(handovers, 'planned handover')} began."
    if not rates:
        none = f"Not known: no front Envoy reported in the last hour.{lacking}"
        return {"rate": none, "trouble": none, "changes": changes}
    minutes = -(-len(rates) // STEPS_PER_MINUTE)
    mean = round(sum(rates) / len(rates), 1)
    failed, elsewhere, unanswered = (sum(filter(None, series[name])) for name in ("failed", "elsewhere", "unanswered"))
    return {
        "rate": f"{mean} requests a second on average and {max(rates)} at the most, in {minutes} min.{lacking}",
        "trouble": f"{failed} failed (5xx), {elsewhere} were answered by another member after a try at the first one, "
        f"{unanswered} tries found no member or no answer.{lacking}",
        "changes": changes,
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _minutes(wanted: range, series: Mapping[str, Sequence[Any]], moved: Mapping[str, Sequence[int]]) -> list[View]:
    """The same by the minute, the newest first: the table beside the charts."""
    rows: list[View] = []
    for first in range(0, len(wanted), STEPS_PER_MINUTE):
        part = slice(first, first + STEPS_PER_MINUTE)
        sums = {name: _sum(series[name][part]) for name in FIELDS[1:]}
        reported = sum(count is not None for count in series["requests"][part])
        rate = _rate(sums["requests"], reported * STEP_SECONDS) if reported else None
        counts = {kind: sum(moved[kind][part]) for kind in CHANGES}
        rows.append({"at": wanted[first] * STEP_SECONDS, "rate": rate, **sums, **counts})
    return rows[::-1]


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
