"""Turns what proxies hash, or remember a client by, into session keys, with the remarks that belong to each. Pure.

Every function returns an entry of ``session_key``, or None if there is none for it, and remarks.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from understudy.deploy.importing.findings import Remark
from understudy.statesync.http.headers import lost_at_the_front
from understudy.statesync.pool.session_key import PRESETS, ROUTING_COOKIE, SessionKey

Key = dict[str, Any]
Outcome = tuple[Key | None, tuple[Remark, ...]]

ROUTING_KEY: Mapping[str, Any] = {"cookie": ROUTING_COOKIE, "generated": True}


def header_key(setting: str, name: str) -> Outcome:
    """A header that clients send."""
    if why := lost_at_the_front(name):
        return None, (Remark("lost", setting, f"{_sentence(why)}.", "Let clients send the key in another header."),)
    return _checked(setting, {"header": name})


def cookie_key(setting: str, name: str) -> Outcome:
    """A cookie that the application sets."""
    key, remarks = _checked(setting, {"cookie": name})
    presets = [preset for preset, fields in PRESETS.items() if fields["cookie"] == name]
    if key is None or not presets:
        return key, remarks
    entries = " or ".join(f"'preset: {preset}'" for preset in presets)
    remedy = (
        f"If the application is such a one and keeps its sessions in Redis, replace the entry by {entries} before the "
        "first 'apply'. It cannot be done later."
    )
    reason = (
        f"{name} is the session cookie of a web framework ({', '.join(presets)}). A preset also says under which keys "
        "its store keeps sessions."
    )
    return key, (*remarks, Remark("check", setting, reason, remedy))


def generated_key(setting: str, name: str) -> Outcome:
    """A cookie with a random value that the proxy sets for clients that have none."""
    return _checked(setting, {"cookie": name, "generated": True})


def server_cookie_key(setting: str, proxy: str, name: str) -> Outcome:
    """A cookie by which the proxy finds the server that a client had: front Envoys set another one instead."""
    reason = (
        f"The cookie {name} tells {proxy} which server to use, and many clients can have the same value. So it is no "
        f"session key. Front Envoys set the cookie {ROUTING_COOKIE} instead, with a random value."
    )
    remedy = (
        "Nothing to do for clients: they get the new cookie with their next answer. If the application has a session "
        "cookie of its own, put that one first in session_key, so that requests reach the member that has the session."
    )
    return dict(ROUTING_KEY), (Remark("changed", setting, reason, remedy),)


def no_key(setting: str, what: str, remedy: str = "") -> Outcome:
    """Something that is no session key."""
    reason = f"{what} is no session key in a pool: Envoy must find the key in a header or a cookie."
    return None, (Remark("lost", setting, reason, remedy or _OWN_KEY),)


def query_parameter(setting: str, name: str) -> Outcome:
    """A parameter of the URL."""
    remedy = f"Let clients send the value of {name} in a header too, and write session_key: [{{header: NAME}}]."
    return no_key(setting, f"The query parameter {name}", remedy)


def source_address(setting: str, *, tcp: bool, send_proxy_protocol: str = "none") -> tuple[Outcome, Key]:
    """The client's address: the key of a TCP pool. The second part are other keys of the spec."""
    if not tcp:
        reason = "The client's address is a session key only in a pool with protocol: tcp, and this may be HTTP."
        remedy = (
            f"For HTTP write session_key: [{{cookie: {ROUTING_COOKIE}, generated: true}}], or the application's own "
            "session cookie. For other protocols write protocol: tcp and leave session_key out."
        )
        return (None, (Remark("lost", setting, reason, remedy),)), {}
    spec = {"protocol": "tcp", "tcp": {"send_proxy_protocol": send_proxy_protocol}}
    if send_proxy_protocol != "none":
        return ({"source_address": True}, ()), spec
    reason = "The session key is the client's address, and the application does not see it: it gets no PROXY header."
    remedy = "If the application can read PROXY headers, set tcp.send_proxy_protocol to v1 or v2."
    return ({"source_address": True}, (Remark("check", setting, reason, remedy),)), spec


def server_header(setting: str, proxy: str, name: str) -> Outcome:
    """A header in which the proxy tells the client its server, and the client sends it back."""
    remedy = (
        f"If the application itself sets {name} to an id of its own (as MCP servers do with mcp-session-id), write "
        f"session_key: [{{header: {name}}}]. Else choose a header that the client sets."
    )
    reason = f"The header {name} has the address of a server, which {proxy} writes into it. So it is no session key."
    return None, (Remark("lost", setting, reason, remedy),)


def lifetime(setting: str) -> Remark:
    """A setting of how long a client stays with its server."""
    return Remark(
        "lost",
        setting,
        "A client keeps its slot for as long as it has its key. A cookie that Envoy sets lasts until the browser ends.",
        "Set session_ttl to the seconds that the application's sessions live after their last write (default 3600).",
    )


def cookie_attribute(setting: str) -> Remark:
    """An attribute of a cookie that a proxy sets."""
    return Remark(
        "lost",
        setting,
        "The cookie that front Envoys set has Path=/, HttpOnly and SameSite=Lax, and no others; they cannot be chosen.",
        "If other attributes are needed, let the application set the cookie, and name it in session_key.",
    )


BY_VERSION = (
    "If they are versions of one application, run them in one pool: give each sidecar --app-version, and write "
    "'versions' (docs/recipes.md). Sessions then stay on their version, and all new ones begin on one."
)


def hash_table(setting: str) -> Remark:
    """The size of a hash ring, or another setting of the hash."""
    return Remark(
        "changed",
        setting,
        "Slots replace the hash table: a key has one slot for life, and slots move only when members change.",
        "Nothing to do. 'slots' is 256 unless the spec says otherwise, and cannot be changed later.",
    )


def _checked(setting: str, key: Key) -> Outcome:
    try:
        SessionKey.model_validate(key)
    except ValidationError:
        name = next(iter(key.values()))
        reason = f"{name!r} is no name that a header or a cookie can have."
        return None, (Remark("lost", setting, reason, "Correct the name, and import again."),)
    return key, ()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


_OWN_KEY = (
    "Choose what identifies a session, such as a cookie of the application or a header that clients set, and write it "
    f"in session_key. If there is nothing, write session_key: [{{cookie: {ROUTING_COOKIE}, generated: true}}]."
)
