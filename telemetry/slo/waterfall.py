"""Shows the trace of a failover as numbers and as a picture for the terminal.

Pure: takes spans, and returns numbers or something that ``rich`` can draw. A trace without its root is shown as far as
it goes, and marked ``unmeasured``. Phases of several members may overlap. A phase then lasts from its first start to
its last end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.tracing.names import (
    AFTERMATH,
    CALLS,
    CAUSE,
    CLAIM,
    COPY_BYTES,
    COPY_LONGEST_MS,
    COPY_SESSIONS,
    CRITICAL,
    ERROR_MS,
    FIRST_REQUEST,
    FROM,
    HELD_UP,
    LAST_REQUEST,
    LOSS_SECONDS,
    LOSSES,
    MEMBER,
    POOL,
    REJOIN,
    SLOTS,
    TO,
    UNMEASURED,
)

_WHO_WIDTH = 18
_NAME_WIDTH = 10
_NUMBER_WIDTH = 9
_GAPS = 4  # one cell between columns
_MIN_BAR = 10
_MAX_BAR = 100


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """A phase over all its spans: start in ms after that of the trace, ms to its last end, number of spans."""

    start_ms: float
    duration_ms: float
    count: int


def phases(spans: Iterable[StoredSpan]) -> dict[str, PhaseTime]:
    """The phases by name, in the order in which they began; the root is not one of them."""
    known = tuple(spans)
    origin = min((span.start_ns for span in known), default=0)
    by_name: dict[str, list[StoredSpan]] = {}
    for span in sorted(known, key=_order):
        if not span.is_root:
            by_name.setdefault(span.name, []).append(span)
    return {name: _phase_time(group, origin) for name, group in by_name.items()}


def root_of(spans: Iterable[StoredSpan]) -> StoredSpan | None:
    """The root span, if it was recorded."""
    return min((span for span in spans if span.is_root), key=_order, default=None)


def total_ms(spans: Iterable[StoredSpan]) -> float | None:
    """How long the failover took, by its root span; None if it is unmeasured."""
    root = root_of(spans)
    return root.duration_ns / 1e6 if root is not None and is_measured(root) else None


def path(spans: Iterable[StoredSpan]) -> list[StoredSpan]:
    """The phases that the change waited for, one after the other; together they are as long as the root."""
    return sorted((span for span in spans if span.attributes.get(CRITICAL) and not span.is_root), key=_order)


@dataclass(frozen=True, slots=True)
class HeldUp:
    """How long planned moves delayed ``calls``: ``ms`` at most, with a possible error of ``error_ms``."""

    ms: float
    error_ms: float
    calls: int


def held_up(spans: Iterable[StoredSpan]) -> HeldUp | None:
    """The calls that planned moves delayed, as all members reported them; None if none did."""
    told = [span for span in spans if span.name == HELD_UP]
    if not told:
        return None
    errors = [error for span in told if isinstance(error := span.attributes.get(ERROR_MS), int | float)]
    calls = [count for span in told if isinstance(count := span.attributes.get(CALLS), int)]
    return HeldUp(max(span.duration_ns for span in told) / 1e6, max(errors, default=0.0), sum(calls))


def is_measured(root: StoredSpan | None) -> bool:
    """Whether the end was recorded: there is a root, and its recorder did not give up."""
    return root is not None and not root.attributes.get(UNMEASURED)


def as_json(spans: Iterable[StoredSpan]) -> dict[str, Any]:
    """The trace for machines: plain JSON types, times in ms after the first start, spans in order of start."""
    known = sorted(spans, key=_order)
    origin = min((span.start_ns for span in known), default=0)
    root, callers = root_of(known), held_up(known)
    return {
        "trace_id": known[0].trace_id if known else "",
        "name": root.name if root else "",
        "measured": is_measured(root),
        "started": _utc(origin) if known else "",
        "total_ms": _rounded(root.duration_ns) if root and is_measured(root) else None,
        "attributes": dict(root.attributes) if root else {},
        **({"held_up": {name: round(of, 3) for name, of in asdict(callers).items()}} if callers else {}),
        "path": [{"phase": span.name, "ms": _rounded(span.duration_ns)} for span in path(known)],
        "phases": {
            name: {
                "start_ms": round(time.start_ms, 3),
                "duration_ms": round(time.duration_ms, 3),
                "count": time.count,
            }
            for name, time in phases(known).items()
        },
        "spans": [
            {
                "span_id": span.span_id,
                "parent_id": span.parent_id,
                "name": span.name,
                "who": span.instance,
                "start_ms": _rounded(span.start_ns - origin),
                "duration_ms": _rounded(span.duration_ns),
                "error": span.error,
                "attributes": dict(span.attributes),
            }
            for span in known
        ],
    }


def waterfall(spans: Iterable[StoredSpan]) -> "Waterfall":
    """A picture of one trace for ``rich``: who did which phase, when, and for how long."""
    return Waterfall(tuple(sorted(spans, key=_order)))


@dataclass(frozen=True, slots=True)
class Waterfall:
    """One line per span: process, phase, start and length in ms, and a bar on a common time axis."""

    spans: tuple[StoredSpan, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it as wide as the console is, within reason."""
        if not self.spans:
            yield Text("no spans", style="dim")
            return
        ascii_only = options.ascii_only or options.legacy_windows
        root = root_of(self.spans)
        origin = min(span.start_ns for span in self.spans)
        # Spans after the end can take minutes. On the axis they would leave no room for the failover itself.
        drawn = [span for span in self.spans if span.name not in AFTERMATH] or self.spans
        length = max(max(span.end_ns for span in drawn) - origin, 1)
        room = options.max_width - _WHO_WIDTH - _NAME_WIDTH - 2 * _NUMBER_WIDTH - _GAPS
        width = min(max(_MIN_BAR, room), _MAX_BAR)
        yield from _heading(root, self.spans[0].trace_id, origin)
        yield _line(("who", "phase", "start ms", "ms"), "dim")
        for span in _top_first(self.spans, root):
            offset, extent = bar(span.start_ns - origin, span.duration_ns, length, width)
            name = f"{span.name} *" if span.attributes.get(CRITICAL) else span.name
            words = (span.instance, name, _ms(span.start_ns - origin), _ms(span.duration_ns))
            line = _line(words, "bold" if span is root else "")
            line.append(" " * offset + ("=" if ascii_only else "━") * extent, _colour(span, root))
            yield line
            if span.error:
                yield Text(f"{'':{_WHO_WIDTH + 1}}failed: {_printable(span.error)}", style="red", overflow="fold")
        waited = path(self.spans)
        if waited:
            total = sum(span.duration_ns for span in waited)
            parts = " + ".join(_ms(span.duration_ns) for span in waited)
            yield Text(f"* what the whole waited for: {parts} = {_ms(total)} ms", style="dim", overflow="fold")
        yield from _rejoins(self.spans)
        yield from _losses(self.spans)
        callers = held_up(self.spans)
        if callers:
            waited_ms = f"{callers.ms:.1f} ms at the most (error at most {callers.error_ms:.1f} ms)"
            yield Text(f"calls held up by it: {callers.calls}, for {waited_ms}", style="dim", overflow="fold")


def _rejoins(spans: Sequence[StoredSpan]) -> Iterable[Text]:
    """What each process that rejoined was sent, by each active."""
    for span in spans:
        if span.name != REJOIN:
            continue
        told = span.attributes
        slots, sessions, size, longest = (
            told.get(name) for name in (SLOTS, COPY_SESSIONS, COPY_BYTES, COPY_LONGEST_MS)
        )
        whom = _printable(str(told.get(MEMBER, "")))
        yield Text(
            f"copies for {whom} from {_printable(span.instance)}: {slots} slots, {sessions} sessions, {size} bytes, "
            f"longest slot {longest} ms",
            style="dim",
            overflow="fold",
        )


def _losses(spans: Sequence[StoredSpan]) -> Iterable[Text]:
    """What new actives told of slots whose whole sync set had died."""
    claims = [span for span in spans if span.name == CLAIM]
    slots = sum(count for span in claims if isinstance(count := span.attributes.get(LOSSES), int))
    if slots:
        bounds = [bound for span in claims if isinstance(bound := span.attributes.get(LOSS_SECONDS), int | float)]
        age = f"the last {max(bounds):g} s" if bounds else "the last moments"
        yield Text(
            f"{slots} slots had lost all copies and were restored from etcd: 'replicas' writes of {age} may be missing",
            style="yellow",
            overflow="fold",
        )


def bar(start: int, duration: int, length: int, width: int) -> tuple[int, int]:
    """Where a bar begins and how many cells it has, on an axis of ``width`` cells for ``length`` (same unit).

    Proportional to the nearest cell, at least one cell, and never past the end of the axis.
    """
    begin = min(round(start * width / length), width - 1)
    end = round((start + duration) * width / length)
    return begin, min(max(end - begin, 1), width - begin)


def _heading(root: StoredSpan | None, trace_id: str, origin: int) -> Iterable[Text]:
    if root is None:
        yield Text("unmeasured: the root span is missing, so nobody recorded an end", style="bold yellow")
    elif not is_measured(root):
        yield Text(
            f"unmeasured: the {root.name} had not ended after {_ms(root.duration_ns)} ms{_facts(root)}",
            style="bold yellow",
            overflow="fold",
        )
    else:
        error = root.attributes.get(ERROR_MS)
        known = f" (error at most {error:.1f} ms)" if isinstance(error, int | float) and error else ""
        took = f"{root.name} took {_ms(root.duration_ns)} ms{known}{_facts(root)}"
        yield Text(took, style="bold", overflow="fold")
    yield Text(f"trace {trace_id}, began {_utc(origin)}", style="dim")
    about = {} if root is None else root.attributes
    for when, name in (("before", LAST_REQUEST), ("after", FIRST_REQUEST)):
        if about.get(name):
            yield Text(f"request {when:<7} {_printable(str(about[name]))}", style="dim", overflow="fold")


def _facts(root: StoredSpan) -> str:
    """The pool, the members, the number of slots and the cause, as far as the root span has them."""
    known: Mapping[str, Any] = root.attributes
    source, target = known.get(FROM), known.get(TO)
    moved = f"{source} -> {target}" if source and target else f"from {source}" if source else ""
    slots = f"{known[SLOTS]} slots" if SLOTS in known else ""
    parts = (str(known.get(POOL, "")), moved, slots, str(known.get(CAUSE, "")))
    said = ", ".join(_printable(part) for part in parts if part)
    return f": {said}" if said else ""


def _line(words: tuple[str, str, str, str], style: str) -> Text:
    """Process, phase, start and length in their columns; the bar follows."""
    who, name, start, duration = words
    text = f"{_fit(who, _WHO_WIDTH)} {_fit(name, _NAME_WIDTH)} {start:>{_NUMBER_WIDTH}} "
    return Text(f"{text}{duration:>{_NUMBER_WIDTH}} ", style, no_wrap=True, overflow="crop")


def _fit(text: str, width: int) -> str:
    """Cut or fill to ``width`` cells. Names from outside may be wide or contain control characters."""
    clean = _printable(text)
    if cell_len(clean) > width:
        while cell_len(clean) > width - 1:
            clean = clean[:-1]
        clean += "~"
    return clean + " " * (width - cell_len(clean))


def _printable(text: str) -> str:
    """Text from outside without the characters that control a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _top_first(spans: Sequence[StoredSpan], root: StoredSpan | None) -> Iterable[StoredSpan]:
    if root is not None:
        yield root
    yield from (span for span in spans if span is not root)


def _colour(span: StoredSpan, root: StoredSpan | None) -> str:
    if span.error:
        return "red"
    return "bold" if span is root else "cyan"


def _order(span: StoredSpan) -> tuple[int, bool, int, str]:
    return span.start_ns, not span.is_root, span.end_ns, span.span_id


def _phase_time(group: Sequence[StoredSpan], origin: int) -> PhaseTime:
    start = min(span.start_ns for span in group)
    end = max(span.end_ns for span in group)
    return PhaseTime((start - origin) / 1e6, (end - start) / 1e6, len(group))


def _rounded(ns: int) -> float:
    return round(ns / 1e6, 3)


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.1f}"


def _utc(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"
