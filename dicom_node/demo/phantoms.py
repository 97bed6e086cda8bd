"""Bodies from geometry: CT and MR series of a torso, a head and a leg, drawn from ellipsoids and tubes.

No picture of anybody: every structure is a formula in millimetres (LPS; z from foot to head), painted in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]
Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """An ellipsoid; with `hollow` only its shell of that thickness in mm. `ct` in HU, `mr` from 0 to 1."""

    centre: Vector
    radii: Vector
    ct: float
    mr: float
    hollow: float = 0.0

    def inside(self, grid: tuple[Volume, Volume, Volume]) -> NDArray[np.bool_]:
        reach = self._reach(grid, self.radii)
        if not self.hollow:
            return reach <= 1
        core = tuple(max(radius - self.hollow, 1.0) for radius in self.radii)
        return (reach <= 1) & (self._reach(grid, (core[0], core[1], core[2])) > 1)

    def _reach(self, grid: tuple[Volume, Volume, Volume], radii: Vector) -> Volume:
        squares = [((g - c) / r) ** 2 for g, c, r in zip(grid, self.centre, radii, strict=True)]
        return np.asarray(squares[0] + squares[1] + squares[2], np.float32)


#: Long enough to be straight over a whole phantom.
_LONG = 5000.0


def _ribs() -> list[Shape]:
    """Twelve slanted rings around the chest as beads that overlap, so that a slice cuts several ribs."""
    beads = []
    for height in range(140, 400, 26):
        for angle in np.linspace(0.3, 2 * np.pi - 0.3, 40):
            x, y = 150 * np.sin(angle), -104 * np.cos(angle)
            beads.append(Shape((float(x), float(y), height + 0.35 * float(y)), (12, 8, 6), 420, 0.12))
    return beads


def torso() -> list[Shape]:
    """From the upper pelvis (z = 0) to the lung tops (z = 400)."""
    skin = Shape((0, 0, 200), (175, 128, _LONG), -95, 0.85)
    muscle = Shape((0, 0, 200), (160, 113, _LONG), 50, 0.35)
    cage = [*_ribs(), Shape((0, 0, 260), (140, 94, 175), 45, 0.35)]
    lungs = [Shape((side * 76, 4, 290), (62, 84, 130), -860, 0.04) for side in (-1, 1)]
    upper = [
        Shape((18, -30, 245), (62, 52, 62), 45, 0.25),
        Shape((4, 30, 300), (12, 12, _LONG), 50, 0.1),
        Shape((0, -2, 390), (9, 9, 60), -1000, 0.02),
    ]
    belly = [
        Shape((0, 0, 60), (147, 100, 150), -90, 0.8),
        Shape((-72, -2, 125), (76, 86, 78), 62, 0.42),
        Shape((92, 28, 150), (34, 44, 44), 55, 0.3),
        Shape((55, -38, 140), (46, 38, 36), 20, 0.55),
        Shape((-66, 50, 70), (25, 27, 52), 35, 0.45),
        Shape((68, 50, 80), (25, 27, 52), 35, 0.45),
        *[
            Shape((40 * np.cos(a) * (1 + i % 3 / 2), -35 + 28 * np.sin(a), 12 + 9 * (i % 5)), (17, 15, 20), 25, 0.5)
            for i, a in enumerate(np.linspace(0, 6, 16))
        ],
    ]
    spine = [
        Shape((0, 62, 200), (22, 19, _LONG), 230, 0.4),
        Shape((0, 90, 200), (9, 20, _LONG), 300, 0.2),
        Shape((0, 82, 200), (8, 7, _LONG), 30, 0.9),
        Shape((12, 36, 200), (11, 11, _LONG), 150, 0.08),
        Shape((-13, 34, 60), (12, 10, 190), 140, 0.1),
        Shape((-48, 62, 40), (22, 20, 110), 55, 0.3),
        Shape((48, 62, 40), (22, 20, 110), 55, 0.3),
    ]
    front = [Shape((0, -105, 280), (18, 6, 90), 250, 0.3)]
    return [skin, muscle, *cage, *lungs, *upper, *belly, *spine, *front]


def head() -> list[Shape]:
    """From the mouth (z = 0) to the vertex (z = 190)."""
    return [
        Shape((0, 5, 90), (80, 103, 105), 0, 0.9),
        Shape((0, -10, 10), (62, 80, 90), 30, 0.6),
        Shape((0, 8, 92), (75, 97, 98), 900, 0.06, hollow=7),
        Shape((0, 8, 92), (68, 90, 91), 5, 0.18),
        Shape((0, 8, 95), (65, 87, 86), 32, 0.55),
        Shape((0, 8, 96), (58, 78, 76), 26, 0.7),
        *[Shape((side * 14, 4, 108), (8, 34, 18), 5, 0.12) for side in (-1, 1)],
        *[Shape((side * 22, 58, 44), (26, 26, 22), 32, 0.45) for side in (-1, 1)],
        Shape((0, 40, 30), (14, 14, 60), 30, 0.55),
        *[Shape((side * 32, -72, 62), (13, 13, 13), 10, 0.15) for side in (-1, 1)],
        *[Shape((side * 24, -66, 28), (15, 16, 17), -900, 0.02) for side in (-1, 1)],
        Shape((0, -70, 32), (9, 24, 24), -600, 0.1),
    ]


def leg() -> list[Shape]:
    """A thigh, from above the knee (z = 0) upwards (z = 240)."""
    return [
        Shape((0, 0, 120), (92, 88, _LONG), -100, 0.9),
        Shape((0, 2, 120), (74, 70, _LONG), 58, 0.35),
        *[Shape((44 * np.cos(a), 44 * np.sin(a), 120), (2.2, 24, _LONG), -70, 0.8) for a in np.linspace(0.4, 6.0, 6)],
        Shape((6, -8, 120), (15, 15, _LONG), 1300, 0.05),
        Shape((6, -8, 120), (8, 8, _LONG), -40, 0.85),
        Shape((-26, 18, 120), (5, 5, _LONG), 120, 0.05),
    ]


def paint(
    shapes: Sequence[Shape], field_of_view: float, side: int, heights: NDArray[np.float64], modality: str
) -> Volume:
    """Slices (n, side, side) at the given heights; rows run front to back, columns from the patient's right."""
    line = (np.arange(side) + 0.5) * field_of_view / side - field_of_view / 2
    z, y, x = np.meshgrid(heights, line, line, indexing="ij", sparse=True)
    grid = (x.astype(np.float32), y.astype(np.float32), z.astype(np.float32))
    volume = np.full((len(heights), side, side), -1000.0 if modality == "CT" else 0.0, np.float32)
    for shape in shapes:
        volume[shape.inside(grid)] = shape.ct if modality == "CT" else shape.mr
    return volume


def with_noise(volume: Volume, modality: str, seed: int) -> Volume:
    """Grain as a scanner makes it: 15 HU, or 3 % of the brightest."""
    random = np.random.default_rng(seed)
    grain = random.normal(0, 15.0 if modality == "CT" else 0.03, volume.shape).astype(np.float32)
    return volume + grain if modality == "CT" else np.abs(volume + grain)
