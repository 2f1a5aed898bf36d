"""Takeovers that belong together because a whole site was lost. Each still has a trace of its own. Pure.

A site counts as lost if it has two members or more, and there was a takeover from each of them within :data:`TOGETHER`.
The death of the only member of a site says nothing about the site. A member without slots has no takeover, so the loss
of a site with such a member is not named: rather none than a wrong one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

TOGETHER = 15.0
"""Seconds within which the members of a site must have been taken over from."""


def lost_sites(rows: Sequence[Mapping[str, Any]], sites: Mapping[str, str]) -> list[str]:
    """For each change of active the site that was lost with it, '' for none.

    Args:
        rows: the changes, as ``understudy failovers -o json`` has them.
        sites: the site of each registered member; '' is no site.
    """
    members: dict[str, set[str]] = defaultdict(set)
    for member, site in sites.items():
        members[site].add(member)
    found = [""] * len(rows)
    for site, wanted in members.items():
        if not site or len(members) < 2 or len(wanted) < 2:
            continue
        mine = [at for at, row in enumerate(rows) if row["kind"] == "takeover" and wanted & set(row["from"])]
        for at in mine:
            near = [other for other in mine if abs(rows[other]["started"] - rows[at]["started"]) <= TOGETHER]
            if wanted <= {member for other in near for member in rows[other]["from"]}:
                found[at] = site
    return found
