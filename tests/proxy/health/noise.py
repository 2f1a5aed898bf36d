"""Memory of ordinary applications, and of those that leak, as shares of their limit once a second."""

import random
from collections.abc import Callable, Iterator

from understudy.proxy.health.forecast import Reading

LIMIT = 512 * 2**20
Series = Iterator[tuple[float, str]]
"""The used share in each second, and the process that uses it."""


def saw_tooth(rng: random.Random, *, low: float, high: float, period: float, noise: float) -> Series:
    """A garbage collector: memory rises, and falls when it has collected. Each turn is a little different."""
    share, top, bottom = low, high, low
    while True:
        share += (top - bottom) / period + rng.gauss(0, noise)
        if share >= top:
            top, bottom = high + rng.gauss(0, noise * 3), low + rng.gauss(0, noise * 3)
            share = bottom
        yield min(max(share, 0.01), 0.99), "one"


def steps(rng: random.Random, *, high: float, noise: float) -> Series:
    """Levels that change at once and stay for a while: caches that are loaded, batches that run."""
    level, rest = rng.uniform(0.1, high), 0
    while True:
        if rest <= 0:
            level, rest = rng.uniform(0.1, high), rng.randint(5, 120)
        rest -= 1
        yield min(max(level + rng.gauss(0, noise), 0.01), 0.99), "one"


def plateau(rng: random.Random, *, level: float, warm_up: float, noise: float) -> Series:
    """A runtime that fills its heap once and then keeps it."""
    share = 0.05
    while True:
        share += (level - share) / warm_up * 3
        yield min(max(share + rng.gauss(0, noise), 0.01), 0.99), "one"


def walk(rng: random.Random, *, high: float, noise: float) -> Series:
    """Load that comes and goes."""
    share = high / 2
    while True:
        share += rng.gauss(0, noise) + (high / 2 - share) * 0.01
        share = min(max(share, 0.05), high)
        yield share, "one"


def restarted_leak(_: random.Random, *, slope: float, top: float) -> Series:
    """A slow leak in a process that is restarted before it matters."""
    number, share = 0, 0.1
    while True:
        share += slope
        if share >= top:
            number, share = number + 1, 0.1
        yield share, f"process {number}"


def leak(rng: random.Random, *, start: float, slope: float, noise: float, every: int = 1) -> Series:
    """Memory that is never given back, taken in pieces every so many seconds."""
    share, second = start, 0
    while True:
        second += 1
        share += slope * every if second % every == 0 else 0.0
        yield share + rng.gauss(0, noise), "one"


def leak_with_collector(rng: random.Random, *, slope: float, period: int) -> Series:
    """A leak beneath a saw-tooth: what the collector leaves grows."""
    second, kept = 0, 0.3
    while True:
        second += 1
        kept += slope
        yield kept + 0.3 * (second % period) / period + rng.gauss(0, 0.002), "one"


ORDINARY: dict[str, Callable[[random.Random], Series]] = {
    "collector": lambda rng: saw_tooth(
        rng, low=rng.uniform(0.1, 0.6), high=rng.uniform(0.6, 0.88), period=rng.uniform(3, 70), noise=0.004
    ),
    "slow collector": lambda rng: saw_tooth(rng, low=0.4, high=0.85, period=rng.uniform(200, 900), noise=0.002),
    "steps": lambda rng: steps(rng, high=0.93, noise=0.005),
    "full heap": lambda rng: plateau(rng, level=rng.uniform(0.6, 0.94), warm_up=rng.uniform(5, 400), noise=0.003),
    "load": lambda rng: walk(rng, high=rng.uniform(0.5, 0.9), noise=0.01),
    "restarts": lambda rng: restarted_leak(rng, slope=rng.uniform(0.0005, 0.004), top=0.78),
}


def reading(share: float, source: str) -> Reading:
    """A share as a reading."""
    return Reading("memory", share * LIMIT, LIMIT, source)
