"""The order of the body along an axial stack."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labeler.aggregate import Smoothing
from labeler.order import CHAIN, BodyOrder, ordered, places_of
from labeler.vocabulary import vocabulary

ORDER = BodyOrder()
WORDS = vocabulary()


def stack(*stretches: tuple[str, int], sure: float = 4.0) -> np.ndarray:
    """Logits (n, chain) of slices from the foot up: so many of each station."""
    rows = [CHAIN.index(name) for name, count in stretches for _ in range(count)]
    logits = np.full((len(rows), len(CHAIN)), -sure, np.float32)
    logits[np.arange(len(rows)), rows] = sure
    return logits


def shown(logits: np.ndarray) -> list[str]:
    return [CHAIN[i] for i in logits.argmax(axis=1)]


def test_every_name_of_the_chain_is_a_station():
    assert set(CHAIN) <= set(WORDS.stations)


def test_a_stack_in_order_stays_as_it_is():
    logits = stack(("thigh", 6), ("pelvis", 8), ("abdomen", 10), ("chest", 9), ("neck", 3), ("head", 6))
    settled = ordered(logits, np.arange(len(logits)) * 15.0, ORDER)
    assert ((settled > 0) == (logits > 0)).all()


def test_a_lower_leg_amid_a_thigh_gives_way_although_its_slices_are_sure_of_it():
    logits = stack(("thigh", 8), ("lower_leg", 2), ("thigh", 8))
    assert shown(ordered(logits, np.arange(18) * 10.0, ORDER)) == ["thigh"] * 18


def test_the_neck_is_above_the_chest_and_the_abdomen_below():
    """Slices that know only "neck or abdomen" are told by where the chest lies."""
    torn = stack(("chest", 4), ("neck", 4))
    torn[4:, CHAIN.index("abdomen")] = 4.0
    up = ordered(torn, np.arange(8) * 30.0, ORDER)
    down = ordered(torn[::-1], np.arange(8) * 30.0, ORDER)
    assert shown(up)[4:] == ["neck"] * 4
    assert shown(down)[:4] == ["abdomen"] * 4


def test_many_thin_slices_say_no_more_than_few_thick_ones():
    """One doubtful place, seen on three slices or on thirty: neither outvotes the rest of the stack."""
    for count, gap in ((3, 10.0), (30, 1.0)):
        logits = stack(("pelvis", 10 * count), ("knee", count), ("abdomen", 10 * count), sure=2.0)
        settled = ordered(logits, np.arange(len(logits)) * gap, ORDER)
        assert "knee" not in shown(settled)


@pytest.mark.parametrize("images", [2, 3, 10])
def test_phases_and_echoes_of_one_place_change_nothing(images: int):
    """Dual echo, dynamic or diffusion: as many images of every place as you like."""
    once = stack(("pelvis", 6), ("knee", 1), ("abdomen", 8), ("chest", 6), sure=3.0)
    positions = np.arange(len(once)) * 5.0
    again = ordered(np.repeat(once, images, axis=0), np.repeat(positions, images), ORDER)
    assert np.allclose(again, np.repeat(ordered(once, positions, ORDER), images, axis=0))


def test_images_of_one_place_alone_are_not_brought_into_order():
    logits = np.ones((5, len(WORDS.labels)), np.float32)
    assert Smoothing(0.0, ORDER).of(logits, [7.0] * 5, "axial", WORDS) is logits


@settings(deadline=None, max_examples=60)
@given(
    st.integers(3, 30).flatmap(
        lambda n: st.tuples(
            arrays(np.float32, (n, len(CHAIN)), elements=st.floats(-50, 50, width=32)),
            st.lists(st.floats(0, 400), min_size=n, max_size=n),
        )
    )
)
def test_whatever_comes_the_answer_is_finite_and_never_certain(drawn):
    logits, gaps = drawn
    assume(places_of(np.cumsum(gaps))[-1] >= 2)
    settled = ordered(logits, np.cumsum(gaps), ORDER)
    assert settled.shape == logits.shape
    assert np.isfinite(settled).all()
    assert np.abs(settled).max() < 7


def test_only_axial_stacks_of_three_slices_are_brought_into_order():
    logits = np.zeros((3, len(WORDS.labels)), np.float32)
    logits[:, WORDS.index("thigh")] = 1.0
    along, positions = Smoothing(0.0, ORDER), [0.0, 10.0, 20.0]
    assert along.of(logits, positions, "coronal", WORDS) is logits
    assert along.of(logits[:2], positions[:2], "axial", WORDS) is not None
    changed = along.of(logits, positions, "axial", WORDS) != logits
    assert changed[:, [WORDS.index(name) for name in CHAIN]].any()
    assert not changed[:, [i for i, name in enumerate(WORDS.names) if name not in CHAIN]].any()


def test_smoothing_survives_the_manifest_and_misses_nothing_in_silence():
    along = Smoothing(9.0, ORDER)
    assert Smoothing.from_json(along.to_json()) == along
    assert Smoothing.from_json(Smoothing(3.0).to_json()) == Smoothing(3.0)
    for broken in ({"millimetres": 9.0}, {"millimetres": 9.0, "order": {"length_mm": 1.0}}):
        with pytest.raises(KeyError):
            Smoothing.from_json(broken)
