"""Reads the sections of an HAProxy configuration, as far as they tell where requests go. Pure.

The format: docs.haproxy.org, sections 2.1 (format) and 2.2 (quoting and escaping). Directives that have nothing to do
with servers are not even split into words.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from understudy.deploy.importing.findings import ImportFault, Place

PROXIES = ("backend", "listen")
_SECTIONS = frozenset(
    {
        *PROXIES,
        *("acme", "cache", "crt-store", "defaults", "fcgi-app", "frontend", "global", "http-errors", "log-forward"),
        *("log-profile", "mailers", "peers", "program", "resolvers", "ring", "traces", "userlist"),
    }
)
_READ = frozenset(
    {
        *("appsession", "balance", "bind", "cookie", "default_backend", "force-persist", "hash-balance-factor"),
        *("hash-type", "ignore-persist", "mode", "persist", "server", "server-template", "stick", "stick-table"),
        "use_backend",
    }
)
_A_SECTION = re.compile(r"^[ \t]*(?:backend|listen|frontend|defaults|global)(?:[ \t]+\S+)*[ \t]*$", re.MULTILINE)
_A_MANIFEST = re.compile(r"^(?:- |\{?\s*\"?)?(?:apiVersion|kind)\"?\s*:|^\s*[\[{]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Line:
    """A directive: the number of its line, and its words."""

    number: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        """The directive as one text."""
        return " ".join(self.words)


@dataclass(frozen=True, slots=True)
class Section:
    """A section: its kind, its name, the line where it begins, and those of its directives that matter here.

    ``parent`` is the ``defaults`` section that it takes settings from; None for none.
    """

    kind: str
    name: str
    number: int
    lines: tuple[Line, ...]
    parent: "Section | None" = None

    def all(self, word: str) -> list[Line]:
        """The directives of this section that begin with ``word``."""
        return [line for line in self.lines if line.words[0] == word]

    def last(self, word: str) -> Line | None:
        """The directive that counts: the last of the section, else that of its defaults; None if there is none."""
        own = self.all(word)
        if own:
            return own[-1]
        return self.parent.last(word) if self.parent is not None else None

    def place(self, file: str, line: Line | None = None) -> Place:
        """Where the section, or one of its directives, stands."""
        number = line.number if line is not None else self.number
        return Place(file, line=number, item=f"{self.kind} {self.name}")


def looks_like_haproxy(text: str) -> bool:
    """Whether the text is an HAProxy configuration, and not Kubernetes manifests that may contain one."""
    return bool(_A_SECTION.search(text)) and not _A_MANIFEST.search(text)


def read_sections(text: str, file: str) -> list[Section]:
    """The sections of a configuration. Raises :class:`ImportFault` for lines that HAProxy could not read either."""
    found: list[Section] = []
    kind, name, number, parent = "", "", 0, ""
    lines: list[Line] = []

    def close() -> None:
        if kind:
            found.append(Section(kind, name, number, tuple(lines), _parent(found, kind, parent)))

    for at, line in enumerate(text.splitlines(), 1):
        first = line.split(maxsplit=1)[0] if line.strip() else ""
        if first in _SECTIONS:
            close()
            words = _words(line, file, at)
            lines, number, kind = [], at, first
            name = words[1] if len(words) > 1 and words[1] != "from" else ""
            parent = words[words.index("from", 1) + 1] if "from" in words[1:-1] else ""
            if first in PROXIES and not name:
                raise ImportFault(f"{file}, line {at}: {first} has no name")
        elif first in _READ:
            if not kind:
                raise ImportFault(f"{file}, line {at}: {first} stands before the first section")
            lines.append(Line(at, tuple(_words(line, file, at))))
    close()
    return found


def _parent(before: Sequence[Section], kind: str, wanted: str) -> Section | None:
    """The ``defaults`` that a section takes its settings from: the named ones, else the last before it."""
    if kind == "defaults" and not wanted:
        return None
    defaults = [section for section in before if section.kind == "defaults"]
    named = [section for section in defaults if section.name == wanted] if wanted else defaults
    return named[-1] if named else None


def _words(line: str, file: str, number: int) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise ImportFault(f"{file}, line {number}: {str(error).lower()}") from None
