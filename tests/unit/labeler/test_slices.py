"""Planes stand upright whatever the scanner's orientation, and stacks are ordered."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeler.slices import Skip, Source, make_plane, make_series, shrink

AXES = [np.array(v, float) for v in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))]
ORIENTATIONS = [(r, c) for r, c in itertools.permutations(AXES, 2) if abs(r @ c) < 0.5]


def picture_of_world(columns, rows, size=9):
    """A picture whose value is x + 10 y + 100 z of the place it shows (LPS, mm), so that its pose can be read off."""
    j, i = np.meshgrid(np.arange(size) - size // 2, np.arange(size) - size // 2, indexing="ij")
    place = j[..., None] * rows + i[..., None] * columns
    return (place @ np.array([1.0, 10.0, 100.0])).astype(np.float32)


@pytest.mark.parametrize(("columns", "rows"), ORIENTATIONS)
def test_all_24_orientations_come_out_the_same_way_round(columns, rows):
    plane = make_plane(picture_of_world(columns, rows), columns, rows, (0, 0, 0), Source(0), 256)
    right = plane.pixels[4, 5] - plane.pixels[4, 4]
    down = plane.pixels[5, 4] - plane.pixels[4, 4]
    expected = {"axial": (1, 10), "sagittal": (10, -100), "coronal": (1, -100)}[plane.plane]
    assert (right, down) == expected


@given(st.floats(-0.35, 0.35), st.floats(-0.35, 0.35), st.sampled_from(ORIENTATIONS))
def test_oblique_planes_take_the_nearest_orientation(tilt, turn, orientation):
    columns, rows = orientation
    normal = np.cross(columns, rows)
    tilted_rows = rows * np.cos(tilt) + normal * np.sin(tilt)
    tilted_columns = columns * np.cos(turn) + np.cross(tilted_rows, columns) * np.sin(turn)
    straight = make_plane(picture_of_world(columns, rows), columns, rows, (0, 0, 0), Source(0), 256)
    oblique = make_plane(picture_of_world(columns, rows), tilted_columns, tilted_rows, (0, 0, 0), Source(0), 256)
    assert oblique.plane == straight.plane
    assert np.array_equal(oblique.pixels, straight.pixels)


def planes(orientation, count, first=0):
    columns, rows = orientation
    normal = np.cross(columns, rows)
    return [
        make_plane(np.random.rand(40, 40).astype(np.float32), columns, rows, normal * 5 * k, Source(first + k), 256)
        for k in range(count)
    ]


AXIAL = (AXES[0], AXES[2])
CORONAL = (AXES[0], AXES[5])


@given(st.permutations(range(7)))
def test_a_stack_is_ordered_from_foot_to_head_whatever_the_order_of_arrival(order):
    stack = make_series("CT", [planes(AXIAL, 7)[k] for k in order]).stacks[0]
    assert [plane.source.index for plane in stack.planes] == list(range(7))


def test_a_few_planes_across_a_large_stack_are_strays_with_a_reason():
    series = make_series("MR", planes(AXIAL, 20) + planes(CORONAL, 2, first=20))
    assert [len(stack.planes) for stack in series.stacks] == [20]
    assert [item.reason for item in series.skipped] == [Skip.STRAY_ORIENTATION] * 2
    assert series.offered == 22


def test_a_three_plane_localizer_keeps_all_its_stacks():
    series = make_series("MR", planes(AXIAL, 3) + planes(CORONAL, 3, first=3))
    assert [stack.plane for stack in series.stacks] == ["axial", "coronal"]


@given(st.integers(1, 700), st.integers(1, 700))
def test_shrinking_keeps_the_mean_and_never_enlarges(height, width):
    picture = np.full((height, width), 7.0, np.float32)
    small = shrink(picture, 160)
    assert max(small.shape) == min(160, max(height, width))
    assert np.allclose(small, 7.0)
