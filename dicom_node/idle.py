"""Associations that nobody uses now, kept open for a while and then released."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from threading import Lock, Thread

from pynetdicom.association import Association

#: Seconds between two looks for associations whose time is over.
_LOOK = 0.5


class Idle:
    """Kept associations by what they are good for. Safe for threads; one thread looks after them while there are any.

    `clock` gives seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._kept: defaultdict[object, list[tuple[Association, float]]] = defaultdict(list)
        self._watched = False

    def keep(self, key: object, association: Association, seconds: float) -> None:
        """Put an association aside until somebody takes it, for so long at most."""
        with self._lock:
            self._kept[key].append((association, self._clock() + seconds))
            if not self._watched:
                self._watched = True
                Thread(target=self._watch, name="idle associations", daemon=True).start()

    def take(self, key: object) -> Association | None:
        """The one used last, if the peer has not closed it."""
        with self._lock:
            kept = self._kept.get(key, [])
            while kept:
                association, _ = kept.pop()
                if association.is_established:
                    return association
        return None

    def close(self) -> None:
        """Release all of them."""
        self._release_until(float("inf"))

    def _watch(self) -> None:
        while self._watched:
            time.sleep(_LOOK)
            self._release_until(self._clock())

    def _release_until(self, moment: float) -> None:
        with self._lock:
            over = [association for kept in self._kept.values() for association, until in kept if until <= moment]
            rest = {key: [one for one in kept if one[1] > moment] for key, kept in self._kept.items()}
            self._kept = defaultdict(list, {key: kept for key, kept in rest.items() if kept})
            self._watched = bool(self._kept)
        for association in over:
            release(association)


def release(association: Association) -> None:
    """End an association, if the peer has not done so."""
    if association.is_established:
        association.release()
