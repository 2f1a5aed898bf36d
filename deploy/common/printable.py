r"""Makes any text safe to print: the output of all commands and the log of all processes pass through here.

Names, reasons and causes come from applications, from other members and from etcd. A control character can hide or
forge text on a terminal, and a newline can forge a line of a log. Each such character is shown as its escape
(``\x1b``, ``\u202e``). JSON output does not need this, since JSON has its own escapes.
"""

import dataclasses
import logging
import re
from collections.abc import Mapping
from typing import Any

import click

_DANGEROUS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # text direction, and invisible characters
    "\u2028\u2029"  # line and paragraph separator
    "\ud800-\udfff"  # surrogates, which cannot be encoded
    "\ufff9-\ufffb\U000e0000-\U000e007f"  # annotations and tags
)
_IN_BLOCK = re.compile(f"[{_DANGEROUS}]")
_IN_LINE = re.compile(f"[\n{_DANGEROUS}]")
_INDENT = "  "
LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def one_line(text: str) -> str:
    """``text`` as one line: newlines are escaped too."""
    return _IN_LINE.sub(_escaped, text)


def block(text: str) -> str:
    """``text`` with its newlines kept and every other control character escaped."""
    return _IN_BLOCK.sub(_escaped, text)


def printable_view(value: Any) -> Any:  # noqa: ANN401 - plain data, as JSON has it
    """A view or a record in which every text, also every key, is one line."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, Mapping):
        return {printable_view(key): printable_view(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable_view(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(
            value, **{field.name: printable_view(getattr(value, field.name)) for field in fields}
        )
    return value


def say(text: str, *, err: bool = False) -> None:
    """Print one line; ``err``: to stderr."""
    click.echo(one_line(text), err=err)


class LogFormatter(logging.Formatter):
    """One line per record, whatever its arguments contain. A traceback follows with every line indented."""

    def __init__(self) -> None:
        super().__init__(LOG_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging has it
        """Format the line of a record."""
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802 - as logging has it
        """Format a traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - as logging has it
        """Format the stack of a record."""
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(_INDENT + line for line in block(text).split("\n"))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if found[0] == "\n":
        return "\\n"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
