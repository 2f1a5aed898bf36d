r"""Makes any text safe to print: what commands show and what processes log goes through here, once, at the edge.

Names, reasons and causes come from applications, from other members and from etcd. In a terminal a control character
can hide or forge what stands on the screen, and in a log a newline can forge a line. Each such character is shown as
its escape (``\x1b``, ``\u202e``). JSON output needs none of this: JSON escapes by itself.
"""

import dataclasses
import logging
import re
from collections.abc import Mapping
from typing import Any

import click

_DANGEROUS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # direction of text, and what nobody sees
    "\u2028\u2029"  # line and paragraph separator
    "\ud800-\udfff"  # halves of characters, which no terminal can be sent
    "\ufff9-\ufffb\U000e0000-\U000e007f"  # annotations and tags
)
_IN_BLOCK = re.compile(f"[{_DANGEROUS}]")
_IN_LINE = re.compile(f"[\n{_DANGEROUS}]")
_INDENT = "  "
LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def one_line(text: str) -> str:
    """``text`` as one line: newlines are escaped as well."""
    return _IN_LINE.sub(_escaped, text)


def block(text: str) -> str:
    """``text`` with its lines as they are and every other control character escaped."""
    return _IN_BLOCK.sub(_escaped, text)


def printable_view(value: Any) -> Any:  # noqa: ANN401 - plain data, as JSON has it
    """A view, or a record, whose every text is one line; keys as well, since they are names."""
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
    """Print a line that names something; ``err``: to stderr."""
    click.echo(one_line(text), err=err)


class LogFormatter(logging.Formatter):
    """One line per record, whatever its arguments hold; a traceback follows with every line indented."""

    def __init__(self) -> None:
        super().__init__(LOG_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging has it
        """The line of a record."""
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802 - as logging has it
        """A traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - as logging has it
        """Where a record was logged."""
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
