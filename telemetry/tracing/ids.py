"""Trace ids that need no communication: the same facts give every process the same trace id and root span id.

The processes that observe a failover may not reach each other. So its ids are hashes of facts that all of them know
(pool, kind of change, and what it is about). They are written as a W3C Trace Context header (``traceparent``), also in
etcd. Pure functions.
"""

import hashlib
import re

import msgspec

from understudy.telemetry.tracing.names import KIND_TAKEOVER

_DOMAIN = "understudy/trace/1"
_HEX_LENGTH = 32
_VERSION_00_LENGTH = 55
_LAYOUT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)


class TraceparentError(ValueError):
    """A text that is no W3C ``traceparent``; ``text`` and ``reason`` say which and why."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"not a traceparent ({reason}): {text[: _VERSION_00_LENGTH + 5]!r}")
        self.text = text
        self.reason = reason


class TraceIds(msgspec.Struct, frozen=True):
    """Ids of a trace (128 bits) and of its root span (64 bits); neither is zero (W3C Trace Context 3.2)."""

    trace_id: int
    root_span_id: int

    def __post_init__(self) -> None:
        if not 0 < self.trace_id < 1 << 128:
            raise ValueError(f"trace id out of range: {self.trace_id}")
        if not 0 < self.root_span_id < 1 << 64:
            raise ValueError(f"span id out of range: {self.root_span_id}")

    @property
    def hex(self) -> str:
        """The trace id as 32 lower-case hexadecimal digits, as users see and type it."""
        return f"{self.trace_id:032x}"

    @property
    def traceparent(self) -> str:
        """The W3C header of version 00, with the sampled flag set: a failover's trace is always recorded."""
        return f"00-{self.trace_id:032x}-{self.root_span_id:016x}-01"

    @classmethod
    def from_traceparent(cls, text: str) -> "TraceIds":
        """Read a W3C ``traceparent``; a later version may carry more fields, which are ignored (section 4.3).

        Raises:
            TraceparentError: on anything else, upper-case digits and all-zero ids included.
        """
        found = _LAYOUT.fullmatch(text)
        if found is None:
            raise TraceparentError(text, "wrong layout")
        version, trace_id, span_id, _, rest = found.groups()
        if version == "ff":
            raise TraceparentError(text, "version ff is forbidden")
        if version == "00" and rest is not None:
            raise TraceparentError(text, "version 00 ends after its flags")
        if not int(trace_id, 16) or not int(span_id, 16):
            raise TraceparentError(text, "an id of zeros")
        return cls(int(trace_id, 16), int(span_id, 16))


def trace_seed(pool: str, kind: str, subject: str) -> TraceIds:
    """The ids of the trace of one change of active.

    ``kind`` is ``takeover`` or ``handover`` (:mod:`understudy.telemetry.tracing.names`). ``subject`` names what it is
    about, so that no two changes share it: ``<member>/<boot>`` of the dead for a takeover, the table's
    generation for a handover.

    The ids are the first 16 and the next 8 bytes of a SHA-256 over the texts, each preceded by its length
    in bytes (4 bytes, big-endian), so that no two different triples run together.
    """
    digest = hashlib.sha256()
    for text in (_DOMAIN, pool, kind, subject):
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(4, "big"))
        digest.update(raw)
    whole = digest.digest()
    # All zeros is invalid; one is as good as any other value for a case that does not happen in practice.
    return TraceIds(int.from_bytes(whole[:16], "big") or 1, int.from_bytes(whole[16:24], "big") or 1)


def is_trace_id(text: str) -> bool:
    """Whether ``text`` is a trace id as :attr:`TraceIds.hex` writes it."""
    return len(text) == _HEX_LENGTH and re.fullmatch(r"[0-9a-f]+", text) is not None and int(text, 16) > 0


def takeover_seed(pool: str, member: str, boot: str, life: int = 0) -> TraceIds:
    """The ids of the trace of the takeover of a member's process; ``life`` is how many it has survived before."""
    return trace_seed(pool, KIND_TAKEOVER, f"{member}/{boot}" + (f"/{life}" if life else ""))
