"""Does this worker still take what the broker has for it? One that does not is ended, and started again by others.

A consumer can stall while its process looks alive (celery issues 7800, 10205). So every worker has a queue of its own,
to which it sends itself a beat; one that is not heard in time, while the broker takes new ones and no task runs, tells
that the consumer has stalled. A task that never ends tells as much.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Watchdog:
    """What is known of one worker's consumer; told by Celery's signals, asked by a thread.

    Attributes:
        patience: seconds that a beat may go unheard.
        longest_task: seconds that one task may take.
    """

    patience: float
    longest_task: float
    clock: Callable[[], float] = time.monotonic
    heard_at: float = 0.0
    _unheard_since: float | None = None
    _running: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, taken: bool) -> None:
        """A beat was sent; `taken` says whether the broker took it."""
        with self._lock:
            if not taken:
                self._unheard_since = None
            elif self._unheard_since is None:
                self._unheard_since = self.clock()

    def heard(self) -> None:
        """A beat came back."""
        with self._lock:
            self._unheard_since, self.heard_at = None, self.clock()

    def began(self, task: str = "") -> None:
        """A task runs; perhaps nothing else is taken meanwhile."""
        with self._lock:
            self._running[task] = self.clock()

    def ended(self, task: str = "") -> None:
        with self._lock:
            self._running.pop(task, None)
            self._unheard_since = None

    @property
    def busy_for(self) -> float:
        """Seconds that the longest of the running tasks has taken; 0 where none runs."""
        with self._lock:
            return self._longest()

    def _longest(self) -> float:
        return self.clock() - min(self._running.values()) if self._running else 0.0

    def complaint(self) -> str | None:
        """Why this worker is to be ended; None while all is well."""
        with self._lock:
            now = self.clock()
            if self._running:
                took = self._longest()
                return f"one task has taken {took:.0f} s (longest_task_seconds)" if took > self.longest_task else None
            if self._unheard_since is not None and now - self._unheard_since > self.patience:
                return f"alive, but took nothing from the broker for {now - self._unheard_since:.0f} s"
        return None
