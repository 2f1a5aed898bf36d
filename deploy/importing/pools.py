"""Makes pool specs of findings: one for each application, checked as ``understudy apply`` checks it. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from understudy.deploy.importing.findings import Finding, Place, Reading, Remark, Target
from understudy.statesync.pool.spec import PoolSpec, SpecError
from understudy.statesync.pool.spec_reader import parse_spec

_NAME_MOST = 63
_KEYS_MOST = 8
_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Note:
    """A remark with its pool ('' for none) and its place."""

    pool: str
    place: Place
    remark: Remark


@dataclass(frozen=True, slots=True)
class ImportedPool:
    """A pool: its spec, the text of its file, and the places that it was made of."""

    spec: PoolSpec
    raw: Mapping[str, Any]
    text: str
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """The pools, the notes, and how many objects or sections without session affinity there were, by kind."""

    pools: tuple[ImportedPool, ...]
    notes: tuple[Note, ...]
    unrelated: Mapping[str, int]


def make_pools(readings: Iterable[Reading]) -> Imported:
    """The pools of everything that was read. An application without a session key has notes, and no pool."""
    unrelated: dict[str, int] = {}
    by_target: dict[Target | None, list[Finding]] = {}
    for reading in readings:
        for kind, count in reading.unrelated.items():
            unrelated[kind] = unrelated.get(kind, 0) + count
        for finding in reading.findings:
            by_target.setdefault(finding.target, []).append(finding)
    nameless = by_target.pop(None, [])
    pools: list[ImportedPool] = []
    notes = _notes("", nameless)
    for target, name in _pool_names([target for target in by_target if target is not None]).items():
        pool, more = _pool(name, target, by_target[target])
        pools += [pool] if pool is not None else []
        notes += more
    return Imported(tuple(pools), tuple(notes), unrelated)


def _pool(name: str, target: Target, findings: Sequence[Finding]) -> tuple[ImportedPool | None, list[Note]]:
    notes = _notes(name, findings)
    keys, extra = _session_key(findings)
    raw: dict[str, Any] = {"pool": name}
    if keys != [{"source_address": True}]:
        raw["session_key"] = keys
    for finding in findings:
        raw |= finding.spec
    if not keys:
        return None, [replace(note, pool="") for note in notes]
    notes += [Note(name, findings[0].place, remark) for remark in (*extra, *_renamed(name, target))]
    places = tuple(dict.fromkeys(finding.place for finding in findings if finding.key is not None))
    text = _text(raw, places)
    try:
        spec = parse_spec(text, where=name)
    except SpecError as error:
        refused = Remark("lost", "session_key", f"The settings do not go together: {error}.", "Write the pool by hand.")
        return None, [*notes, Note("", findings[0].place, refused)]
    return ImportedPool(spec, raw, text, places), notes


def _session_key(findings: Sequence[Finding]) -> tuple[list[dict[str, Any]], list[Remark]]:
    """The entries of ``session_key``: those of applications first, at most one that Envoy makes, and last."""
    keys: list[dict[str, Any]] = []
    for finding in findings:
        if finding.key is not None and dict(finding.key) not in keys:
            keys.append(dict(finding.key))
    made = [key for key in keys if key.get("generated")]
    by_envoy = {key["cookie"] for key in made}
    keys = [key for key in keys if key.get("generated") or key.get("cookie") not in by_envoy]
    own = [key for key in keys if not key.get("generated")]
    chosen = [*own[: _KEYS_MOST - 1], *made[:1]]
    remarks = [_dropped(key) for key in keys if key not in chosen]
    if len(chosen) > 1:
        remarks.append(_several(chosen))
    return chosen, remarks


def _dropped(key: Mapping[str, Any]) -> Remark:
    setting = ", ".join(f"{name}: {value}" for name, value in key.items())
    reason = f"A pool has one cookie that Envoy makes, and at most {_KEYS_MOST} session keys."
    return Remark("lost", setting, reason, "Nothing to do, unless this key is more important than those in the file.")


def _several(keys: Sequence[Mapping[str, Any]]) -> Remark:
    names = ", ".join(str(next(iter(key.values()))) for key in keys)
    reason = f"The pool has several session keys: {names}. The first one that a request carries counts."
    return Remark("check", "session_key", reason, "Put the one first that identifies a session best.")


def _pool_names(targets: Sequence[Target]) -> dict[Target, str]:
    """A name for each application: that of the Service or backend, longer only where two would be the same."""
    short = {target: target.name for target in targets}
    names = {
        target: "-".join(
            filter(
                None,
                (
                    target.namespace if _namespaces(target, targets) > 1 else "",
                    target.name,
                    target.part if _parts(target, targets) > 1 else "",
                ),
            )
        )
        for target in short
    }
    taken: set[str] = set()
    for target, name in names.items():
        names[target] = _free(_as_name(name), taken)
        taken.add(names[target])
    return names


def _namespaces(target: Target, targets: Sequence[Target]) -> int:
    return len({one.namespace for one in targets if one.name == target.name})


def _parts(target: Target, targets: Sequence[Target]) -> int:
    return len({one.part for one in targets if (one.name, one.namespace) == (target.name, target.namespace)})


def _as_name(text: str) -> str:
    """The nearest text that a pool can be named."""
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower())[:_NAME_MOST].strip(".-") or "pool"


def _free(name: str, taken: set[str]) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name[: _NAME_MOST - 8]}-{number}"
    return found


def _renamed(name: str, target: Target) -> list[Remark]:
    if target.name in name:
        return []
    reason = f"A pool's name has only a-z, 0-9, '.' and '-', so {target.name!r} has become {name}."
    return [Remark("check", target.name, reason, "Choose another name if you like, before the first 'apply'.")]


def _text(raw: Mapping[str, Any], places: Sequence[Place]) -> str:
    """The pool file."""
    made_of = "".join(f"# {line}\n" for place in places for line in [_one_line(f"Made of {place}.")])
    body = yaml.safe_dump(dict(raw), sort_keys=False, default_flow_style=None, width=_WIDTH)
    head = _HEAD if raw.get("protocol") == "tcp" else _HEAD + _HEAD_OF_HTTP
    return f"{made_of}{head}{body}"


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _notes(pool: str, findings: Iterable[Finding]) -> list[Note]:
    found = (Note(pool, finding.place, remark) for finding in findings for remark in finding.remarks)
    return list(dict.fromkeys(found))


_HEAD = """\
# Affinity alone keeps no state: the application must keep its sessions at its sidecar.
# All other keys have their defaults; 'slots' (256) cannot be changed later.
"""
_HEAD_OF_HTTP = """\
# Timeouts of the old proxy are not read: front Envoys end requests after 'timeouts.request_seconds' (15).
"""
