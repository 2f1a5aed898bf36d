"""What decides the slot of a cookie, a header or a stored key, for ``understudy explain``. Pure."""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass

from understudy.statesync.pool.cookie_pattern import id_in_value
from understudy.statesync.pool.session_key import SessionKey
from understudy.statesync.pool.spec import PoolSpec

_HEADER = re.compile(r"([A-Za-z0-9-]+):\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class HashedText:
    """How a text was read, which part of it is hashed, and the keys that its session may have.

    ``text`` is None if there is no session key in it: such a request goes to any member.
    """

    read_as: str
    text: str | None
    keys: tuple[str, ...] = ()


def hashed_text(spec: PoolSpec | None, given: str) -> HashedText:
    """Read ``given`` as a header or a cookie that the spec names, or else as a key."""
    if spec is None:
        return HashedText("a key; the spec cannot be read, so its rule is not known", given, (given,))
    header = _HEADER.fullmatch(given)
    if header is not None:
        name, value = header[1].lower(), header[2].strip()
        source = next((key for key in spec.session_key if key.header and key.header.lower() == name), None)
        if source is not None:
            return HashedText(f"the header {name}", value, _keys(source, value))
        if name == "cookie" and "=" in value:
            return _in_cookies(spec, value)
    named = {key.cookie for key in spec.session_key if key.cookie}
    if any("=" in part and name in named for name, part in _cookies(given)):
        return _in_cookies(spec, given)
    return _in_key(spec, given)


def _in_cookies(spec: PoolSpec, header: str) -> HashedText:
    """The first entry of the spec that these cookies have a session id for."""
    cookies = list(_cookies(header))
    for source in spec.session_key:
        values = [_value(part) for name, part in cookies if name == source.cookie]
        if source.pattern:
            ids = [found for value in values if (found := id_in_value(source.pattern, value)) is not None]
        else:
            ids = [value for value in values[:1] if value]
        if ids:
            how = ", the group of its pattern" if source.pattern else ""
            return HashedText(f"the cookie {source.cookie}{how}", ids[0], _keys(source, ids[0]))
    return HashedText("cookies without a session key that the spec names: such a request goes to any member", None)


def _in_key(spec: PoolSpec, key: str) -> HashedText:
    rule = spec.slot_rule
    if rule is None:
        return HashedText("a key, hashed as it is", key, (key,))
    text, store = rule.hashed_text(key), rule.store_of(key)
    if store is not None:
        inside = f"a key of a session store, with the prefix {store.prefix!r}"
        return HashedText(inside + (f", in {store.transform}" if store.transform else ""), text, (key,))
    how = "hashed as it is" if text == key else "of which the {tag} is hashed"
    return HashedText(f"a key without a prefix that the spec names, {how}", text, (key,))


def _cookies(header: str) -> Iterator[tuple[str, str]]:
    """The name of each cookie, and its whole text."""
    for part in header.split(";"):
        yield part.partition("=")[0].strip(" "), part


def _value(cookie: str) -> str:
    value = cookie.partition("=")[2]
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


def _keys(source: SessionKey, text: str) -> tuple[str, ...]:
    """The keys under which the session may be stored: with each prefix of the store, or the id alone."""
    if source.generated:
        return ()
    if source.transform == "base64":
        try:
            text = base64.b64decode(text, validate=True).decode("utf-8", "surrogateescape")
        except (binascii.Error, ValueError):
            return ()
    return (*(store.prefix + text for store in source.stores()), text)
