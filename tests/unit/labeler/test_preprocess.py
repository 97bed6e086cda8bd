"""One prepare(): golden, bounded, and the same from the canvas as from the planes."""

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labeler.preprocess import PreprocessSpec, canvas, in_parts, picture_of_canvas, prepare, window
from tests.factories import a_series

SPEC = PreprocessSpec()


def hounsfield(kind: str) -> list[np.ndarray]:
    return [image.pixel_array.astype(np.float32) - 1024 for image in a_series(kind, 4)]


def test_golden_pictures():
    """Whoever changes what the encoder sees changes this hash, the spec and the bundle together."""
    made = prepare(hounsfield("torso"), 1.5, "CT", SPEC)
    assert made.shape == (4, 128, 128, 3)
    assert made.dtype == np.uint8
    coarse = np.round(made.reshape(4, 16, 8, 16, 8, 3).mean(axis=(2, 4)) / 4).astype(np.uint8)
    assert hashlib.sha256(coarse.tobytes()).hexdigest()[:16] == GOLDEN


GOLDEN = "924f91bb59ae53f2"


def test_training_and_serving_share_every_step():
    planes = hounsfield("leg")
    assert np.array_equal(
        picture_of_canvas(canvas(planes, 0.8, "CT", SPEC), "CT", SPEC), prepare(planes, 0.8, "CT", SPEC)
    )


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("at_once", [1, 3, 32])
def test_in_parts_the_same_pictures_come_out(modality, at_once):
    planes = hounsfield("torso") + [plane[40:400, 100:] for plane in hounsfield("leg")]
    parts = list(in_parts(planes, 0.8, modality, SPEC, at_once))
    assert max(map(len, parts)) == min(at_once, len(planes))
    assert np.array_equal(np.concatenate(parts), picture_of_canvas(canvas(planes, 0.8, modality, SPEC), modality, SPEC))


def test_pictures_of_a_long_stack_take_the_memory_of_a_few():
    plane = np.random.default_rng(1).random((160, 160), np.float32)

    def peak(count: int) -> int:
        tracemalloc.start()
        assert sum(map(len, in_parts([plane] * count, 1.0, "CT", SPEC, 8))) == count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(400) < 1.2 * peak(16)


def test_the_body_fills_the_picture_and_the_table_does_not_count():
    plane = np.full((512, 512), -1000, np.float32)
    plane[200:260, 200:260] = 40
    plane[300:302, 50:450] = 40
    shown = prepare([plane], None, "CT", SPEC)[0, :, :, 0]
    assert (shown > 100).mean() > 0.6


@settings(deadline=None)
@given(arrays(np.float32, (3, 40, 50), elements=st.floats(-5000, 5000, width=32)), st.sampled_from(["CT", "MR"]))
def test_whatever_the_values_pictures_are_pictures(values, modality):
    made = prepare(list(values), 1.0, modality, SPEC)
    assert made.shape == (3, 128, 128, 3)


def test_mr_does_not_depend_on_the_scanner_s_scale():
    planes = [np.random.default_rng(i).random((64, 64)).astype(np.float32) for i in range(3)]
    scaled = [plane * 3000 + 17 for plane in planes]
    assert np.abs(prepare(planes, 1.0, "MR", SPEC).astype(int) - prepare(scaled, 1.0, "MR", SPEC)).max() <= 1


def ruler_of(mm: float | None) -> int:
    """Bright pixels in the middle of the strip at the lower edge."""
    plane = np.full((512, 512), 40, np.float32)
    strip = prepare([plane], mm, "CT", SPEC)[0, -SPEC.ruler_strip // 2, :, 0]
    return int((strip > 127).sum())


def test_the_ruler_tells_the_size_and_is_missing_where_nobody_knows_it():
    assert ruler_of(None) == 0
    assert ruler_of(1.0) == pytest.approx(SPEC.size * SPEC.ruler_mm / 512, abs=1)
    assert ruler_of(0.5) == pytest.approx(2 * ruler_of(1.0), abs=1)


def test_a_window_shows_its_range():
    shown = window(np.array([[-160.0, 40.0, 240.0]], np.float32), "CT", SPEC)[..., 0]
    assert shown.tolist() == [[0, 128, 255]]


def test_the_spec_survives_json_and_its_hash_tells_a_change():
    assert PreprocessSpec.from_json(SPEC.to_json()) == SPEC
    assert PreprocessSpec(size=96).sha256 != SPEC.sha256
    with pytest.raises(TypeError):
        PreprocessSpec.from_json({"sise": 1})
