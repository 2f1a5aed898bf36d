"""Versions of a slot's writes, and where two histories of a slot part. Pure.

A version is the epoch of the owner record under which a write was decided, and the number of the write in this epoch,
as one integer: so versions are compared as numbers. A history has the last version of every epoch in which there were
writes, oldest first. One active alone numbers the writes of an epoch, so two histories are equal up to the smaller
version of an epoch that both have. Where they part is found by epochs and not by lengths (KIP-101).
"""

INDEX_BITS = 40
"""Bits of a version for the number of the write. 24 of the 64 that messages can have are left for the epoch."""
EPOCHS_KEPT = 16
"""A copy that has followed none of the last epochs with writes is made anew."""

History = tuple[int, ...]


def version_of(epoch: int, index: int) -> int:
    """The version of the write number ``index`` (from 1) of ``epoch``."""
    return epoch << INDEX_BITS | index


def epoch_of(version: int) -> int:
    """The epoch in which a version was written; 0 for those of releases without epochs in versions."""
    return version >> INDEX_BITS


def as_text(version: int) -> str:
    """A version for people and for ETags: epoch and number, with a dot between them."""
    return f"{epoch_of(version)}.{version & (1 << INDEX_BITS) - 1}"


def begun(epoch: int) -> History:
    """The history of an active that took the sessions from etcd: nobody else has any of it."""
    return (version_of(epoch, 0),)


def last_of(history: History) -> int:
    """The last version of a history; 0 if it is empty."""
    return history[-1] if history else 0


def extended(history: History, version: int) -> History:
    """The history after the write of ``version``, which follows its last one."""
    before = history[:-1] if history and epoch_of(history[-1]) == epoch_of(version) else history
    return (*before[-EPOCHS_KEPT + 1 :], version)


def cut(history: History, version: int) -> History:
    """The history up to ``version``, which is one of its own."""
    earlier = tuple(end for end in history if epoch_of(end) < epoch_of(version))
    return (*earlier, version) if version else ()


def common(one: History, other: History) -> int:
    """The last version up to which two histories are the same; 0 if they have nothing in common."""
    ends = {epoch_of(end): end for end in other}
    for end in reversed(one):
        if epoch_of(end) in ends:
            return min(end, ends[epoch_of(end)])
    return 0
