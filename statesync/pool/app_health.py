"""How an application is asked whether it is well, as options and annotations write it. Pure.

``/path`` is a GET over HTTP/1.1; ``grpc`` or ``grpc:SERVICE`` is gRPC's health checking protocol
(https://github.com/grpc/grpc/blob/master/doc/health-checking.md), for applications that speak nothing but HTTP/2;
``tcp`` is content with a connection. Pools with ``protocol: tcp`` have their own question, in the pool's spec.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

HEALTH_FORMS = "a path like /healthz, grpc, grpc:SERVICE or tcp"


class HealthKind(StrEnum):
    """What is spoken."""

    HTTP = "http"
    GRPC = "grpc"
    TCP = "tcp"


@dataclass(frozen=True, slots=True)
class AppHealth:
    """One way to ask. ``what`` is the path of an HTTP question, or the service of a gRPC one ('' for the whole)."""

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
