"""JSON merge patch (RFC 7396), from bytes to bytes."""

import json
from typing import Any

from understudy.statesync.parsing.strict_json import described, read_json

JSON_TYPE = "application/json"
MERGE_PATCH_TYPE = "application/merge-patch+json"


class CannotPatch(Exception):
    """The patch has no result; ``problem`` is the last part of the problem type (RFC 9457), the text says why."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem


def patched(body: bytes, patch: bytes) -> bytes:
    """What ``patch`` makes of a session's content (``b""`` if there is none). Raises :class:`CannotPatch`.

    No message quotes the content.
    """
    try:
        return _patched(body, patch)
    except RecursionError:
        raise CannotPatch("not-json", "the merge patch or the session is nested too deeply") from None


def _patched(body: bytes, patch: bytes) -> bytes:
    try:
        changes = read_json(patch)
    except ValueError as error:
        raise CannotPatch("not-json", f"the merge patch is not JSON: {described(error)}") from None
    try:
        target = read_json(body) if body else {}
    except ValueError:
        detail = "the session's content is not JSON, so no merge patch applies to it"
        raise CannotPatch("session-not-json", detail) from None
    try:
        return json.dumps(merge_patch(target, changes), separators=(",", ":"), ensure_ascii=False).encode()
    except ValueError:  # a lone surrogate, written as an escape
        raise CannotPatch("not-json", "the merge patch has text that is not Unicode") from None


def merge_patch(target: Any, patch: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Apply a JSON merge patch (RFC 7396, section 2); returns a new value, the arguments stay as they are."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result
