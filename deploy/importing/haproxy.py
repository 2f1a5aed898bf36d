"""Finds session affinity in the backends of an HAProxy configuration. Pure.

Directives: docs.haproxy.org, ``balance``, ``cookie``, ``stick-table``, ``stick on``, ``stick match``,
``stick store-request``, ``stick store-response`` and ``server``. Without ``mode`` a section is in TCP mode.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.deploy.importing import keys
from understudy.deploy.importing.findings import Finding, Reading, Remark, Target
from understudy.deploy.importing.haproxy_config import PROXIES, Line, Section, read_sections
from understudy.deploy.importing.haproxy_servers import servers_of

_PROXY = "HAProxy"
_FETCH = re.compile(r"([\w.]+)(?:\(([^()]*)\))?(,.*)?")
_COOKIES = ("cookie", "cook", "req.cook", "res.cook", "scook", "set-cookie")
_HEADERS = ("hdr", "req.hdr", "req.fhdr", "shdr", "res.hdr")
_PARAMETERS = ("url_param", "urlp")
_SPREAD = ("roundrobin", "static-rr", "leastconn", "first", "random", "log-hash", "sticky")
"""Algorithms that keep no client at its server."""
_OF_HTTP = ("hdr", "uri", "url_param")
"""Beginnings of algorithms that need HTTP."""
_COOKIE_LIFETIMES = ("maxidle", "maxlife")
_COOKIE_VALUES = (*_COOKIE_LIFETIMES, "domain", "attr")
_COOKIE_FLAGS = {"secure": True, "httponly": False, "preserve": True}
"""Flags of a ``cookie`` line, and whether Envoy's cookie differs."""
_CONDITIONS = ("if", "unless")


@dataclass(frozen=True, slots=True)
class _Backend:
    """A section with servers, the file it is in, and what tells how clients reach it."""

    section: Section
    file: str
    behind_proxy: bool

    @property
    def tcp(self) -> bool:
        mode = self.section.last("mode")
        return mode is None or mode.words[1:2] != ("http",)

    def finding(self, line: Line, outcome: keys.Outcome, spec: dict[str, Any] | None = None) -> Finding:
        """A finding at a directive."""
        return Finding(self.section.place(self.file, line), Target(self.section.name), *outcome, spec or {})


def read_haproxy(text: str, file: str) -> Reading:
    """What the backends of a configuration mean. Raises :class:`ImportFault` if it is broken."""
    sections = read_sections(text, file)
    proxied = _behind_proxies(sections)
    findings: list[Finding] = []
    unrelated: Counter[str] = Counter()
    for section in sections:
        backend = _Backend(section, file, section.name in proxied)
        found = list(_affinity(backend)) if section.kind in PROXIES else []
        if not found:
            unrelated[section.kind] += 1
            continue
        if any(one.key is not None for one in found):
            found += servers_of(section, file, tcp=backend.tcp)
        findings += found
    return Reading(tuple(findings), dict(unrelated))


def _behind_proxies(sections: Sequence[Section]) -> set[str]:
    """The sections whose clients come through a proxy that sends PROXY headers (``bind ... accept-proxy``)."""
    found: set[str] = set()
    for section in sections:
        binds = section.all("bind")
        if binds and all("accept-proxy" in bind.words for bind in binds):
            found.add(section.name)
            found |= {line.words[1] for word in _LEADS_TO for line in section.all(word) if len(line.words) > 1}
    return found


_LEADS_TO = ("default_backend", "use_backend")


def _affinity(backend: _Backend) -> Iterator[Finding]:
    """The keys of a backend: what applications set first, then the address, and last the cookie that proxies make."""
    section = backend.section
    found = [_stick(backend, line) for line in section.all("stick") if len(line.words) > 2]
    found += [_appsession(backend, line) for line in section.all("appsession") if len(line.words) > 1]
    cookie = section.last("cookie")
    if cookie is not None and len(cookie.words) > 1:
        found.append(_cookie(backend, cookie))
    balance = section.last("balance")
    if balance is not None and balance.words[1:] and balance.words[1] not in _SPREAD:
        found.append(_balance(backend, balance, beside=any(one.key is not None for one in found)))
    if not found:
        return
    yield from sorted(found, key=_generated)
    others = [line for word in ("ignore-persist", "force-persist") for line in section.all(word)]
    yield from (backend.finding(line, (None, (_condition(str(line)),))) for line in others)
    for table in section.all("stick-table"):
        if "expire" in table.words and any(one.key is not None for one in found):
            yield backend.finding(table, (None, (keys.lifetime(str(table)),)))


def _generated(finding: Finding) -> bool:
    return finding.key is not None and bool(finding.key.get("generated"))


def _stick(backend: _Backend, line: Line) -> Finding:
    """``stick on|match|store-request|store-response FETCH [table NAME] [if CONDITION]``."""
    outcome, spec = _sample(backend, str(line), line.words[2])
    if any(word in _CONDITIONS for word in line.words[3:]):
        outcome = (outcome[0], (*outcome[1], _condition(str(line))))
    return backend.finding(line, outcome, spec)


def _sample(backend: _Backend, setting: str, text: str) -> tuple[keys.Outcome, dict[str, Any]]:
    """What a sample expression, such as ``req.cook(sid)``, is as a session key; and other keys of the spec."""
    found = _FETCH.fullmatch(text)
    fetch, name = (found[1], (found[2] or "").split(",")[0].strip()) if found else ("", "")
    if found and found[3]:
        remedy = "Use the whole value, or for a cookie write an entry with 'pattern', whose one group is hashed."
        return keys.no_key(setting, f"The value of {fetch} after {found[3][1:]}", remedy), {}
    if fetch == "src":
        return _by_address(backend, setting)
    if backend.tcp and fetch:
        return _not_in_tcp(setting), {}
    if fetch in _COOKIES and name:
        return keys.cookie_key(setting, name), {}
    if fetch in _HEADERS and name:
        return keys.header_key(setting, name), {}
    if fetch in _PARAMETERS and name:
        return keys.query_parameter(setting, name), {}
    return keys.no_key(setting, f"What {text!r} reads"), {}


def _by_address(backend: _Backend, setting: str) -> tuple[keys.Outcome, dict[str, Any]]:
    outcome, spec = keys.source_address(setting, tcp=backend.tcp, send_proxy_protocol=_send_proxy(backend.section))
    if spec and backend.behind_proxy:
        spec["tcp"] = {"accept_proxy_protocol": True, **spec["tcp"]}
    return outcome, spec


def _send_proxy(section: Section) -> str:
    """How the servers are told the client's address."""
    words = [line.words for word in ("server", "server-template") for line in section.all(word)]
    if words and all(any(word.startswith("send-proxy-v2") for word in one) for one in words):
        return "v2"
    return "v1" if words and all("send-proxy" in one for one in words) else "none"


def _cookie(backend: _Backend, line: Line) -> Finding:
    """``cookie NAME [rewrite|insert|prefix] [indirect] [nocache] ...``."""
    setting, name, options = str(line), line.words[1], line.words[2:]
    if backend.tcp:
        return backend.finding(line, _not_in_tcp(setting))
    if "prefix" in options:
        key, remarks = keys.cookie_key(setting, name)
        remarks = (*remarks, _prefix(setting, name))
    else:
        key, remarks = keys.server_cookie_key(setting, _PROXY, name)
        extra = (_rewritten(setting, name),) if "insert" not in options else ()
        remarks = (*remarks, *extra, *_cookie_options(line))
    return backend.finding(line, (key, remarks))


def _cookie_options(line: Line) -> Iterator[Remark]:
    words = line.words[2:]
    for position, word in enumerate(words):
        if word in _COOKIE_VALUES:
            setting = " ".join(("cookie", line.words[1], *words[position : position + 2]))
            yield keys.lifetime(setting) if word in _COOKIE_LIFETIMES else keys.cookie_attribute(setting)
        elif _COOKIE_FLAGS.get(word):
            yield keys.cookie_attribute(f"cookie {line.words[1]} {word}")


def _appsession(backend: _Backend, line: Line) -> Finding:
    if backend.tcp:
        return backend.finding(line, _not_in_tcp(str(line)))
    return backend.finding(line, keys.cookie_key(str(line), line.words[1]))


def _balance(backend: _Backend, line: Line, *, beside: bool) -> Finding:
    """``balance ALGORITHM``; ``beside``: another directive has a session key, which comes before it."""
    setting, algorithm = str(line), line.words[1]
    found = _FETCH.fullmatch(algorithm)
    name = (found[2] or "") if found else ""
    spec: dict[str, Any] = {}
    if algorithm == "source":
        outcome, spec = _by_address(backend, setting)
    elif algorithm == "url_param" and len(line.words) > 2:
        outcome = keys.query_parameter(setting, line.words[2])
    elif algorithm == "hash" and len(line.words) > 2:
        outcome, spec = _sample(backend, setting, line.words[2])
    elif backend.tcp and algorithm.startswith(_OF_HTTP):
        outcome = _not_in_tcp(setting)
    elif found and found[1] == "hdr" and name and "use_domain_only" not in line.words:
        outcome = keys.header_key(setting, name)
    else:
        outcome = keys.no_key(setting, f"What 'balance {algorithm}' hashes")
    tables = [backend.section.last(word) for word in ("hash-type", "hash-balance-factor")]
    key, remarks = outcome
    if key is not None:
        remarks = (*remarks, *(keys.hash_table(str(table)) for table in tables if table is not None))
    elif beside:
        remarks = (Remark("changed", setting, _WITHOUT_KEY, "Nothing to do."),)
    return backend.finding(line, (key, remarks), spec)


_WITHOUT_KEY = (
    "It is for requests without a session key. Envoy picks two members for each of them at random, and takes the one "
    "with less to do."
)


def _not_in_tcp(setting: str) -> keys.Outcome:
    reason = "The section is in TCP mode, in which HAProxy and Envoy see no headers and no cookies."
    return None, (Remark("lost", setting, reason, "If the application speaks HTTP, say 'mode http' and import again."),)


def _condition(setting: str) -> Remark:
    reason = "A session key has no condition: a request that carries it goes to its slot."
    return Remark("lost", setting, reason, "If some requests must go elsewhere, route them before the front Envoys.")


def _prefix(setting: str, name: str) -> Remark:
    reason = (
        f"{_PROXY} puts the server's name and '~' before the value of {name}, and takes it away again. Envoy does not, "
        "so the application gets the whole value from clients that have such a cookie."
    )
    remedy = "Let the application cut off what stands before '~', until these cookies have ended."
    return Remark("changed", setting, reason, remedy)


def _rewritten(setting: str, name: str) -> Remark:
    reason = f"{_PROXY} expects the application to set the cookie {name} for it, and writes the server into it."
    return Remark(
        "check", setting, reason, f"The application need not set {name} any more, if it does so only for this."
    )
