"""A wall clock that a test can set for one process while it runs; its monotonic clock goes on as it is.

By Debian's libfaketime, which reads the shift from a file about once a second. ``time.sleep`` fails in such a process
(``clock_nanosleep`` up to a monotonic time is not made for this library); waiting in asyncio and on locks works.
"""

from pathlib import Path

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), Path("libfaketimeMT.so.1"))
NO_LIBRARY = "libfaketime is not installed (Debian: apt-get install libfaketime)"


class WallClock:
    """The clock of the processes that are started with ``environment``."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.shift(0)

    @property
    def environment(self) -> dict[str, str]:
        """What a process must be started with."""
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
        }

    def shift(self, seconds: float) -> None:
        """Have the clock be so many seconds ahead (or behind, if negative) within a second or two."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+.0f}\n")
        fresh.replace(self._file)
