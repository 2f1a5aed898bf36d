"""A signal between parts that do not know each other: one part gives it, others listen and react."""

from collections.abc import Callable


class Signal:
    """Calls its listeners, in the order in which they began to listen."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` at every signal from now on."""
        self._listeners.append(listener)

    def __call__(self) -> None:
        """Something has changed."""
        for listener in self._listeners:
            listener()
