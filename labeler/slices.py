"""A series of images -> ordered planes, each upright, and a reason for every image left out.

A plane is turned so that people see it as they are used to: axial with the patient's front up and the right side
to the left; sagittal with the head up and the front to the left; coronal with the head up and the right side to
the left. Stacks run from foot to head, from right to left, from front to back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labeler.prompts import Modality, PlaneName

FloatImage = NDArray[np.float32]


class Skip(StrEnum):
    """Why an image carries no label."""

    NOT_DICOM = "not a readable DICOM file"
    AWAY = "its file cannot be read from the disk"
    MODALITY = "modality is neither CT nor MR"
    NO_PIXELS = "no pixel data"
    COLOUR = "colour image"
    UNDECODABLE = "pixel data cannot be decoded"
    LOCALIZER = "CT localizer: a projection, not a slice"
    DERIVED = "derived picture (projection, rendering or screen), not a slice"
    MOSAIC = "mosaic: many slices in one picture"
    PHASE = "phase image: it shows motion or field, not anatomy"
    NO_HU = "CT values that are no Hounsfield units"
    NO_GEOMETRY = "no image orientation"
    STRAY_ORIENTATION = "orientation differs from the rest of the series"
    TOO_SMALL = "fewer than 32 rows or columns"
    EMPTY = "the picture is of one grey value"
    TOO_LARGE = "it unpacks to more than may be"
    TOO_SLOW = "its decoder took too long"
    CRASHED = "its decoder crashed"


@dataclass(frozen=True)
class Source:
    """Where a plane comes from. `frame` counts from 1 and is None in a single-frame image (PS3.3 C.7.6.6)."""

    index: int
    sop_instance_uid: str | None = None
    sop_class_uid: str | None = None
    frame: int | None = None
    number: int | None = None

    @property
    def shown_number(self) -> int:
        """What a person calls this image: the frame, the Instance Number, or the place in the series."""
        named = self.frame if self.frame is not None else self.number
        return self.index + 1 if named is None else named


@dataclass(frozen=True)
class Plane:
    """One upright picture of square pixels: float32 (rows, columns), HU for CT, the scanner's own values for MR."""

    pixels: FloatImage
    plane: PlaneName
    #: Side of one (square) pixel in mm; None where the image does not tell.
    mm: float | None
    normal: tuple[float, float, float]
    #: mm along the normal; NaN where the image does not tell.
    position: float
    source: Source


@dataclass(frozen=True)
class Skipped:
    """An image that will carry no label, and why."""

    source: Source
    reason: Skip
    detail: str = ""


@dataclass(frozen=True)
class Stack:
    """Planes of one orientation, ordered along it."""

    plane: PlaneName
    planes: tuple[Plane, ...]

    @property
    def mm(self) -> float | None:
        """Side of the planes' pixels in mm: the median where they differ, None where most do not tell."""
        known = sorted(plane.mm for plane in self.planes if plane.mm is not None)
        return known[len(known) // 2] if 2 * len(known) > len(self.planes) else None


@dataclass(frozen=True)
class Series:
    """What one series offers to the labeler."""

    modality: Modality
    stacks: tuple[Stack, ...]
    skipped: tuple[Skipped, ...] = ()
    series_instance_uid: str | None = None
    #: Every image that was offered, labelled or not.
    offered: int = field(default=0)

    @property
    def planes(self) -> tuple[Plane, ...]:
        return tuple(plane for stack in self.stacks for plane in stack.planes)


#: Fewer rows or columns show nothing that could be told.
SMALLEST_SIDE = 32

#: Positive direction of travel through a stack, LPS (x: right to left, y: front to back, z: foot to head).
_TRAVEL: dict[PlaneName, int] = {"sagittal": 0, "coronal": 1, "axial": 2}

#: Directions in which columns and rows run on the screen, LPS.
_SCREEN: dict[PlaneName, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
}

#: Two normals closer than this (about 18 degrees) belong to one stack; gantry tilt and motion stay inside.
_SAME_ORIENTATION = 0.95


def make_plane(
    pixels: FloatImage,
    along_columns: Sequence[float],
    along_rows: Sequence[float],
    origin: Sequence[float],
    source: Source,
    max_side: int,
    spacing: tuple[float, float] | None = None,
) -> Plane:
    """Turn one picture upright and shrink it to at most `max_side` square pixels.

    Args:
        pixels: (rows, columns).
        along_columns: LPS unit vector in which the column index grows (first half of (0020,0037)).
        along_rows: LPS unit vector in which the row index grows (second half of (0020,0037)).
        origin: LPS position of the first pixel, mm (0020,0032); NaN where unknown.
        spacing: mm between rows and between columns (0028,0030); None where unknown.
    """
    columns, rows = np.asarray(along_columns, float), np.asarray(along_rows, float)
    normal = np.cross(columns, rows)
    name = _nearest_plane(normal)
    axis = _TRAVEL[name]
    normal = normal * (1.0 if normal[axis] >= 0 else -1.0)
    square, mm = _square_pixels(pixels, spacing, max_side)
    upright = _upright(square, columns, rows, name)
    position = float(np.dot(np.asarray(origin, float), normal))
    return Plane(upright, name, mm, (float(normal[0]), float(normal[1]), float(normal[2])), position, source)


def _nearest_plane(normal: NDArray[np.float64]) -> PlaneName:
    strongest = int(np.argmax(np.abs(normal)))
    return next(name for name, axis in _TRAVEL.items() if axis == strongest)


def _upright(
    pixels: FloatImage, columns: NDArray[np.float64], rows: NDArray[np.float64], name: PlaneName
) -> FloatImage:
    right, down = (np.asarray(v, float) for v in _SCREEN[name])
    if abs(columns @ right) + abs(rows @ down) < abs(rows @ right) + abs(columns @ down):
        pixels, columns, rows = pixels.T, rows, columns
    if columns @ right < 0:
        pixels = pixels[:, ::-1]
    if rows @ down < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _square_pixels(
    pixels: FloatImage, spacing: tuple[float, float] | None, max_side: int
) -> tuple[FloatImage, float | None]:
    """Shrink to `max_side`, giving oblong pixels equal sides; returns the picture and the side in mm."""
    if spacing is None or min(spacing) <= 0:
        return shrink(pixels, max_side), None
    height, width = (count * step for count, step in zip(pixels.shape, spacing, strict=True))
    mm = max(max(spacing), max(height, width) / max_side)
    size = (max(1, round(width / mm)), max(1, round(height / mm)))
    return _averaged(pixels, size), mm


def _averaged(pixels: FloatImage, size: tuple[int, int]) -> FloatImage:
    if pixels.shape == size[::-1]:
        return np.ascontiguousarray(pixels, dtype=np.float32)
    picture = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BOX), dtype=np.float32)


def shrink(pixels: FloatImage, max_side: int) -> FloatImage:
    """Reduce a picture so that its longer side is at most `max_side`, averaging; never enlarges."""
    height, width = pixels.shape
    factor = max_side / max(height, width)
    if factor >= 1:
        return np.ascontiguousarray(pixels, dtype=np.float32)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return _averaged(pixels, size)


def make_series(
    modality: Modality,
    planes: Iterable[Plane],
    skipped: Iterable[Skipped] = (),
    series_instance_uid: str | None = None,
) -> Series:
    """Sort planes into stacks; a few planes that stand across a much larger stack are strays and are left out."""
    groups: list[list[Plane]] = []
    for plane in planes:
        home = next((g for g in groups if _parallel(g[0], plane)), None)
        if home is None:
            groups.append([plane])
        else:
            home.append(plane)
    groups.sort(key=len, reverse=True)
    left_out = list(skipped)
    kept: list[Stack] = []
    for group in groups:
        if _is_stray(group, groups[0]):
            left_out += [Skipped(plane.source, Skip.STRAY_ORIENTATION) for plane in group]
        else:
            kept.append(Stack(group[0].plane, tuple(sorted(group, key=_order))))
    offered = len({s.source.index for s in left_out} | {p.source.index for s in kept for p in s.planes})
    return Series(modality, tuple(kept), tuple(left_out), series_instance_uid, offered)


def _parallel(a: Plane, b: Plane) -> bool:
    return float(np.dot(a.normal, b.normal)) > _SAME_ORIENTATION


def _is_stray(group: list[Plane], largest: list[Plane]) -> bool:
    return len(group) <= 2 and len(largest) >= 5 * len(group)


def _order(plane: Plane) -> tuple[float, int, int]:
    position = 0.0 if np.isnan(plane.position) else round(plane.position, 2)
    return (position, plane.source.number or 0, plane.source.index)
