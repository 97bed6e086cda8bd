"""Pure: is this study complete, and what can be done before? (what we hold, what others say, now) -> a verdict.

Whoever names the images that there are is believed at once: a scanner whose performed steps have ended, or an archive
that holds as many as we. Silence is the fallback, always, since scanners forget to end their steps and archives hold
objects that never come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dicom_node.study import Announced, Counted

#: Seconds by which the wall clock may drift between two looks before it counts as set.
_STEP = 2.0


@dataclass(frozen=True)
class Verdict:
    """`complete`, because of `reason`; else ask again in `wait` seconds."""

    complete: bool
    reason: str
    wait: float = 0.0


@dataclass(frozen=True)
class Known:
    """What is known of a study that is coming in.

    Attributes:
        images: how many we hold.
        since: from when silence counts: the last image, or the moment from which the clock can be trusted.
        announced: what its performed steps say, where there are any.
        counts: what archives said.
    """

    images: int
    since: float
    announced: Announced | None = None
    counts: Sequence[Counted] = ()


def judge(known: Known, now: float, quiet_seconds: float, count_seconds: float) -> Verdict:
    """Is it complete?

    Args:
        quiet_seconds: silence that is enough by itself.
        count_seconds: silence after which an archive's count means something: before, it grows as ours does.
    """
    told = known.announced
    if told is not None and told.ended and 0 < told.named == told.here:
        both = ("the one image", "is") if told.named == 1 else (f"all {told.named} images", "are")
        return Verdict(True, f"{both[0]} that {_steps(told)} {both[1]} here")
    for counted in known.counts:
        if counted.images == known.images and counted.at - known.since >= count_seconds:
            noun = "image" if known.images == 1 else "images"
            return Verdict(True, f"{known.images} {noun}, as many as {counted.peer} holds")
    verdict = by_quiet_time(known.since, now, quiet_seconds)
    return replace(verdict, reason="; ".join([verdict.reason, *_shortfall(known)]))


def by_quiet_time(since: float, now: float, quiet_seconds: float) -> Verdict:
    """Complete when nothing has come for `quiet_seconds`.

    The end of an association says nothing about the end of a study (PS3.4 B.4), so silence has to. A clock that was
    set back counts as silence that has only begun.
    """
    silent = max(0.0, now - since)
    if silent >= quiet_seconds:
        return Verdict(True, f"no image for {quiet_seconds:g} s")
    return Verdict(False, "images are still coming", quiet_seconds - silent)


def _shortfall(known: Known) -> list[str]:
    """What others say there is beyond what we hold."""
    told, found = known.announced, []
    if told is not None and told.here < told.named:
        found.append(f"{told.here} of {told.named} that {_steps(told)}")
    if told is not None and not told.ended:
        found.append("a performed step has not ended")
    return found + [
        f"{known.images} of {c.images} that {c.peer} holds" for c in known.counts if c.images > known.images
    ]


def _steps(told: Announced) -> str:
    return "its performed step names" if told.steps == 1 else f"its {told.steps} performed steps name"


@dataclass(frozen=True)
class Steady:
    """Since when the wall clock has kept pace with one that nobody can set; both in seconds.

    A wall clock that jumps ahead would make every silence look long enough, so silence counts from `since`.
    """

    wall: float
    monotonic: float
    since: float = 0.0

    def look(self, wall: float, monotonic: float) -> Steady:
        """The same, a while later."""
        drift = (wall - self.wall) - (monotonic - self.monotonic)
        return Steady(wall, monotonic, wall if abs(drift) > _STEP else self.since)


def to_prepare(last_at: float, prepared_at: float, settled_seconds: float) -> bool:
    """Is there something to prepare: images since the last look, or a silence long enough to score what has come?"""
    return prepared_at < last_at + settled_seconds
