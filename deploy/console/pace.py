"""When the next frame of a pool may be built. Pure: every time is an argument, in seconds of a monotonic clock.

Building the frame of a large pool takes long, and may take only a share of one core. At rest half of that share is
saved, so that a claim after a quiet while is shown at once.
"""

SHARE_OF_TIME = 0.2
"""The share of time that building frames may take."""
LEAST_INTERVAL = 0.25
"""Seconds between two frames at least."""
REFRESH_SECONDS = 1.0
"""Seconds between two frames at rest, at least: heartbeats and intents that end by themselves are not in etcd."""
SAVED_MOST = 1.0
"""Seconds of building that can be saved up."""
LONGEST_PAUSE = 2.0
"""Seconds between two frames at most if something changes, even if they then take more than their share."""
LONGEST_REFRESH = 5.0
"""Seconds between two frames at rest, at most."""


class Pace:
    """How much time for building is left; some may be owed. Frames for pages that are loaded count too."""

    def __init__(self) -> None:
        self.took = 0.0
        self._saved = SAVED_MOST
        self._at: float | None = None

    def built(self, now: float, took: float) -> None:
        """A frame that took so many seconds is finished."""
        earned = 0.0 if self._at is None else (now - self._at) * SHARE_OF_TIME
        owed_most = LONGEST_PAUSE * SHARE_OF_TIME
        self._saved = max(min(self._saved + earned, SAVED_MOST) - took, -owed_most)
        self._at, self.took = now, took

    @property
    def pause(self) -> float:
        """Seconds from the last frame to the next one, if something has changed."""
        return max(LEAST_INTERVAL, -self._saved / SHARE_OF_TIME)

    @property
    def refresh(self) -> float:
        """Seconds from the last frame to the next one, if nothing is known to have changed."""
        return min(max(REFRESH_SECONDS, 2 * self.took / SHARE_OF_TIME), LONGEST_REFRESH)
