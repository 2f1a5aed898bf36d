"""Looks for two writers of one slot, by the versions of the writes that clients saw acknowledged. Pure.

A version has two numbers, ``epoch.number``. Only one process ever has a slot with an epoch, and a new owner has a
higher one. So a write of an old epoch that began after a write of a newer epoch was answered had a second writer.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

from understudy.deploy.load.history_checker import Op
from understudy.statesync.pool.slots import slot_of


def second_writers(history: Sequence[Op], slots: int) -> int | None:
    """How many acknowledged writes came from a second writer; None if the answers have no versions."""
    by_slot: dict[int, list[tuple[float, float, int]]] = defaultdict(list)
    for op in history:
        if op.kind == "write" and op.succeeded and op.version:
            by_slot[slot_of(op.session, slots)].append((op.started, op.ended, _epoch(op.version)))
    return sum(map(_overtaken, by_slot.values())) if by_slot else None


def _overtaken(writes: Sequence[tuple[float, float, int]]) -> int:
    """How many of (start, end, epoch) began after one of a higher epoch had ended."""
    in_order = sorted((ended, epoch) for _, ended, epoch in writes)
    ends = [ended for ended, _ in in_order]
    newest = [0, *accumulate((epoch for _, epoch in in_order), max)]
    return sum(epoch < newest[bisect_right(ends, started)] for started, _, epoch in writes)


def _epoch(version: str) -> int:
    """The epoch of an entity tag such as ``"5.17"``; 0 for anything else."""
    first, dot, _ = version.strip('"').partition(".")
    return int(first) if dot and first.isascii() and first.isdigit() else 0
