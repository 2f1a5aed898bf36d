"""Reads YAML that anybody may have written, in bounded time and memory.

YAML allows input that nobody needs and that does harm. Aliases can expand to gigabytes, deep nesting exhausts the
stack, and of a key that occurs twice, readers keep one without a message. All three are refused with their line,
wherever Understudy reads YAML. Specs may have no aliases. Kubernetes manifests may have aliases, up to
:data:`EXPANDED_MOST` values.
"""

from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

SIZE_MOST = 250_000
"""Characters of a spec. They are read in a second; a spec of a thousand members has 40,000."""
FILE_MOST = 10_000_000
"""Characters of a file of documents, such as manifests."""
DEPTH_MOST = 32
"""Levels of mappings and lists; a spec has five."""
FILE_DEPTH_MOST = 100
"""Levels in a file of documents; schemas in CustomResourceDefinitions have thirty."""
EXPANDED_MOST = 100_000
"""Values that aliases may expand to, in all documents of a file; a long text counts as several."""
_VALUE = 100
T = TypeVar("T")


class BadYaml(ValueError):
    """A text that is not YAML, or is larger than allowed. Says what is wrong, and in which line if that is known."""


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also limits levels and aliases, and refuses a key that occurs twice."""

    depth_most = FILE_DEPTH_MOST
    expanded_most = EXPANDED_MOST

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}
        self._expanded = 0
        self._looked_at: set[int] = set()

    def compose_document(self) -> yaml.Node | None:
        """Read one document, and forget the nodes of the document before."""
        self._sizes.clear()
        self._looked_at.clear()
        return super().compose_document()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read one value with its content, unless it is too deep or too large."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > self.depth_most:
            raise BadYaml(f"line {_line(event)}: more than {self.depth_most} levels")
        try:
            node = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        if node is not None:
            self._count(node, event)
        return node

    def _count(self, node: yaml.Node, event: yaml.Event) -> None:
        """Record how many values a node has; raise :class:`BadYaml` if aliases have added too many."""
        if not isinstance(event, yaml.AliasEvent):
            own = 1 + (len(node.value) // _VALUE if isinstance(node, yaml.ScalarNode) else 0)
            self._sizes[id(node)] = own + sum(self._sizes.get(id(part), 0) for part in _parts(node))
            return
        if not self.expanded_most:
            raise BadYaml(f"line {_line(event)}: aliases (*{event.anchor}) are not read here; write it out")
        if id(node) not in self._sizes:
            raise BadYaml(f"line {_line(event)}: *{event.anchor} stands within what it is an alias of")
        self._expanded += self._sizes[id(node)]
        if self._expanded > self.expanded_most:
            raise BadYaml(f"line {_line(event)}: aliases stand for more than {self.expanded_most} values")

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve merge keys as PyYAML does, after a check that each key occurs once."""
        if id(node) not in self._looked_at:
            self._looked_at.add(id(node))
            self._require_distinct(node)
        super().flatten_mapping(node)

    def _require_distinct(self, node: yaml.MappingNode) -> None:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            merges = key_node.tag == "tag:yaml.org,2002:merge"
            if merges and not self.expanded_most:
                raise BadYaml(f"line {_line(key_node)}: merge keys (<<) are not read here; write it out")
            key = key_node.value if merges else self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # told by the loader itself
            if key in seen:
                raise BadYaml(f"line {_line(key_node)}: key {key!r} stands here for the second time")
            seen.add(key)


class _SpecLoader(BoundedLoader):
    depth_most = DEPTH_MOST
    expanded_most = 0


def read_yaml(text: str) -> Any:  # noqa: ANN401 - whatever the text says
    """The one document in ``text``, without aliases. Raises :class:`BadYaml`."""
    if len(text) > SIZE_MOST:
        raise BadYaml(f"has more than {SIZE_MOST} characters")
    return _read(text, _SpecLoader, lambda loader: loader.get_single_data())


def read_documents(text: str, loader: type[BoundedLoader] = BoundedLoader) -> list[Any]:
    """All documents in ``text`` that are not empty. Raises :class:`BadYaml`."""
    if len(text) > FILE_MOST:
        raise BadYaml(f"has more than {FILE_MOST} characters")
    return [document for document in _read(text, loader, lambda loader: list(_all(loader))) if document is not None]


def read_document_file(path: Path) -> list[Any]:
    """All documents of a file. Raises :class:`BadYaml`, also when it cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            return read_documents(file.read(FILE_MOST + 1))
    except (OSError, UnicodeDecodeError) as error:
        raise BadYaml(f"cannot be read: {error}") from None


def _read(text: str, make: type[BoundedLoader], take: Callable[[BoundedLoader], T]) -> T:
    try:
        loader = make(text)
        try:
            return take(loader)
        finally:
            loader.dispose()
    except BadYaml:
        raise
    except yaml.YAMLError as error:
        raise BadYaml(f"not YAML: {' '.join(str(error).split())}") from None
    except (ValueError, OverflowError) as error:  # an impossible date or number
        raise BadYaml(f"not YAML: {error}") from None


def _all(loader: BoundedLoader) -> Iterator[Any]:
    while loader.check_data():  # type: ignore[no-untyped-call]
        yield loader.get_data()


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _line(where: yaml.Event | yaml.Node) -> int:
    mark = where.start_mark
    return mark.line + 1 if mark is not None else 0
