"""Reads YAML that a person, or a stranger, has written: in bounded time and memory, and without surprises.

YAML allows what no spec needs and what hurts: aliases that expand to gigabytes, nesting that exhausts the stack, and a
key that stands twice, of which readers keep one in silence. All three are refused, the last two with their line.
"""

from collections.abc import Hashable
from typing import Any

import yaml

SIZE_MOST = 250_000
"""Characters of a document, which are read in a second; a spec of a thousand members has 40,000."""
DEPTH_MOST = 32
"""Mappings and lists within each other; a spec has five."""


class BadYaml(ValueError):
    """A text that is not YAML, or more than is read here; says what is wrong, and in which line if that can be told."""


def read_yaml(text: str) -> Any:  # noqa: ANN401 - whatever the text says
    """The one document in ``text``. Raises :class:`BadYaml`."""
    if len(text) > SIZE_MOST:
        raise BadYaml(f"has more than {SIZE_MOST} characters")
    try:
        return _single_document(text)
    except BadYaml:
        raise
    except yaml.YAMLError as error:
        raise BadYaml(f"not YAML: {' '.join(str(error).split())}") from None
    except (ValueError, OverflowError) as error:  # a date or a number that is none
        raise BadYaml(f"not YAML: {error}") from None


def _single_document(text: str) -> Any:  # noqa: ANN401 - whatever the text says
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also counts levels, knows no aliases, and wants each key once."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise BadYaml(f"line {_line(event)}: aliases (*{event.anchor}) are not read here; write it out")
        self._depth += 1
        if self._depth > DEPTH_MOST:
            raise BadYaml(f"line {_line(event)}: more than {DEPTH_MOST} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # told by the loader itself
            if key in seen:
                raise BadYaml(f"line {_line(key_node)}: key {key!r} stands here for the second time")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _line(where: yaml.Event | yaml.Node) -> int:
    mark = where.start_mark
    return mark.line + 1 if mark is not None else 0
