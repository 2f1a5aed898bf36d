"""The pauses of a loop that tries again."""


class Backoff:
    """Pauses between retries: each is twice as long as the one before, from ``first`` up to ``longest`` seconds."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = self._pause = first
        self._longest = longest

    def next(self) -> float:
        """The pause to make now, in seconds."""
        pause = self._pause
        self._pause = min(pause * 2, self._longest)
        return pause

    def reset(self) -> None:
        """Start with the shortest pause again, since a try has succeeded."""
        self._pause = self._first
