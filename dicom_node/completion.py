"""Pure: is this study complete, and what can be done before? (what we hold, when it last grew, now) -> a verdict."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """`complete`, because of `reason`; else ask again in `wait` seconds."""

    complete: bool
    reason: str
    wait: float = 0.0


def by_quiet_time(last_at: float, now: float, quiet_seconds: float) -> Verdict:
    """Complete when nothing has come for `quiet_seconds`.

    The end of an association says nothing about the end of a study (PS3.4 B.4), so silence has to. A clock that was
    set back counts as silence that has only begun.
    """
    silent = max(0.0, now - last_at)
    if silent >= quiet_seconds:
        return Verdict(True, f"no image for {quiet_seconds:g} s")
    return Verdict(False, "images are still coming", quiet_seconds - silent)


def to_prepare(last_at: float, prepared_at: float, settled_seconds: float) -> bool:
    """Is there something to prepare: images since the last look, or a silence long enough to score what has come?"""
    return prepared_at < last_at + settled_seconds
