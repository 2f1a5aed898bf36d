"""Finds names in a snapshot that no resource has. A change that adds such a name is refused."""

from understudy.xds.server import types
from understudy.xds.server.snapshot import Snapshot


def new_problems(snapshot: Snapshot, before: Snapshot, known: frozenset[str]) -> dict[tuple[str, str], str]:
    """Missing names in a snapshot that were not missing before. Endpoints point at nothing, so they are left out."""
    kinds = snapshot.types.keys() | before.types.keys()
    if all(kind == types.ENDPOINTS or snapshot.of(kind) is before.of(kind) for kind in kinds):
        gone = snapshot.of(types.ENDPOINTS).since(before.of(types.ENDPOINTS)).removed
        if not gone:
            return {}
    found = dangling(snapshot, known)
    if not found:
        return {}
    old = dangling(Snapshot({kind: before.of(kind) for kind in snapshot.types}), known)
    return {where: why for where, why in found.items() if where not in old}


def dangling(snapshot: Snapshot, known: frozenset[str]) -> dict[tuple[str, str], str]:
    """The missing names in a snapshot: (type, resource) -> the names that it points at and that do not exist.

    ``known`` are names that the nodes have from elsewhere, such as static clusters of their bootstrap. A type of
    which nothing was ever set is left out, since its resources may come from elsewhere too.
    """
    found = {}
    for type_url, one in snapshot.types.items():
        for target in (types.CLUSTER, types.ROUTES, types.ENDPOINTS):
            held = snapshot.types.get(target)
            if held is None:
                continue
            for name, resource in one.resources.items():
                # One by one: the difference of a set and a dict's keys would loop over all keys of the dict.
                missing = {aim for aim in resource.points_at.of_type(target) if aim not in held.resources} - known
                if missing:
                    what = ", ".join(sorted(missing)[:5])
                    found[type_url, name] = f"points at {types.short_name(target)} resource {what}, which is not there"
    return found
