"""Does this worker still take what the broker has for it? One that does not is ended, and started again by others.

A consumer can stall while its process looks alive (celery issues 7800, 10205). So every worker has a queue of its own,
to which it sends itself a beat; one that is not heard in time, while the broker takes new ones and a slot is free,
tells that the consumer has stalled. A task that never ends tells as much.
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
        slots: tasks that may run at a time; while all are taken, no beat can be.
    """

    patience: float
    longest_task: float
    slots: int = 1
    clock: Callable[[], float] = time.monotonic
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
            self._unheard_since = None

    def began(self, task: str) -> None:
        with self._lock:
            self._running[task] = self.clock()

    def ended(self, task: str) -> None:
        """A slot is free again, and the time of a beat counts from now."""
        with self._lock:
            self._running.pop(task, None)
            self._unheard_since = None

    @property
    def busy_for(self) -> float:
        """Seconds since the oldest running task began; 0 where none runs."""
        with self._lock:
            return max((self.clock() - since for since in self._running.values()), default=0.0)

    @property
    def full(self) -> bool:
        """Are all slots taken?"""
        return len(self._running) >= self.slots

    def complaint(self) -> str | None:
        """Why this worker is to be ended; None while all is well."""
        if (took := self.busy_for) > self.longest_task:
            return f"one task has taken {took:.0f} s (longest_task_seconds)"
        with self._lock:
            silent = 0.0 if self._unheard_since is None or self.full else self.clock() - self._unheard_since
        return f"alive, but took nothing from the broker for {silent:.0f} s" if silent > self.patience else None
