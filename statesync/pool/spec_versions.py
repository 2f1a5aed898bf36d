"""The part of the spec for pools whose members run several versions of the application at once (blue/green).

Pure. Part of :mod:`understudy.statesync.pool.spec`; docs/recipes.md shows how it is used.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

VERSION_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
VersionName = Annotated[str, Field(pattern=VERSION_PATTERN)]
"""A version of the application, as sidecars name it (``--app-version``): a value that a Kubernetes label may have."""


class Versions(BaseModel):
    """Sessions stay on the version that they began on; new sessions begin on ``new_sessions``.

    Front Envoys mark a session's version in a cookie (:func:`version_cookie`). ``unmarked``: the version of requests
    with a session key and without this cookie; if it is not given, members of any version answer them. ``when_gone``:
    what becomes of the sessions of a version that no member can serve any more: their requests are refused with 503, or
    they move to the version of new sessions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    new_sessions: VersionName
    unmarked: VersionName | None = None
    when_gone: Literal["refuse", "move"] = "refuse"


def version_cookie(pool: str) -> str:
    """The name of the cookie that tells the version of a client's session. Pools on one host have different ones."""
    return f"understudy-version-{pool}"
