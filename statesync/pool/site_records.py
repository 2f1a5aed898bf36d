"""What etcd has of a pool's sites: what a site lacks, the last switch, and the last forced take-over of etcd."""

from collections.abc import Mapping
from typing import Any

import msgspec

from understudy.statesync.parsing.stored import compact_json, read_object, typed


class DependencyDown(msgspec.Struct, frozen=True):
    """Something that a site needs is down, as an operator or a probe says; it is up when the record is deleted.

    ``since`` is wall time in seconds, and ``why`` is what they said.
    """

    since: float = 0.0
    why: str = ""

    def encode(self) -> bytes:
        """The record as compact JSON."""
        return compact_json(self)

    @classmethod
    def decode(cls, value: bytes) -> "DependencyDown":
        """Read a record; raises ``ValueError`` on anything that is not one."""
        raw = read_object(value)
        return cls(typed("since", float, raw.get("since", 0.0)), typed("why", str, raw.get("why", "")))


OFFLINE = "offline"
RESTS = "rests"


class PoolInGroup(msgspec.Struct, frozen=True):
    """What a pool says to the other pools of its group.

    Attributes:
        away: the sites that have no slots for the pool's own reasons: ``offline`` by an operator, or ``rests``. What
            the pool does because of other pools is not among them, so no pool waits for itself.
        weights: the weights of the sites in the spec.
        actives: the site of each slot's active by the slot table.
    """

    away: Mapping[str, str]
    weights: Mapping[str, int]
    actives: tuple[str, ...]

    def encode(self) -> bytes:
        """Compact JSON: each site once, and an index into them per slot."""
        sites = sorted(set(self.actives))
        index = {site: number for number, site in enumerate(sites)}
        slots = [index[site] for site in self.actives]
        return compact_json({"away": self.away, "weights": self.weights, "sites": sites, "slots": slots})

    @classmethod
    def decode(cls, value: bytes) -> "PoolInGroup":
        """Read a record; raises ``ValueError`` on anything that is not one."""
        raw = read_object(value)
        sites = typed("sites", tuple[str, ...], raw.get("sites"))
        slots = typed("slots", tuple[int, ...], raw.get("slots"))
        if not all(0 <= number < len(sites) for number in slots):
            raise ValueError("PoolInGroup: slots has positions in sites")
        away, weights = raw.get("away"), raw.get("weights")
        if not isinstance(away, dict) or not isinstance(weights, dict):
            raise ValueError("PoolInGroup: away and weights are objects")  # noqa: TRY004 - one error for all
        return cls(
            {site: typed("away", str, why) for site, why in away.items()},
            {site: typed("weights", int, weight) for site, weight in weights.items()},
            tuple(sites[number] for number in slots),
        )


class SiteSwitch(msgspec.Struct, frozen=True):
    """Which sites serve an active/standby pool, since when (wall time in seconds), and why grades moved it there.

    ``why`` is '' if another cause did, such as the loss of a site.
    """

    to: tuple[str, ...]
    at: float
    why: str = ""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "SiteSwitch":
        """A record of parsed JSON; raises ``ValueError`` on anything that is not one."""
        to = typed("to", tuple[str, ...], raw.get("to"))
        return cls(to, typed("at", float, raw.get("at")), typed("why", str, raw.get("why", "")))


class SiteTakeOver(msgspec.Struct, frozen=True):
    """A site went on alone with its member of etcd, after the majority of etcd was lost (``site take-over``).

    Members of etcd in ``removed`` (their ids) belong to the etcd of before: whatever they answer counts for nothing.
    ``generation`` counts the take-overs of the pool. ``at`` is wall time in seconds, ``why`` the operator's reason.
    """

    generation: int
    site: str
    removed: tuple[int, ...] = ()
    at: float = 0.0
    why: str = ""

    def encode(self) -> bytes:
        """The record as compact JSON. Ids have 64 bits, so they are hexadecimal text."""
        return compact_json({**msgspec.structs.asdict(self), "removed": [f"{one:x}" for one in self.removed]})

    @classmethod
    def decode(cls, value: bytes) -> "SiteTakeOver":
        """Read a record; raises ``ValueError`` on anything that is not one."""
        raw = read_object(value)
        return cls(
            typed("generation", int, raw.get("generation")),
            typed("site", str, raw.get("site", "")),
            tuple(int(one, 16) for one in typed("removed", tuple[str, ...], raw.get("removed", ()))),
            typed("at", float, raw.get("at", 0.0)),
            typed("why", str, raw.get("why", "")),
        )

    @classmethod
    def generation_in(cls, value: bytes | None) -> int:
        """The generation in a value of etcd; 0 if there is none, or it cannot be read."""
        try:
            return cls.decode(value).generation if value is not None else 0
        except ValueError:
            return 0
