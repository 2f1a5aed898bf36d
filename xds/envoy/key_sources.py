"""Where a request has its session key: what routes match, and how Envoy hashes it. Pure.

Part of :mod:`understudy.xds.envoy.routes`, which makes the routes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.statesync.pool.cookie_pattern import header_regex
from understudy.statesync.pool.session_key import SessionKey
from understudy.xds.envoy.messages import (
    CookieMatcher,
    HeaderMatcher,
    RegexMatchAndSubstitute,
    RegexMatcher,
    RouteActionHashPolicy,
    RouteActionHashPolicyCookie,
    RouteActionHashPolicyHeader,
    StringMatcher,
)


@dataclass(frozen=True, slots=True)
class KeySource:
    """Requests that have their session key in the same place, or have none.

    ``name`` is that of their routes; ``headers`` and ``cookies`` are what they match; ``policies`` hash them, and
    without any they go to any member. ``sets``: the cookie that Envoy sets in the answers. ``version``: the version of
    the application that answers; '' for any. ``marks``: the whole cookie that tells the client this version, if it is
    to be told. ``refused``: Envoy refuses them itself, since no member can serve their version.
    """

    name: str
    headers: tuple[HeaderMatcher, ...] = ()
    cookies: tuple[CookieMatcher, ...] = ()
    policies: tuple[RouteActionHashPolicy, ...] = ()
    sets: str = ""
    version: str = ""
    marks: str = ""
    refused: bool = False


def key_sources(session_key: Sequence[SessionKey]) -> list[KeySource]:
    """The groups of requests, in the order in which routes must try them.

    A hash policy goes on to the next source if its header or cookie is absent. With a pattern it would not: it hashes
    the whole ``cookie`` header where the pattern does not match. So a request is hashed by a pattern only in a route
    that it has matched; sources before it in the spec that have no pattern come first there too.
    """
    groups: list[KeySource] = []
    policies: tuple[RouteActionHashPolicy, ...] = ()
    for source in session_key:
        if source.cookie and source.pattern:
            regex = RegexMatcher(regex=header_regex(source.cookie, source.pattern))
            matched = HeaderMatcher(name="cookie", string_match=StringMatcher(safe_regex=regex))
            rewritten = RouteActionHashPolicyHeader(
                header_name="cookie", regex_rewrite=RegexMatchAndSubstitute(pattern=regex, substitution=r"\1")
            )
            by_pattern = RouteActionHashPolicy(header=rewritten, terminal=True)
            groups.append(KeySource(f"keyed/{source.cookie}", (matched,), policies=(*policies, by_pattern)))
        else:
            policies = (*policies, _hash_policy(source))
    headers, cookies = _keyless(session_key)
    generated = next((source.cookie for source in session_key if source.cookie and source.generated), "")
    groups.append(KeySource("keyless", headers, cookies, sets=generated))
    return [*groups, KeySource("keyed", policies=policies)] if policies else groups


def _keyless(session_key: Sequence[SessionKey]) -> tuple[tuple[HeaderMatcher, ...], tuple[CookieMatcher, ...]]:
    """What a request without any session key matches, behind the routes of patterns.

    A header counts as present even if empty, a cookie only with a value: that is when Envoy's hash policy
    finds one.
    """
    headers = tuple(
        HeaderMatcher(name=source.header.lower(), present_match=True, invert_match=True)
        for source in session_key
        if source.header
    )
    some_value = StringMatcher(safe_regex=RegexMatcher(regex=".+"))
    cookies = tuple(
        CookieMatcher(name=source.cookie, string_match=some_value, invert_match=True)
        for source in session_key
        if source.cookie and not source.pattern
    )
    return headers, cookies


def _hash_policy(source: SessionKey) -> RouteActionHashPolicy:
    """The policy of a source without a pattern. It is terminal, so that the first source present decides alone."""
    return RouteActionHashPolicy(
        header=RouteActionHashPolicyHeader(header_name=source.header.lower()) if source.header else None,
        cookie=RouteActionHashPolicyCookie(name=source.cookie) if source.cookie else None,
        terminal=True,
    )
