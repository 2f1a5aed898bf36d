"""Writes objects as Helm templates: marked entries of a tree become lines and expressions of the template. Pure."""

import re
from collections.abc import Mapping
from typing import Any

from understudy.deploy.kubernetes.base.emit import Manifest, document

_AGAIN = re.compile(r"@@again\d+")
_LINE = re.compile(r"^(\s*)(?:- )?'@@(\d+)'(?:: null)?$")
_VALUE = re.compile(r"^(\s*(?:- )?)(.*: )'@@(\d+)'$")
_INLINE = re.compile(r"'@@(\d+)'|@@(\d+)@@")


class Raws:
    """Pieces of template text, each behind a mark that stands for it in a tree of plain YAML."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """The mark of a text. As an entry of a list or a key it becomes a line, as a value an expression."""
        if text not in self._texts:
            self._texts.append(text)
        return f"@@{self._texts.index(text)}"

    def guard(self, condition: str) -> tuple[str, str]:
        """The marks around a part under a condition."""
        return self.mark(f"{{{{- if {condition} }}}}"), self.mark("{{- end }}")

    def within(self, text: str) -> str:
        """The mark of a text that is a part of a longer scalar."""
        return f"{self.mark(text)}@@"

    def text(self, number: str) -> str:
        """The text of a mark."""
        return self._texts[int(number)]


def template(manifest: Manifest, raws: Raws) -> str:
    """One document as a template."""
    lines = document(manifest).splitlines()
    return "\n".join(_replaced(line, raws) for line in lines) + "\n"


def _replaced(line: str, raws: Raws) -> str:
    line = _AGAIN.sub("", line)
    if (found := _LINE.match(line)) and (text := raws.text(found[2])).startswith("{{-"):
        indent = found[1]
        return f"{indent}{text.replace('INDENT', str(len(indent)))}"
    if found := _VALUE.match(line):
        text = raws.text(found[3])
        if "INDENT" in text:
            indent = len(found[1]) + 2
            text, bar = text.removeprefix("|"), "|" if text.startswith("|") else ""
            return f"{found[1]}{found[2]}{bar}".rstrip() + f"\n{' ' * indent}{text.replace('INDENT', str(indent))}"
    return _INLINE.sub(lambda mark: raws.text(mark[1] or mark[2]), line)


def block(value: str) -> str:
    """The template text of a value that is a mapping or a list in the values."""
    return f"{{{{- toYaml {value} | nindent INDENT }}}}"


def substituted(tree: Any, values: Mapping[Any, str], raws: Raws) -> Any:  # noqa: ANN401 - a tree
    """A tree in which placeholders are replaced by the template expressions that stand for them."""
    if isinstance(tree, dict):
        return {_text(key, values, raws): substituted(one, values, raws) for key, one in tree.items()}
    if isinstance(tree, list):
        return [substituted(one, values, raws) for one in tree]
    if isinstance(tree, str):
        return _text(tree, values, raws)
    if isinstance(tree, int) and not isinstance(tree, bool) and tree in values:
        return raws.mark(f"{{{{ {values[tree]} }}}}")
    return tree


def _text(text: str, values: Mapping[Any, str], raws: Raws) -> str:
    if text.startswith("@@"):
        return text
    if text in values:
        return raws.mark(f"{{{{ {values[text]} | quote }}}}")
    for placeholder, expression in values.items():
        if str(placeholder) in text:
            text = text.replace(str(placeholder), raws.within(f"{{{{ {expression} }}}}"))
    return text


def for_each(tree: Any, mentions: tuple[str, ...], begin: str, end: str) -> Any:  # noqa: ANN401 - a tree
    """A tree in which the smallest list entry with all placeholders of a pool stands between ``begin`` and ``end``."""
    if isinstance(tree, dict):
        return {key: for_each(one, mentions, begin, end) for key, one in tree.items()}
    if not isinstance(tree, list):
        return tree
    found: list[Any] = []
    for item in tree:
        if not _mentions(item, mentions):
            found.append(item)
        elif _within_one(item, mentions):
            found.append(for_each(item, mentions, begin, end))
        else:
            found += [begin, item, end]
    return found


def _mentions(tree: Any, mentions: tuple[str, ...]) -> bool:  # noqa: ANN401 - a tree
    return any(one in str(tree) for one in mentions)


def _within_one(item: Any, mentions: tuple[str, ...]) -> bool:  # noqa: ANN401 - a tree
    """Whether one entry of a list inside ``item`` has all placeholders that it has."""
    if isinstance(item, dict):
        having = [one for one in item.values() if _mentions(one, mentions)]
        return len(having) == 1 and _within_one(having[0], mentions)
    return isinstance(item, list) and len([one for one in item if _mentions(one, mentions)]) == 1
