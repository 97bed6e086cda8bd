"""Slices -> series: smoothing, consistency, ranges."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labeler.aggregate import decide, doubtful, findings, runs, smooth
from labeler.vocabulary import vocabulary

WORDS = vocabulary()
HALF = np.full(len(WORDS.labels), 0.5, np.float32)


@settings(deadline=None)
@given(
    arrays(np.float32, (4, len(WORDS.labels)), elements=st.floats(-9, 9, width=32)),
    arrays(np.float32, (len(WORDS.labels),), elements=st.floats(np.float32(0.05), np.float32(0.95), width=32)),
)
def test_no_organ_is_ever_shown_outside_all_of_its_stations(logits, thresholds):
    p, present = decide(logits, thresholds, WORDS)
    for row in range(len(logits)):
        shown = {name for name, yes in zip(WORDS.names, present[row], strict=True) if yes}
        for name in shown:
            label = WORDS[name]
            assert label.kind == "station" or shown & set(label.stations), (name, shown)
    assert ((p >= 0) & (p <= 1)).all()


def test_the_less_sure_side_gives_way():
    logits = np.full((2, len(WORDS.labels)), -5.0, np.float32)
    liver, abdomen = WORDS.index("liver"), WORDS.index("abdomen")
    logits[0, [liver, abdomen]] = (4.0, -0.5)
    logits[1, [liver, abdomen]] = (0.2, -3.0)
    _, present = decide(logits, HALF, WORDS)
    assert present[0, [liver, abdomen]].all()
    assert not present[1, [liver, abdomen]].any()


def test_smoothing_heals_one_slice_and_keeps_the_ends():
    logits = np.full((9, 1), 4.0, np.float32)
    logits[4] = -1.0
    healed = smooth(logits, [5.0 * k for k in range(9)], 5.0)
    assert (healed > 0).all()
    assert smooth(logits, list(range(9)), 0.0) is logits


def test_smoothing_goes_by_millimetres_not_by_slices():
    logits = np.array([[4.0], [-4.0], [4.0]], np.float32)
    near, far = smooth(logits, [0, 1, 2], 4.0), smooth(logits, [0, 50, 100], 4.0)
    assert near[1, 0] > 0 > far[1, 0]


@given(st.lists(st.integers(0, 9), min_size=3, max_size=30), st.integers(0, 1000))
def test_phases_of_one_place_are_weighed_as_if_they_stood_side_by_side(places, seed):
    positions = sorted(5.0 * place for place in places)
    logits = np.random.default_rng(seed).normal(0, 4, (len(places), 2)).astype(np.float32)
    distances = np.subtract.outer(positions, positions)
    weights = np.exp(-0.5 * (distances / 4.0) ** 2)
    each = (weights / weights.sum(axis=1, keepdims=True)) @ logits
    np.testing.assert_allclose(smooth(logits, positions, 4.0), each, rtol=1e-5, atol=1e-5)


@given(st.lists(st.booleans(), max_size=40))
def test_runs_name_exactly_the_true_positions(mask):
    found = runs(np.array(mask, bool))
    assert [i for first, last in found for i in range(first, last + 1)] == [i for i, yes in enumerate(mask) if yes]


def test_findings_say_where_and_how_surely():
    present = np.zeros((6, len(WORDS.labels)), bool)
    p = np.full(present.shape, 0.1, np.float32)
    column = WORDS.index("kidney")
    present[[1, 2, 4], column] = True
    p[[1, 2, 4], column] = (0.7, 0.9, 0.6)
    (kidney,) = findings(p, present, WORDS)
    assert (kidney.ranges, kidney.best, kidney.count) == (((1, 2), (4, 4)), 2, 3)
    assert round(kidney.certainty, 2) == 0.9
    assert round(kidney.mean_certainty, 2) == 0.73


def test_not_sure_is_neither_present_nor_denied_and_keeps_to_its_stations():
    p = np.zeros((3, len(WORDS.labels)), np.float32)
    liver, abdomen = WORDS.index("liver"), WORDS.index("abdomen")
    p[:, liver] = 0.4
    p[0, abdomen], p[1, abdomen] = 0.9, 0.4
    present = p >= 0.5
    unsure = doubtful(p, present, np.full(len(WORDS.labels), 0.3, np.float32), WORDS)
    assert unsure[:, liver].tolist() == [True, True, False]
    assert unsure[:, abdomen].tolist() == [False, True, False]
    assert not (present & unsure).any()
