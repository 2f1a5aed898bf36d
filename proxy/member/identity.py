"""Which process of which member of which pool this is."""

from dataclasses import dataclass

from understudy.statesync.pool.keys import PoolKeys


@dataclass(frozen=True, slots=True)
class MemberIdentity:
    """``me`` is the member's name, ``boot`` tells its processes apart, ``site`` is its site ('' for none).

    ``app_version`` is the version of its application ('' if not known).
    """

    me: str
    boot: str
    keys: PoolKeys
    site: str = ""
    app_version: str = ""
