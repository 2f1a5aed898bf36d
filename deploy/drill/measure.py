"""Measures what clients see during a drill.

:class:`LoadMeasure` makes requests itself, to the example cart or notebook; ``history_checker`` checks them.
:class:`EnvoyMeasure` counts the requests and failures of the pool's real clients in the front Envoy's statistics, and
:class:`ReportedMeasure` in what all front Envoys report to control servers; they measure no times. Times are seconds of
``time.monotonic()``.
"""

import asyncio
import ipaddress
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from understudy.deploy.common.errors import DeployError
from understudy.deploy.drill.conditions import ClientView, DrillKind
from understudy.deploy.inspect.controls import AdminError, ask_control, ask_controls
from understudy.deploy.load.history_checker import Content, HistoryReport, MemberKill, Op, check_history, percentile
from understudy.deploy.load.http_load import Load
from understudy.deploy.load.second_writer import second_writers
from understudy.deploy.load.tcp_load import NotebookLoad
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.spec import PoolSpec
from understudy.telemetry.tracing.names import COUNT_SECONDS

LARGEST_PACING = 2 / 3
"""Seconds between two requests of one client. Shorter ones measure gaps more exactly."""
REPORT_WAIT = COUNT_SECONDS + 1.0
"""Seconds after which every front Envoy has reported what happened before."""
_COUNTERS = ("downstream_rq_completed", "downstream_rq_5xx", "downstream_rq_tx_reset")


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault: its target, and when it began and ended. At ``ended`` the target was (or may have been) back.

    ``members``: the members that were hit, if they are not the target itself.
    """

    kind: DrillKind
    name: str
    began: float
    ended: float = math.inf
    members: frozenset[str] = frozenset()


class ClientMeasure(Protocol):
    """Measures clients of a pool before, during and after a drill."""

    async def start(self) -> None:
        """Start. Raises ``DeployError`` if the pool does not serve."""

    async def so_far(self) -> tuple[int, int]:
        """How many requests have ended since the start, and how many of them failed."""

    async def finish(self, fault: InjectedFault) -> ClientView:
        """Stop, and return what clients saw since the fault."""

    async def close(self) -> None:
        """Free everything, also after an interruption."""


class LoadMeasure:
    """Makes requests of its own, one third of them writes."""

    def __init__(self, loads: Sequence[Load | NotebookLoad], slots: int) -> None:
        self._loads = loads
        self._slots = slots

    async def start(self) -> None:
        """Open the sessions and start the requests."""
        for load in self._loads:
            try:
                await load.open_sessions()
            except DeployError as error:
                raise DeployError(
                    f"{error}; --load drives {load.drives}: for another application leave it out"
                ) from None
        for load in self._loads:
            load.start()

    async def so_far(self) -> tuple[int, int]:
        """By the clients' own history."""
        history = [op for load in self._loads for op in load.history]
        return len(history), sum(not op.succeeded for op in history)

    def send_to(self, url: str) -> None:
        """From now on the requests go to another front Envoy."""
        for load in self._loads:
            if isinstance(load, Load):
                load.url = url

    def unanswered(self, since: float) -> int:
        """How many sessions have had no successful answer to a request that they made since that moment."""
        return sum(
            len(load.shoppers) - len({op.session for op in load.history if op.succeeded and op.started >= since})
            for load in self._loads
            if isinstance(load, Load)
        )

    async def silent(self, since: float) -> str:
        """How many sessions have no answer since that moment, in words; '' for none."""
        count = self.unanswered(since)
        return f"{count} sessions have no answer yet" if count else ""

    def accepted_writes(self, since: float) -> int:
        """How many writes that began since that moment have been acknowledged."""
        history = [op for load in self._loads for op in load.history]
        return sum(op.succeeded and bool(op.wrote) and op.started >= since for op in history)

    def silences(self, began: float, ended: float, *, since: float = -math.inf) -> tuple[float, float, float] | None:
        """The longest times without an answer of each session between two moments: p50, p99 and max in ms.

        Of a silence that began before ``since``, only what is after that counts.
        """
        history = [op for load in self._loads for op in load.history]
        each = longest_silences(history, began, ended, max(load.pacing for load in self._loads), since)
        return (percentile(each, 0.5), percentile(each, 0.99), max(each)) if each else None

    async def finish(self, fault: InjectedFault) -> ClientView:
        """Stop the requests, read every session once more, and check the history."""
        await asyncio.gather(*(load.stop() for load in self._loads))
        final: dict[str, Content | None] = {}
        for load in self._loads:
            final |= await load.final_contents()
        history = [op for load in self._loads for op in load.history]
        hit = fault.kind.of_a_member or fault.members
        killing = MemberKill(fault.name, fault.began, fault.ended, fault.members) if hit else None
        result = check_history(history, final, killing, pacing=max(load.pacing for load in self._loads))
        return replace(client_view(result, history, fault), second_writers=second_writers(history, self._slots))

    async def close(self) -> None:
        """Close the connections."""
        for load in self._loads:
            await load.close()


def longest_silences(
    history: Sequence[Op], began: float, ended: float, pacing: float, since: float = -math.inf
) -> list[float]:
    """For each session its longest time without a successful answer that is partly between two moments. Pure.

    In ms, minus ``pacing``, the normal seconds between two requests of one session. What is before ``since`` does not
    count.
    """
    answers: dict[str, list[float]] = defaultdict(list)
    for op in history:
        if op.succeeded and op.kind != "check":
            answers[op.session].append(op.ended)
    found = []
    for times in map(sorted, answers.values()):
        gaps = [after - max(before, since) for before, after in pairwise(times) if after >= began and before <= ended]
        if gaps:
            found.append(max(0.0, max(gaps) - pacing) * 1000)
    return found


def client_view(result: HistoryReport, history: Sequence[Op], fault: InjectedFault) -> ClientView:
    """The result of a load as the clients' view of a drill. Pure."""
    waits: dict[str, float] = defaultdict(float)
    for op in history:
        if op.ended >= fault.began:
            waits[op.session] = max(waits[op.session], (op.ended - op.started) * 1000)
    gap, each = result.client_gap_ms, waits.values()
    return ClientView(
        requests=result.requests,
        failed=result.failed_requests,
        gap=None if math.isnan(gap.max) else (gap.p50, gap.p99, gap.max),
        wait=(percentile(each, 0.5), percentile(each, 0.99), max(each)) if each else None,
        touched=result.sessions_touched if fault.kind.of_a_member or fault.members else None,
        lost_writes=result.lost_writes,
        needless_moves=result.moved_needlessly if fault.kind.leaves_some_in_place else None,
        failures=result.failures[:5],
    )


def clients_of(pool: PoolSpec, url: str, rate: int) -> Load | NotebookLoad:
    """Clients for a drill of ``pool`` with ``rate`` requests per second in total; ``url`` is that of its front Envoy.

    Raises:
        DeployError: the clients of a TCP pool could not have their own addresses there.
    """
    sessions = max(1, round(rate * LARGEST_PACING))
    if pool.tcp is None:
        return Load(url, sessions=sessions, rate=float(rate))
    front, proxied = url.rpartition("://")[2], pool.tcp.accept_proxy_protocol
    try:
        host, _ = split_address(front)
        local = proxied or ipaddress.ip_address(host) in ipaddress.ip_network("127.0.0.0/8")
    except ValueError:
        raise DeployError(f"--url {url!r} is not HOST:PORT with an IP address") from None
    if not local:
        raise DeployError(
            f"the clients of --load have addresses of 127.0.0.0/8, which {front} would not see: run the drill on the "
            "machine of the front Envoy, or in a pool behind a proxy (tcp.accept_proxy_protocol)"
        )
    return NotebookLoad(front, sessions, float(rate), proxy_header=proxied)


class EnvoyMeasure:
    """Counts the requests of real clients, with the counters of a front Envoy at ``admin`` (``host:port``)."""

    def __init__(self, admin: str, pool: str) -> None:
        self._admin = admin
        self._pool = pool
        self._before: dict[str, int] = {}

    async def start(self) -> None:
        """Read the counters."""
        self._before = await self._counters()

    async def so_far(self) -> tuple[int, int]:
        """By the counters."""
        now = await self._counters()
        completed, failed, reset = (now[name] - self._before[name] for name in _COUNTERS)
        return completed, failed + reset

    async def finish(self, fault: InjectedFault) -> ClientView:  # noqa: ARG002 - counters have no names
        """How much the counters have increased."""
        requests, failed = await self.so_far()
        return ClientView(requests=requests, failed=failed)

    async def close(self) -> None:
        """Nothing to free."""

    async def _counters(self) -> dict[str, int]:
        path = rf"/stats?format=json&filter=^http\.{self._pool}\.downstream_rq_"
        try:
            answer = await ask_control(self._admin, path)
        except AdminError as error:
            raise DeployError(
                f"the front Envoy's admin interface has no counters ({error}): check --admin, or use --load N"
            ) from None
        found = {stat["name"].rpartition(".")[2]: stat["value"] for stat in answer.get("stats", ()) if "value" in stat}
        missing = [name for name in _COUNTERS if name not in found]
        if missing:
            raise DeployError(
                f"the Envoy at {self._admin} has no counter {missing[0]} for pool {self._pool}: check --admin"
            )
        return found


class ReportedMeasure:
    """Counts the requests of real clients, by what front Envoys report to the pool's control servers.

    Args:
        controls: name and HTTP address of each control server.
        pool: the pool.

    Envoys report every :data:`COUNT_SECONDS`, so requests of a moment before the measurement may count too.
    """

    def __init__(self, controls: Mapping[str, str], pool: str) -> None:
        self._controls = dict(controls)
        self._pool = pool
        self._before: dict[str, tuple[int, int]] = {}

    async def start(self) -> None:
        """Read the counts. Raises ``DeployError`` if no control server has any."""
        self._before = await self._counts()
        if not self._before:
            raise DeployError("no control server tells how many requests front Envoys had: use --admin, or --load N")

    async def so_far(self) -> tuple[int, int]:
        """By what has been reported: what happened in the last seconds is missing."""
        view = reported_view(self._before, await self._counts())
        return view.requests, view.failed

    async def finish(self, fault: InjectedFault) -> ClientView:  # noqa: ARG002 - counts have no names
        """How much the counts have increased, when all reports have arrived."""
        await asyncio.sleep(REPORT_WAIT)
        return reported_view(self._before, await self._counts())

    async def close(self) -> None:
        """Nothing to free."""

    async def _counts(self) -> dict[str, tuple[int, int]]:
        answers = await ask_controls(self._controls.values(), "/v1/fronts", self._pool)
        told = {name: answer for name, answer in zip(self._controls, answers, strict=True) if isinstance(answer, dict)}
        # A control server of an earlier release has no totals.
        return {
            name: (answer["totals"]["requests"], answer["totals"]["failed"])
            for name, answer in told.items()
            if "totals" in answer
        }


def reported_view(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]) -> ClientView:
    """The sums of increases, without control servers that did not answer twice or have started anew. Pure."""
    grown = [
        (after[name][0] - requests, after[name][1] - failed)
        for name, (requests, failed) in before.items()
        if name in after and after[name][0] >= requests
    ]
    return ClientView(requests=sum(one for one, _ in grown), failed=sum(max(failed, 0) for _, failed in grown))
