"""What was acknowledged and is not there, and whether that may be. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from tests.replicas.load import Ack

MARGIN = 1.5
"""Seconds that a checkpoint may take on a busy machine."""


def missing(acks: Iterable[Ack], contents: Mapping[str, Collection[int]]) -> list[Ack]:
    """The acknowledged writes that their session does not have."""
    return [ack for ack in acks if ack.number not in contents.get(ack.session, ())]


def went_back(acks: Iterable[Ack]) -> list[tuple[Ack, Ack]]:
    """Two acknowledged writes, one after the other, of which the later one has no newer version."""
    last: dict[str, Ack] = {}
    found = []
    for ack in sorted(acks, key=lambda ack: (ack.session, ack.number)):
        if ack.version is None:
            continue
        before = last.get(ack.session)
        if before is not None and before.version is not None and ack.version <= before.version:
            found.append((before, ack))
        last[ack.session] = ack
    return found


def wrongly_lost(
    acks: Sequence[Ack],
    contents: Mapping[str, Collection[int]],
    *,
    died: float,
    checkpoint: float,
    lossy: Collection[int],
) -> list[str]:
    """Why each missing write should be there, after all members died at ``died``; ``lossy`` slots count a new loss.

    A ``replicas`` write may be missing if it is younger than the checkpoint and its slot counts the loss. The writes
    of a session are saved together, so one that a later saved write followed may not be missing.
    """
    newest: dict[str, int] = defaultdict(lambda: -1)
    for session, numbers in contents.items():
        newest[session] = max(numbers, default=-1)
    found = []
    for ack in missing(acks, contents):
        what = f"{ack.durability} write {ack.number} of {ack.session}"
        if ack.durability == "sync":
            found.append(f"{what}: it was committed")
        elif ack.end < died - checkpoint - MARGIN:
            found.append(f"{what}: acknowledged {died - ack.end:.1f} s before the end")
        elif ack.number < newest[ack.session]:
            found.append(f"{what}: a later one is there")
        elif ack.slot not in lossy:
            found.append(f"{what}: slot {ack.slot} counts no loss")
    return found
