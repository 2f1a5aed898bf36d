"""Reads pool specs from YAML and from etcd, and explains what is wrong with them.

A wrong spec is refused as a whole, and every fault is named, with the nearest valid key beside an unknown one. The
running pool keeps the spec that it has.
"""

import difflib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from understudy.statesync.http.headers import lost_at_the_front
from understudy.statesync.parsing.stored import brief, read_object
from understudy.statesync.pool.spec import PoolSpec, SpecError
from understudy.statesync.pool.spec_parts import CheckSpec
from understudy.statesync.pool.spec_tcp import without_effect

_IN_ETCD = "spec in etcd"
FAULTS_MOST = 20
"""Faults of one spec that are shown; a hostile spec can have a hundred thousand."""


def decode_spec(value: bytes) -> PoolSpec:
    """Read a spec from etcd. Raises :class:`SpecError` if it is not one that this version understands in full."""
    return _checked(_stored(value), _IN_ETCD)


def decode_known_spec(value: bytes) -> tuple[PoolSpec, tuple[str, ...]]:
    """Read a spec from etcd as far as this version knows its keys, and name those that it does not know.

    For processes of a pool that is being upgraded. The newer version that applied the spec has checked it. A process
    that starts meanwhile serves by the keys that it knows. Unknown values are rejected, never guessed.

    Raises:
        SpecError: a key that this version knows has a value that it does not know.
    """
    raw = _stored(value)
    try:
        return PoolSpec.model_validate(raw), ()
    except ValidationError as error:
        unknown = [fault["loc"] for fault in error.errors() if fault["type"] == "extra_forbidden"]
        if not unknown:
            raise SpecError(_explain(_IN_ETCD, error)) from None
    for location in unknown:
        _remove(raw, location)
    return _checked(raw, _IN_ETCD), tuple(".".join(map(str, location)) for location in unknown)


def _stored(value: bytes) -> dict[str, Any]:
    """The JSON of a spec in etcd. Raises :class:`SpecError`."""
    try:
        return read_object(value)
    except ValueError as error:
        raise SpecError(f"{_IN_ETCD}: not a spec: {error}") from None


def parse_spec(text: str, *, where: str) -> PoolSpec:
    """Read a pool spec from YAML text.

    Args:
        text: the YAML.
        where: the file's name, for messages.

    Raises:
        SpecError: with one line per fault: where, what, and what would be right.
    """
    raw = _yaml(text, where)
    if not isinstance(raw, dict):
        raise SpecError(f"{where}: a pool spec is a mapping that starts with 'pool: NAME'")
    if useless := without_effect(raw):
        raise SpecError("\n".join(f"{where}: {line}" for line in useless))
    spec = _checked(raw, where)
    lost = [why for key in spec.session_key if key.header and (why := lost_at_the_front(key.header))]
    if lost:  # only new specs are refused: a pool that runs with such a spec keeps it
        raise SpecError("\n".join(f"{where}: session_key: {why}" for why in lost))
    return spec


def parse_checks(text: str, *, where: str) -> tuple[CheckSpec, ...]:
    """Read checks from YAML text, a list as a spec's ``checks``. Raises :class:`SpecError`, as :func:`parse_spec`."""
    return _checked({"pool": "any", "checks": _yaml(text, where)}, where).checks


def _yaml(text: str, where: str) -> Any:  # noqa: ANN401 - whatever the text says
    from understudy.statesync.parsing.spec_yaml import BadYaml, read_yaml  # processes of a pool read no YAML

    try:
        return read_yaml(text)
    except BadYaml as error:
        raise SpecError(f"{where}: {error}") from None


def _checked(raw: Any, where: str) -> PoolSpec:  # noqa: ANN401 - from YAML
    try:
        return PoolSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(_explain(where, error)) from None


def load_spec(path: Path) -> PoolSpec:
    """Read a pool spec from a YAML file; see :func:`parse_spec`."""
    from understudy.statesync.parsing.spec_yaml import SIZE_MOST

    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(SIZE_MOST + 1)  # a longer one is refused whatever it says
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}; name the pool spec's file") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: cannot be read: {error}") from None
    return parse_spec(text, where=str(path))


def _remove(document: Any, location: tuple[int | str, ...]) -> None:  # noqa: ANN401 - parsed JSON
    *parents, last = location
    for part in parents:
        document = document[part]
    del document[last]


def _explain(where: str, error: ValidationError) -> str:
    lines = []
    faults = error.errors()
    for fault in faults[:FAULTS_MOST]:
        location = tuple(str(part) for part in fault["loc"])
        path = brief(".".join(location))
        if fault["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key '{path}'{_nearest(fault['loc'])}")
        else:
            said = fault.get("input")
            got = "" if fault["type"] == "missing" or isinstance(said, dict) else f" (got {brief(repr(said))})"
            message = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {path or 'spec'}: {message}{got}")
    if len(faults) > FAULTS_MOST:
        lines.append(f"{where}: and {len(faults) - FAULTS_MOST} more faults")
    return "\n".join(lines)


_KEY_MOST = 100


def _nearest(location: tuple[int | str, ...]) -> str:
    model: Any = PoolSpec
    for part in location[:-1]:
        model = _model_within(model, part)
        if model is None:
            return ""
    valid = list(model.model_fields)
    near = difflib.get_close_matches(str(location[-1])[:_KEY_MOST], valid, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; valid keys are {', '.join(sorted(valid))}"


def _model_within(model: Any, part: int | str) -> Any:  # noqa: ANN401 - walks pydantic's annotations
    if isinstance(part, int) or part not in model.model_fields:
        return model
    pending = [model.model_fields[part].annotation]
    while pending:
        candidate = pending.pop()
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
        pending.extend(get_args(candidate))
    return None
