"""The browsers that follow a pool: each has a bounded queue of events, which are encoded once for all of them.

A browser that does not read fast enough loses its queue and gets a whole frame instead, which has everything. Pure but
for the event that wakes the stream.
"""

import asyncio
from collections import deque

import msgspec

QUEUE_MOST = 16
"""Events that wait for one browser at the most: four seconds of changes."""


class StreamEvent(msgspec.Struct, frozen=True):
    """An event of a stream, as text of the protocol (server-sent events)."""

    id: str
    text: bytes


def encoded(kind: str, event_id: str, data: object) -> StreamEvent:
    """An event with JSON data. The JSON has no line breaks, so it is one ``data`` line."""
    head = f"event: {kind}\nid: {event_id}\ndata: ".encode()
    return StreamEvent(event_id, b"".join((head, msgspec.json.encode(data), b"\n\n")))


class Subscriber:
    """One browser. ``needs_frame``: it must get a whole frame before any change. ``wake`` is set when it has events."""

    def __init__(self, wake: asyncio.Event) -> None:
        self.needs_frame = True
        self.closed = False
        self._queue: deque[StreamEvent] = deque()
        self._wake = wake

    def offer(self, event: StreamEvent) -> None:
        """Queue an event, or drop the queue for a whole frame if it is full."""
        if self.needs_frame:
            self._wake.set()
            return
        if len(self._queue) >= QUEUE_MOST:
            self._queue.clear()
            self.needs_frame = True
        else:
            self._queue.append(event)
        self._wake.set()

    def take(self) -> StreamEvent | None:
        """The next event, if one waits."""
        return self._queue.popleft() if self._queue else None

    def close(self) -> None:
        """End the stream."""
        self.closed = True
        self._wake.set()
