"""Asks a member through etcd whether it lives.

While the link between two sites is cut, each side hears nothing of the other, and etcd may reach both. So silence
across sites proves less than silence within one. Before it counts, the member is asked through etcd: the asker writes a
*challenge* under a key of the member, and the member replaces it with its boot id. That needs a process that runs, and
that reaches etcd: such a member can still serve.

This is the indirect probe of SWIM (Das, Gupta, Motivala, DSN 2002, section 3.1), with etcd in place of other members.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from understudy.statesync.etcd.client import EtcdClient, EtcdError, Event, Kv
from understudy.statesync.etcd.key_range import KeyRange
from understudy.statesync.pool.keys import PoolKeys
from understudy.telemetry.timing.backoff import Backoff

logger = logging.getLogger(__name__)

T = TypeVar("T")

Challenge = Callable[[str, str, float], Coroutine[Any, Any, "Answer"]]
"""Asks a boot of a member through etcd, for so many seconds at the most: :meth:`Challenger.ask`."""

HEAD_START = 0.1
"""Seconds for which a direct probe runs alone: mostly it is answered, or refused, within milliseconds."""
ANSWER_LASTS = 1.0
"""Seconds for which an answer counts, so that many callers who miss one member do not ask it again and again."""
STEADY_FOR = 5.0
"""Seconds for which another process of the same site must have answered, or sent beats, without a gap: only then the
link to the site counts as whole."""
SLOW_ETCD = 3.0
"""How many times as long as etcd took for the question the answer may take on top: it takes the member's watch, its
write and a read here."""
_POLL_FIRST, _POLL_LONGEST = 0.01, 0.1


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of a member's key: a question, or the answer with the ``boot`` id of the process that gave it."""

    boot: str = ""

    @property
    def answered(self) -> bool:
        """Whether it is an answer."""
        return bool(self.boot)


class Answer(StrEnum):
    """What a challenge has shown."""

    ALIVE = "it answers through etcd"
    REPLACED = "another process answers through etcd"
    SILENT = "no answer through etcd"
    UNKNOWN = "etcd did not answer"


class Challenger:
    """Asks members of a pool through etcd."""

    def __init__(self, etcd: EtcdClient, keys: PoolKeys) -> None:
        self._etcd = etcd
        self._keys = keys
        self._answers: dict[str, tuple[str, float]] = {}

    async def ask(self, member: str, boot: str, patience: float) -> Answer:
        """Whether ``boot`` of ``member`` lives.

        It has ``patience`` seconds from when the question is in etcd, and more while etcd is slow.
        """
        who, at = self._answers.get(member, ("", 0.0))
        if who != boot or time.monotonic() - at >= ANSWER_LASTS:
            try:
                who = await self._challenge(member, patience)
            except EtcdError as error:
                logger.info("%s could not be asked through etcd: %s", member, error)
                return Answer.UNKNOWN
        if not who:
            return Answer.SILENT
        return Answer.ALIVE if who == boot else Answer.REPLACED

    async def _challenge(self, member: str, patience: float) -> str:
        """Write a challenge and wait for the answer: the boot id that answered, '' if none did."""
        key, polls = self._keys.challenge(member), Backoff(_POLL_FIRST, _POLL_LONGEST)
        began = time.monotonic()
        asked = await self._etcd.put(key, msgspec.json.encode(Said()), timeout=patience)
        now = time.monotonic()
        give_up = now + patience + SLOW_ETCD * (now - began)
        while True:
            await asyncio.sleep(polls.next())
            late = time.monotonic() >= give_up
            found = await self._etcd.get(key, timeout=patience)
            said = challenge_in(found)
            if found is not None and found.mod_revision > asked and said.answered:
                self._answers[member] = said.boot, time.monotonic()
                return said.boot
            if late:
                return ""


class ChallengeAnswers:
    """Answers the challenges to this member. Its watch brings them to :meth:`heard`."""

    def __init__(self, etcd: EtcdClient, keys: PoolKeys, member: str, boot: str) -> None:
        self._etcd = etcd
        self._key = keys.challenge(member)
        self._answer = msgspec.json.encode(Said(boot))
        self._asked = asyncio.Event()

    @property
    def watched(self) -> KeyRange:
        """What :meth:`heard` must be told the changes of."""
        return KeyRange(self._key, self._key + "\0")

    def heard(self, events: Iterable[Event]) -> None:
        """Take in changes in etcd; those of other keys make no difference."""
        for event in events:
            if event.kv.key == self._key and event.kind == "put" and not challenge_in(event.kv).answered:
                self._asked.set()

    async def run(self) -> None:
        """Answer until cancelled. One answer serves all who have asked before it."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._etcd.put(self._key, self._answer)
            except EtcdError as error:
                logger.info("a challenge could not be answered: %s", error)


def challenge_in(kv: Kv | None) -> Said:
    """The challenge that a key holds. What is not one counts as a question, so that it is replaced by an answer."""
    if kv is None:
        return Said()
    try:
        return msgspec.json.decode(kv.value, type=Said)
    except msgspec.DecodeError:
        return Said()


async def cannot_ask(_member: str, _boot: str, _seconds: float) -> Answer:
    """A :data:`Challenge` of who has no etcd: nobody whose whole site is silent is ever proven dead."""
    return Answer.UNKNOWN


async def probe_both_ways(
    direct: Coroutine[Any, Any, T],
    ask: Callable[[], Coroutine[Any, Any, Answer]],
    is_silence: Callable[[T], bool],
) -> tuple[T, Answer | None]:
    """The result of a direct probe, and what the member says through etcd if that result ``is_silence``.

    Both run side by side: ``ask`` begins when the direct probe has gone unanswered for :data:`HEAD_START`, or has
    ended in silence.
    """
    probing, asking = asyncio.create_task(direct), None
    try:
        await asyncio.wait((probing,), timeout=HEAD_START)
        if not probing.done() or is_silence(probing.result()):
            asking = asyncio.create_task(ask())
        found = await probing
        return found, await asking if asking is not None and is_silence(found) else None
    finally:
        for task in (probing, asking):
            if task is not None:
                task.cancel()
