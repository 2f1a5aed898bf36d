"""The pool spec as a JSON schema for editors, made from the models of ``spec``.

What the models check by code is added here, as far as a schema can express it. A schema cannot express that checks have
distinct names, or that a running pool keeps its slots; ``understudy apply --dry-run`` checks these. The schema is of
draft 7, which editors support.
"""

import re
from collections.abc import Mapping
from typing import Any

from understudy.statesync.http.headers import CLIENTS_MAY_NOT
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_front import ALL_PATHS, ANY_HOST
from understudy.statesync.pool.spec_tcp import MAX_TCP_SLOTS, MEANS_NOTHING

DRAFT = "http://json-schema.org/draft-07/schema#"
Schema = dict[str, Any]
_TEXT: Schema = {"type": "string", "minLength": 1}
_TRUE: Schema = {"const": True}


def spec_schema() -> Schema:
    """The schema of a pool spec."""
    made = _plain(PoolSpec.model_json_schema())
    parts = made.pop("$defs")
    parts["SessionKey"] |= _SESSION_KEY
    parts["SessionKey"]["properties"]["header"]["not"] = {"type": "string", "pattern": _lost_at_the_front()}
    parts["CheckSpec"] |= _one_of({"http": _TEXT, "command": {"minItems": 1}})
    parts["Tcp"] |= {"if": _has("ping", _TEXT), "then": _has("pong", _TEXT)}
    made["properties"]["members"]["additionalProperties"] = False
    made |= {"if": _has("protocol", {"const": "tcp"}), "then": _TCP, "else": _NOT_TCP}
    return {"$schema": DRAFT, **made, "title": "Pool spec of Understudy", "$defs": parts}


def _plain(schema: Any) -> Any:  # noqa: ANN401 - any part of a schema
    """A part of pydantic's schema, without titles made of names, empty defaults and reStructuredText."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    named = {key: item for key, item in schema.items() if key != "title" or not isinstance(item, str)}
    plain = {key: _plain(item) for key, item in named.items() if key != "default" or item is not None}
    if "default" in plain:
        plain["default"] = _said(plain["default"])
    if isinstance(plain.get("description"), str):
        plain["description"] = plain["description"].replace("``", "`")
    return plain


def _said(value: Any) -> Any:  # noqa: ANN401 - any default
    """A default as people write it."""
    if isinstance(value, list):
        return [_said(item) for item in value]
    if isinstance(value, dict):
        return {key: _said(item) for key, item in value.items() if item is not None}
    return value


def _has(key: str, what: Schema) -> Schema:
    return {"required": [key], "properties": {key: what}}


def _one_of(keys: Mapping[str, Schema]) -> Schema:
    """Exactly one of these keys has a value; ``null`` is none."""
    return {"oneOf": [_has(key, what) for key, what in keys.items()]}


def _lost_at_the_front() -> str:
    """The names that ``headers.lost_at_the_front`` refuses, as a pattern that needs no flag for capitals."""
    starts = "|".join(
        "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else re.escape(letter) for letter in start)
        for start in CLIENTS_MAY_NOT
    )
    return f"_|^({starts})".replace("\\-", "-")


_NOTHING: Schema = {"type": "null"}
_SESSION_KEY: Schema = {
    "if": _has("preset", _TEXT),
    "then": {"properties": {"header": _NOTHING, "source_address": _NOTHING, "cookie": _TEXT}},
    "else": {
        **_one_of({"header": _TEXT, "cookie": _TEXT, "source_address": _TRUE}),
        "allOf": [
            {"if": {"anyOf": [_has(key, what) for key, what in about.items()]}, "then": _has(needed, {"type": kind})}
            for about, needed, kind in (
                ({"pattern": _TEXT, "generated": _TRUE}, "cookie", "string"),
                ({"redis_suffixes": {"minItems": 1}, "transform": _TEXT}, "redis_prefixes", "array"),
            )
        ],
    },
}
_TCP: Schema = {
    "properties": {
        "slots": {"maximum": MAX_TCP_SLOTS},
        "session_key": {"maxItems": 1, "items": _has("source_address", _TRUE)},
        "mesh": _NOTHING,
        "versions": _NOTHING,
        "front": {
            "properties": {
                "hosts": {"items": {"const": ANY_HOST}},
                "paths": {"items": {"const": ALL_PATHS}},
                "tls": _NOTHING,
            }
        },
        **{
            group: {"not": {"anyOf": [{"required": [key]} for key in sorted(keys)]}}
            for group, keys in MEANS_NOTHING.items()
        },
    }
}
_NOT_TCP: Schema = {
    "properties": {
        "tcp": _NOTHING,
        "session_key": {"items": {"not": _has("source_address", _TRUE)}},
    },
    "if": _has("versions", {"type": "object"}),
    "then": {"properties": {"mesh": _NOTHING}},
}
