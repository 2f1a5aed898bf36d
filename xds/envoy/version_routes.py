"""Which members answer for the sessions of each version of the application (``versions`` in the spec). Pure.

A session's slot decides which member has it; its version decides which members answer its requests. The two need not
be the same member: an application calls its own sidecar, which asks the slot's active. So a version needs no slots of
its own, and slots move as always.

The version of a session is in a cookie that Envoy sets in the answer to a request without a session key
(:func:`understudy.statesync.pool.spec_versions.version_cookie`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from understudy.statesync.pool.spec_versions import Versions, version_cookie
from understudy.xds.envoy.key_sources import KeySource
from understudy.xds.envoy.messages import CookieMatcher, RegexMatcher, StringMatcher
from understudy.xds.envoy.routing_view import RoutingView

MARK_SECONDS = 400 * 86_400
"""How long a client keeps the mark; browsers keep no cookie longer. Without a session key it means nothing."""


@dataclass(frozen=True, slots=True)
class Marks:
    """How routes tell versions. Hashable.

    ``cookie``: the cookie with the mark. ``serving``: the versions that some member can serve. ``new``: that of new
    sessions; '' if members of any version take them. ``unmarked``: that of sessions without a mark; None for any.
    ``moves``: sessions of a version that nobody can serve move to that of new sessions; otherwise they are refused.
    """

    cookie: str
    serving: tuple[str, ...]
    new: str
    unmarked: str | None
    moves: bool


def marks_of(view: RoutingView) -> Marks | None:
    """The marks of a pool with ``versions`` in its spec; None for others, and while nobody can serve anything."""
    wanted = view.spec.versions
    if wanted is None or view.versions is None or not view.versions.serving:
        return None
    named = tuple(sorted(version for version in view.versions.serving if version))
    return Marks(
        version_cookie(view.spec.pool), named, _new(wanted, named), wanted.unmarked, wanted.when_gone == "move"
    )


def _new(wanted: Versions, named: Sequence[str]) -> str:
    """The version of new sessions. If nobody can serve the wanted one, another one is better than none."""
    preferred = [wanted.new_sessions, *([wanted.unmarked] if wanted.unmarked else []), *named]
    return next((version for version in preferred if version in named), "")


def order_for(view: RoutingView, version: str, slot: int) -> tuple[str, ...]:
    """The members that answer for the sessions of a version in a slot, in the order in which Envoy tries them.

    First are the version's members in the slot's order, then its others, by turns, up to the number of copies. If one
    member is all that is left of the version, and its sessions move when it is gone, members of the version of new
    sessions come after it: a request that does not reach it need not wait until its death is known.
    """
    spec, versions = view.spec, view.versions
    if versions is None or spec.versions is None:
        raise ValueError(f"pool {spec.pool!r} has no versions")
    order = _first(view, version, slot)[: spec.copies]
    new = spec.versions.new_sessions
    if spec.versions.when_gone == "move" and versions.serving.get(version) == 1 and version != new:
        order += _first(view, new, slot)[: spec.copies - 1]
    return order


def _first(view: RoutingView, version: str, slot: int) -> tuple[str, ...]:
    of = view.versions.of if view.versions else {}
    placed = view.orders[slot] if view.orders else ()
    own = [member for member in placed if of.get(member) == version and member in view.members]
    others = [member for member in sorted(view.members) if of.get(member) == version and member not in own]
    start = slot % len(others) if others else 0
    return (*own, *others[start:], *others[:start])


def by_version(sources: Sequence[KeySource], marks: Marks) -> list[KeySource]:
    """The groups of requests, divided by the version of their session. The order is that in which routes try them."""
    divided: list[KeySource] = []
    for source in sources:
        if source.policies:
            divided += _divided(source, marks)
        else:
            divided.append(replace(source, version=marks.new, marks=_mark(marks)))
    return divided


def _divided(source: KeySource, marks: Marks) -> list[KeySource]:
    marked = [
        replace(
            source,
            name=f"{source.name}/{version}",
            cookies=(*source.cookies, CookieMatcher(name=marks.cookie, string_match=StringMatcher(exact=version))),
            version=version,
        )
        for version in marks.serving
    ]
    some = StringMatcher(safe_regex=RegexMatcher(regex=".+"))
    other = (*source.cookies, CookieMatcher(name=marks.cookie, string_match=some))
    gone = _without_version(replace(source, name=f"{source.name}/gone", cookies=other), marks)
    if marks.unmarked is None:
        return [*marked, gone, source]
    if marks.unmarked in marks.serving:
        return [*marked, gone, replace(source, version=marks.unmarked)]
    return [*marked, gone, _without_version(source, marks)]


def _without_version(source: KeySource, marks: Marks) -> KeySource:
    """Requests of a version that nobody can serve: refused, or moved, and then marked with their new version."""
    if marks.moves:
        return replace(source, version=marks.new, marks=_mark(marks))
    return replace(source, refused=True)


def _mark(marks: Marks) -> str:
    """The cookie that tells a client the version of its session; '' if that is not known."""
    if not marks.new:
        return ""
    return f"{marks.cookie}={marks.new}; Path=/; Max-Age={MARK_SECONDS}; HttpOnly; SameSite=Lax"
