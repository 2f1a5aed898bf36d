"""What an import says: for people as text, for programs as data. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from understudy.deploy.importing.findings import Kind
from understudy.deploy.importing.pools import Imported, Note

_INDENT = " " * 10


def notes_text(imported: Imported) -> str:
    """The notes, pool by pool, and a line that counts everything."""
    return "\n".join(line for line in _lines(imported)) + "\n"


def _lines(imported: Imported) -> Iterator[str]:
    yield summary(imported)
    for pool in ("", *(pool.spec.pool for pool in imported.pools)):
        alike: dict[Note, list[str]] = {}
        for note in imported.notes:
            if note.pool == pool:
                alike.setdefault(replace(note, remark=replace(note.remark, setting="")), []).append(note.remark.setting)
        if alike:
            yield ""
            yield f"pool {pool}" if pool else "in no pool"
        for note, settings in alike.items():
            yield from _note(note, settings)


def _note(note: Note, settings: Sequence[str]) -> Iterator[str]:
    """A note for all ``settings`` of which the same is to be said."""
    for number, setting in enumerate(settings):
        yield f"  {note.remark.kind if number == 0 else '':7} {setting}"
    yield f"{_INDENT}{note.place}"
    yield f"{_INDENT}{note.remark.reason}"
    yield f"{_INDENT}To do: {note.remark.remedy}"


def summary(imported: Imported) -> str:
    """How many pools, notes and unrelated objects there are, in one line."""
    kinds = Counter(note.remark.kind for note in imported.notes)
    counts = ", ".join(f"{kinds[kind]} {kind}" for kind in get_args(Kind))
    others = ", ".join(f"{count} {kind}" for kind, count in sorted(imported.unrelated.items()))
    ignored = f"; nothing to import in {others}" if others else ""
    return f"{_count(len(imported.pools), 'pool')}, {_count(len(imported.notes), 'note')} ({counts}){ignored}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def import_view(imported: Imported, files: Mapping[str, str]) -> dict[str, Any]:
    """Everything as data. ``files`` has the file that was written for a pool."""
    return {
        "pools": [
            {
                "pool": pool.spec.pool,
                "file": files.get(pool.spec.pool, ""),
                "made_of": [str(place) for place in pool.places],
                "spec": dict(pool.raw),
            }
            for pool in imported.pools
        ],
        "notes": [
            {
                "kind": note.remark.kind,
                "pool": note.pool,
                "file": note.place.file,
                "document": note.place.document,
                "line": note.place.line,
                "item": note.place.item,
                "setting": note.remark.setting,
                "reason": note.remark.reason,
                "remedy": note.remark.remedy,
            }
            for note in imported.notes
        ],
        "unrelated": dict(imported.unrelated),
    }
