"""The logs of the long-running commands: to stderr, as text for people or as one JSON object per line for programs."""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

import msgspec

from understudy.deploy.common.printable import LogFormatter
from understudy.statesync.process.log_context import LOG_POOL

LogFormat = Literal["text", "json"]


class LogOptions(msgspec.Struct, frozen=True):
    """``--log-level`` and ``--log-format``."""

    level: str = "info"
    format: LogFormat = "text"


class JsonFormatter(logging.Formatter):
    """One JSON object per record: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, and what is known.

    ``about`` has fields of the process, such as its pool and its member. A task that serves one pool of several adds
    the pool. ``exception`` has the traceback, ``stack`` the stack if it was asked for. Everything but ASCII is escaped,
    so a record is one line whatever its arguments contain.
    """

    def __init__(self, about: Mapping[str, str]) -> None:
        super().__init__()
        self._about = {name: value for name, value in about.items() if value}

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        pool = LOG_POOL.get()
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._about,
            **({"pool": pool} if pool else {}),
            **({"exception": self.formatException(record.exc_info)} if record.exc_info else {}),
            **({"stack": self.formatStack(record.stack_info)} if record.stack_info else {}),
        }
        return json.dumps(fields)


def start_logging(options: LogOptions, **about: str) -> None:
    """Set up logging to stderr; ``about`` has the fields of this process in JSON records, '' for one it has not."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(about) if options.format == "json" else LogFormatter())
    logging.basicConfig(level=options.level.upper(), handlers=[handler])
    logging.captureWarnings(capture=True)
