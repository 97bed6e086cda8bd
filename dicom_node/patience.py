"""Pure: how long to wait before what did not work is tried again, and before a destination is tried again at all."""

from __future__ import annotations

import random
from collections.abc import Callable


def pause(attempt: int, longest: float, chance: Callable[[], float] = random.random) -> float:
    """Seconds before the next attempt: doubling from one second, up to `longest`, the last half of it by chance."""
    full = min(longest, 2.0 ** min(attempt - 1, 30))
    return full * (0.5 + 0.5 * chance())


def rest(failures: int, allowed: int, longest: float, chance: Callable[[], float] = random.random) -> float:
    """Seconds that a destination rests after so many failures in a row; 0 while they are fewer than `allowed`."""
    return pause(failures, longest, chance) if failures >= allowed else 0.0
