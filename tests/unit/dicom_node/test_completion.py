"""Is a study complete? Every reason, and that no reason hides what is short."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.completion import Known, Steady, judge
from dicom_node.study import Announced, Counted

QUIET, COUNT = 60.0, 5.0


def reason(known: Known, now: float = 100.0) -> str | None:
    """Why it is complete, None where it is not; the last image came at 90."""
    verdict = judge(known, now, QUIET, COUNT)
    return verdict.reason if verdict.complete else None


def announced(named: int, here: int, steps: int = 1, ended: bool = True) -> Announced:
    return Announced(named, here, steps, ended)


@pytest.mark.parametrize(
    ("known", "now", "expected"),
    [
        (Known(50, 90.0), 149.9, None),
        (Known(50, 90.0), 150.0, "no image for 60 s"),
        (Known(50, 90.0, announced(50, 50)), 90.0, "all 50 images that its performed step names are here"),
        (Known(1, 90.0, announced(1, 1)), 90.0, "the one image that its performed step names is here"),
        (Known(1, 90.0, None, [Counted("pacs", 1, 95.0)]), 95.0, "1 image, as many as pacs holds"),
        (Known(50, 90.0, announced(50, 50, 2)), 90.0, "all 50 images that its 2 performed steps name are here"),
        (Known(52, 90.0, announced(50, 50)), 90.0, "all 50 images that its performed step names are here"),
        (Known(50, 90.0, announced(50, 49)), 100.0, None),
        (Known(50, 90.0, announced(50, 49)), 150.0, "no image for 60 s; 49 of 50 that its performed step names"),
        (Known(50, 90.0, announced(50, 50, ended=False)), 100.0, None),
        (Known(50, 90.0, announced(0, 0)), 100.0, None),
        (Known(9, 90.0, announced(0, 0, ended=False)), 150.0, "no image for 60 s; a performed step has not ended"),
        (Known(50, 90.0, None, [Counted("pacs", 50, 95.0)]), 95.0, "50 images, as many as pacs holds"),
        (Known(50, 90.0, None, [Counted("pacs", 50, 94.9)]), 95.0, None),
        (Known(50, 90.0, None, [Counted("pacs", 50, 80.0)]), 120.0, None),
        (Known(50, 90.0, None, [Counted("pacs", 30, 95.0)]), 120.0, None),
        (Known(40, 90.0, None, [Counted("pacs", 50, 95.0)]), 150.0, "no image for 60 s; 40 of 50 that pacs holds"),
        (
            Known(40, 90.0, None, [Counted("a", 50, 95.0), Counted("b", 40, 95.0)]),
            95.0,
            "40 images, as many as b holds",
        ),
    ],
)
def test_the_reason_says_who_is_believed_and_what_is_short(known: Known, now: float, expected: str | None) -> None:
    assert reason(known, now) == expected


@given(
    st.integers(1, 1000),
    st.none() | st.builds(Announced, st.integers(0, 9), st.integers(0, 9), st.integers(1, 3), st.booleans()),
    st.lists(st.builds(Counted, st.just("pacs"), st.integers(-5, 2000), st.floats(0, 200))),
)
def test_quiet_time_is_always_enough(images: int, told: Announced | None, counts: list[Counted]) -> None:
    assert judge(Known(images, 90.0, told, counts), 150.0, QUIET, COUNT).complete


def test_a_step_of_the_clock_starts_silence_again_and_drift_does_not() -> None:
    steady = Steady(1000.0, 10.0)
    assert steady.look(1060.5, 70.0).since == 0.0
    assert steady.look(4660.0, 70.0).since == 4660.0
    assert steady.look(500.0, 70.0).since == 500.0
    assert steady.look(4660.0, 70.0).look(4661.0, 71.0).since == 4660.0


@given(st.lists(st.floats(0, 30), min_size=1, max_size=20), st.floats(-1e7, 1e7))
def test_only_a_step_is_taken_for_one(pauses: list[float], step: float) -> None:
    wall, monotonic = 1e9, 0.0
    steady = Steady(wall, monotonic)
    for pause in pauses:
        wall, monotonic = wall + pause, monotonic + pause
        steady = steady.look(wall, monotonic)
    assert steady.since == 0.0
    assert (steady.look(wall + step, monotonic).since != 0.0) == (abs(step) > 2.0)
