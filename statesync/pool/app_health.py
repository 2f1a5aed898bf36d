"""The health check of an application, as options and annotations write it. Pure.

``/path`` is a GET over HTTP/1.1. ``grpc`` or ``grpc:SERVICE`` is gRPC's health checking protocol
(https://github.com/grpc/grpc/blob/master/doc/health-checking.md), for applications that only speak HTTP/2. ``tcp``
only needs a connection. The checks in a pool's spec are :class:`understudy.statesync.pool.spec_parts.CheckSpec`;
:mod:`understudy.proxy.health.spec_checks` runs them. Pools with ``protocol: tcp`` have a check of their own there.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

HEALTH_FORMS = "a path like /healthz, grpc, grpc:SERVICE or tcp"


class HealthKind(StrEnum):
    """The protocol of the check."""

    HTTP = "http"
    GRPC = "grpc"
    TCP = "tcp"


@dataclass(frozen=True, slots=True)
class AppHealth:
    """One health check. ``what`` is the path of an HTTP check, or the service of a gRPC one ('' for the server)."""

    kind: HealthKind
    what: str = ""

    @classmethod
    def parse(cls, text: str) -> "AppHealth":
        """Read ``text``; raises ``ValueError``, whose text says what is expected."""
        if re.fullmatch(r"/[!-~]*", text):
            return cls(HealthKind.HTTP, text)
        if text == HealthKind.TCP:
            return cls(HealthKind.TCP)
        name, _, service = text.partition(":")
        if name == HealthKind.GRPC and re.fullmatch(r"[\w./-]*", service, re.ASCII):
            return cls(HealthKind.GRPC, service)
        raise ValueError(f"{text!r} is none of {HEALTH_FORMS}")
