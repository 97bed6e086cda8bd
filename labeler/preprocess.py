"""Planes -> pictures, the same way in training and serving.

`prepare()` is the only path from a plane to what the image encoder sees: `canvas()` brings a stack to one square of
comparable grey values (HU, or 0..1 for MR), `window()` makes three channels of it, and a ruler at the lower edge tells
how large the picture is, as viewers draw one. The labeler takes what it gives part by part (`in_parts`); training draws
its augmentation between the steps and evaluates through them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from labeler.prompts import Modality
from labeler.slices import FloatImage, shrink

Pictures = NDArray[np.uint8]

#: Air in HU; what lies outside a CT picture.
AIR = -1024.0
HU_RANGE = (AIR, 2000.0)


@dataclass(frozen=True)
class PreprocessSpec:
    """Every number of the preprocessing; a bundle carries it, so that serving repeats what training did."""

    #: Side of the square that the image encoder takes, pixels.
    size: int = 128
    #: Side of the square on which planes wait (and training augments), pixels.
    canvas: int = 160
    #: Level and width in HU of the three channels: soft tissue, lung, bone.
    ct_windows: tuple[tuple[float, float], ...] = ((40.0, 400.0), (-500.0, 1400.0), (400.0, 1800.0))
    #: Percentiles of a stack that become 0 and 1 (MR).
    mr_percentiles: tuple[float, float] = (0.5, 99.8)
    #: Exponents of the three channels (MR).
    mr_gammas: tuple[float, ...] = (1.0, 0.6, 1.7)
    #: A row or column belongs to the body when this share of its pixels over the stack is above the threshold.
    body_share: float = 0.01
    #: Threshold of the body: HU for CT, share of the brightest for MR.
    body_hu: float = -400.0
    body_mr: float = 0.08
    #: Things thinner than this many pixels, as the table, are not body.
    table: int = 5
    #: Margin left around the body, as a share of its longer side.
    margin: float = 0.04
    #: Length of the ruler, mm, and height of the dark strip that it lies in, pixels; 0 draws none.
    ruler_mm: float = 100.0
    ruler_strip: int = 6

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PreprocessSpec:
        """Every field, no more and no less; TypeError tells which: a default must not stand in for what was trained."""
        missing = sorted(cls.__dataclass_fields__.keys() - data.keys())
        if missing:
            raise TypeError(f"preprocess lacks {', '.join(missing)}")
        return cls(**{key: _tuples(value) for key, value in data.items()})

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Canvas:
    """A stack before it becomes pictures.

    Attributes:
        values: float32 (n, canvas, canvas), HU or 0..1.
        mm: side of one canvas pixel in mm; None where the images do not tell.
    """

    values: NDArray[np.float32]
    mm: float | None


def prepare(planes: Sequence[FloatImage], mm: float | None, modality: Modality, spec: PreprocessSpec) -> Pictures:
    """Pictures of one stack for the image processor: uint8 (n, size, size, 3).

    Args:
        planes: upright pictures of one stack, float32 (rows, columns); HU for CT.
        mm: side of their pixels, None where unknown.
    """
    return np.concatenate(list(in_parts(planes, mm, modality, spec)))


def in_parts(
    planes: Sequence[FloatImage], mm: float | None, modality: Modality, spec: PreprocessSpec, at_once: int = 32
) -> Iterator[Pictures]:
    """What `prepare` gives, so many pictures at a time: a stack of thousands takes the memory of a few."""
    for square in _canvases(planes, mm, modality, spec, at_once):
        yield picture_of_canvas(square, modality, spec)


def picture_of_canvas(square: Canvas, modality: Modality, spec: PreprocessSpec) -> Pictures:
    """The second half of `prepare`: canvases -> pictures uint8 (n, size, size, 3)."""
    shown = window(_resized(square.values, spec.size), modality, spec)
    if spec.ruler_strip:
        length = ruler_pixels(square.mm, spec)
        shown[:, -spec.ruler_strip :] = 0
        shown[:, 1 - spec.ruler_strip : -1] = (ruler(length, spec.size) * 255 + 0.5).astype(np.uint8)[:, None]
    return shown


def ruler_pixels(mm: float | None, spec: PreprocessSpec) -> float:
    """Length of the ruler in picture pixels for canvas pixels of that side; 0 where it is unknown."""
    return 0.0 if mm is None else spec.ruler_mm / (mm * spec.canvas / spec.size)


def ruler(length: float, size: int) -> NDArray[np.float32]:
    """One row of the ruler: 1 from the left up to `length` pixels, the last one in part."""
    row: NDArray[np.float32] = np.clip(length - np.arange(size, dtype=np.float32), 0, 1)
    return row


def canvas(planes: Sequence[FloatImage], mm: float | None, modality: Modality, spec: PreprocessSpec) -> Canvas:
    """One square per plane, cut to the body that the whole stack shows."""
    parts = list(_canvases(planes, mm, modality, spec, len(planes)))
    return Canvas(np.concatenate([part.values for part in parts]), parts[0].mm)


def _canvases(
    planes: Sequence[FloatImage], mm: float | None, modality: Modality, spec: PreprocessSpec, at_once: int
) -> Iterator[Canvas]:
    """The canvas in parts. Grey values and the body's place are of the whole stack, which is gone through once more."""
    small = [shrink(plane, spec.canvas) for plane in planes]
    limits, side = _limits(small, modality, spec), max(max(plane.shape) for plane in small)
    empty = AIR if modality == "CT" else 0.0

    def squares() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(small), at_once):
            yield _squares(small[start : start + at_once], limits, side, empty)

    threshold = spec.body_hu if modality == "CT" else spec.body_mr
    top, left, cut = _body_square((square > threshold for square in squares()), side, spec)
    shrunk = max(planes[0].shape) / max(small[0].shape)
    size = None if mm is None else mm * shrunk * cut / spec.canvas
    for square in squares():
        yield Canvas(_resized(_cut(square, top, left, cut, empty), spec.canvas), size)


def window(values: NDArray[np.float32], modality: Modality, spec: PreprocessSpec) -> Pictures:
    """Three grey channels: CT windows, or MR gammas. (..., rows, columns) -> uint8 (..., rows, columns, 3)."""
    if modality == "CT":
        channels = ((values - (level - width / 2)) / width for level, width in spec.ct_windows)
    else:
        channels = (np.clip(values, 0, 1) ** gamma for gamma in spec.mr_gammas)
    shown = [_grey(channel) for channel in channels]
    return np.stack(shown, axis=-1)


def _grey(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """0..1 -> 0..255, in place until the last step: this runs for every image of every study."""
    np.clip(share, 0, 1, out=share)
    share *= 255
    share += 0.5
    return share.astype(np.uint8)


def _limits(planes: Sequence[FloatImage], modality: Modality, spec: PreprocessSpec) -> tuple[float, float] | None:
    """The values of a stack that become 0 and 1 (MR)."""
    if modality == "CT":
        return None
    values = np.concatenate([plane.ravel() for plane in planes])
    low, high = np.percentile(values, spec.mr_percentiles, overwrite_input=True)
    return float(low), float(max(high, low + 1e-6))


def _squares(
    planes: Sequence[FloatImage], limits: tuple[float, float] | None, side: int, empty: float
) -> NDArray[np.float32]:
    """Every plane, in HU or between its limits, in the middle of a square with that side."""
    squares = np.full((len(planes), side, side), empty, np.float32)
    for square, plane in zip(squares, planes, strict=True):
        top, left = (side - plane.shape[0]) // 2, (side - plane.shape[1]) // 2
        shown = np.clip(plane, *HU_RANGE) if limits is None else _normalised(plane, limits)
        square[top : top + plane.shape[0], left : left + plane.shape[1]] = shown
    return squares


def _normalised(plane: FloatImage, limits: tuple[float, float]) -> FloatImage:
    low, high = limits
    share: FloatImage = np.clip((plane - low) / (high - low), 0, 1).astype(np.float32)
    return share


def _body_square(bodies: Iterable[NDArray[np.bool_]], side: int, spec: PreprocessSpec) -> tuple[int, int, int]:
    """Top, left and side of the smallest square around the body; the whole picture when nothing stands out.

    Args:
        bodies: what stands out, (n, side, side) each.
    """
    planes, in_rows, in_columns = 0, np.zeros(side, np.int64), np.zeros(side, np.int64)
    for body in bodies:
        opened = _opened(body, spec.table)
        planes += len(opened)
        in_rows += opened.sum(axis=(0, 2))
        in_columns += opened.sum(axis=(0, 1))
    rows, columns = (np.flatnonzero(count / (planes * side) > spec.body_share) for count in (in_rows, in_columns))
    if rows.size < 8 or columns.size < 8:
        return 0, 0, side
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    new = min(side, round(longer * (1 + 2 * spec.margin)))
    top = (rows[0] + rows[-1] + 1 - new) // 2
    left = (columns[0] + columns[-1] + 1 - new) // 2
    return int(top), int(left), new


def _opened(body: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Binary opening of every plane by a square of that width, one axis after the other; outside is not body."""
    for join in (np.logical_and, np.logical_or):
        for axis in (1, 2):
            body = reduce(join, _neighbours(body, width, axis))
    return body


def _neighbours(body: NDArray[np.bool_], width: int, axis: int) -> Iterator[NDArray[np.bool_]]:
    """The planes moved along an axis by each step within that width."""
    around = [(0, 0)] * body.ndim
    around[axis] = (width // 2, (width - 1) // 2)
    wide = np.pad(body, around)
    for shift in range(width):
        step = slice(shift, shift + body.shape[axis])
        yield wide[:, step] if axis == 1 else wide[:, :, step]


def _cut(squares: NDArray[np.float32], top: int, left: int, side: int, empty: float) -> NDArray[np.float32]:
    """That square of every plane; what lies outside the planes is empty."""
    full = squares.shape[1]
    out = np.full((len(squares), side, side), empty, np.float32)
    high, low = max(0, top), min(full, top + side)
    near, far = max(0, left), min(full, left + side)
    out[:, high - top : low - top, near - left : far - left] = squares[:, high:low, near:far]
    return out


def _resized(squares: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Square planes (n, k, k) -> (n, side, side), bilinear and without aliasing."""
    if squares.shape[1:] == (side, side):
        return squares
    planes = torch.from_numpy(squares)[:, None]
    resized: NDArray[np.float32] = interpolate(planes, (side, side), mode="bilinear", antialias=True)[:, 0].numpy()
    return resized
