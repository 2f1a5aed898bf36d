"""What a member has done since its start, for its status and its metrics."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Counters that only rise.

    ``takeovers`` counts claims after which slots of another member's process were served here, ``taken_over`` their
    slots. ``given`` and ``received`` are handovers that happened, ``refused`` those that this member, as the owner,
    could not carry out. ``checked`` counts slots compared with etcd, ``resyncs`` copies made again.
    ``expired`` counts writes refused because their request began too long ago.
    ``refused_new`` and ``refused_writes`` are writes not taken in because commits lagged: those that would have begun a
    session, and others. ``over_quota`` are writes beyond a limit of the pool, by the kind of the problem.
    """

    takeovers: int = 0
    taken_over: int = 0
    given: int = 0
    received: int = 0
    refused: int = 0
    checked: int = 0
    resyncs: int = 0
    refused_new: int = 0
    refused_writes: int = 0
    expired: int = 0
    over_quota: Counter[str] = field(default_factory=Counter)
