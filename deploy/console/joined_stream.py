"""The one stream of a browser: the events of all pools that its tabs show, over one connection.

Browsers open at most six connections to a server that speaks HTTP/1.1. A stream for each pool would keep them all busy,
and the next page would never load. Each event names its pool. If the feed of one pool ends, the stream ends, and the
browser connects again by itself.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence

import msgspec

from understudy.deploy.console.feed import PoolFeed
from understudy.deploy.console.subscribers import Subscriber

PING_SECONDS = 5.0


async def joined(
    feeds: Sequence[PoolFeed], known: Collection[str], gone: Mapping[str, str]
) -> AsyncGenerator[bytes, None]:
    """The events of these pools; of each first a whole frame, unless the browser has it: its id is ``known``.

    ``gone``: the pools that the browser asked for and does not get, with the reasons.
    """
    wake = asyncio.Event()
    with contextlib.ExitStack() as subscriptions:
        followed = [(feed, subscriptions.enter_context(feed.subscribed(wake))) for feed in feeds]
        await asyncio.gather(*(feed.frame() for feed in feeds))
        for feed, one in followed:
            one.needs_frame = feed.event_id not in known
        yield b"retry: 1000\n\n"
        for pool, detail in gone.items():
            yield _unnumbered("gone", {"pool": pool, "detail": detail})
        ping_at = time.monotonic()
        while not any(one.closed for _, one in followed):
            for feed, one in followed:
                for text in _waiting(feed, one):
                    yield text
            if time.monotonic() >= ping_at:
                ping_at = time.monotonic() + PING_SECONDS
                yield _unnumbered("ping", {"silent_seconds": {feed.pool: feed.silent_seconds for feed in feeds}})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(ping_at - time.monotonic(), 0)):
                    await wake.wait()
            wake.clear()


def _waiting(feed: PoolFeed, one: Subscriber) -> list[bytes]:
    """What waits for the browser of one pool."""
    feed.used_at = time.monotonic()
    found = []
    if one.needs_frame:
        one.needs_frame = False
        found.append(feed.whole().text)
    while (event := one.take()) is not None:
        found.append(event.text)
    return found


def _unnumbered(kind: str, data: Mapping[str, object]) -> bytes:
    """An event without an id. A ``ping`` is the sign of life: it says for how long the etcd of each pool was silent."""
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
