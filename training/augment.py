"""Image augmentation, batched in torch on whatever device the canvases lie on.

Canvases (HU, or 0..1 for MR) -> pictures as `labeler.preprocess.window` makes them, after random geometry, blur, noise,
windows and contrasts. Nothing is mirrored left-right where the anatomy has sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from labeler.preprocess import AIR, HU_RANGE, PreprocessSpec


@dataclass(frozen=True)
class AugmentConfig:
    """How far pictures are bent; every number is the end of a range drawn from uniformly unless said otherwise."""

    #: Smallest and largest zoom (log-uniform); > 1 cuts into the picture.
    zoom: tuple[float, float] = (0.75, 1.3)
    #: Largest stretch of one axis against the other.
    stretch: float = 0.15
    #: Degrees.
    rotation: float = 15.0
    #: Share of the picture's side.
    shift: float = 0.08
    #: Share of pictures seen at a coarser resolution, and the coarsest, in pixels.
    coarse: float = 0.4
    coarsest: int = 40
    #: Largest standard deviation of the noise: HU for CT, share of the range for MR.
    noise_hu: float = 40.0
    noise_mr: float = 0.08
    #: Relative change of CT windows' widths, and shift of their levels as a share of the width.
    window_width: float = 0.35
    window_level: float = 0.15
    #: Share of MR pictures that get a random monotone remap, an inverted contrast, a bias field.
    remap: float = 0.7
    inverted: float = 0.08
    bias: float = 0.5
    #: Share of CT pictures shown as MR: random grey values per tissue class.
    ct_as_mr: float = 0.2
    #: Share of pictures with a rectangle cut out.
    erase: float = 0.2
    #: Share of pictures cut to a close-up (no longer showing all that their slice showed), and its zoom.
    close_up: float = 0.0
    close_zoom: tuple[float, float] = (1.4, 2.6)
    #: Share of pictures whose ruler is hidden, and how far the others' length is off (bodies differ in size).
    no_ruler: float = 0.2
    ruler_error: float = 0.15


def pictures(
    values: Tensor,
    is_ct: Tensor,
    mirror: Tensor,
    ruler: Tensor,
    close: Tensor,
    spec: PreprocessSpec,
    config: AugmentConfig | None,
    random: Generator,
) -> tuple[Tensor, Tensor]:
    """Augmented pictures of a batch, and which of them still look like CT.

    Args:
        values: (n, canvas, canvas), HU where `is_ct`, else 0..1.
        ruler: (n,) length of the ruler on the unmoved picture, pixels; 0 where the size is unknown.
        mirror: bool (n,), True where a left-right flip keeps every label true.
        close: bool (n,), True where the picture is cut to a close-up.
        config: None leaves the pictures as serving would show them (up to resampling).
    Returns:
        float (n, 3, size, size) in 0..1, and bool (n,).
    """
    empty = torch.where(is_ct, AIR, 0.0).to(values)
    shape = (values.shape[0], 1, 1)
    if config is None:
        moved = F.interpolate(values[:, None], (spec.size, spec.size), mode="bilinear", antialias=True)[:, 0]
        return _with_ruler(_windows(moved, is_ct, spec, None, random), ruler, spec), is_ct
    zoom = _zoom(ruler.shape, config.zoom, random, values)
    zoom = torch.where(close, _zoom(ruler.shape, config.close_zoom, random, values), zoom)
    moved = _moved(values - empty.view(shape), mirror, zoom, spec.size, config, random) + empty.view(shape)
    moved = _coarsened(moved, config, random)
    sigma = _uniform(shape, 0, 1, random, values) ** 2
    moved = moved + _normal(moved, random) * sigma * torch.where(
        is_ct.view(shape), config.noise_hu, config.noise_mr
    ).to(values)
    as_mr = is_ct & _chance(is_ct, config.ct_as_mr, random)
    moved = torch.where(as_mr.view(shape), _ct_as_mr(moved, random), moved)
    is_ct = is_ct & ~as_mr
    moved = torch.where(is_ct.view(shape), moved, _mr_contrast(moved, config, random))
    shown = _windows(moved, is_ct, spec, config, random)
    known = ~_chance(values, config.no_ruler, random)
    off = 1 + _uniform(ruler.shape, -config.ruler_error, config.ruler_error, random, values)
    return _with_ruler(_erased(shown, config, random), ruler * zoom * off * known, spec), is_ct


def _zoom(shape: tuple[int, ...], ends: tuple[float, float], random: Generator, like: Tensor) -> Tensor:
    return torch.exp(_uniform(shape, math.log(ends[0]), math.log(ends[1]), random, like))


def _uniform(shape: tuple[int, ...], low: float, high: float, random: Generator, like: Tensor) -> Tensor:
    return torch.rand(shape, generator=random, device=like.device) * (high - low) + low


def _normal(like: Tensor, random: Generator) -> Tensor:
    return torch.randn(like.shape, generator=random, device=like.device, dtype=like.dtype)


def _chance(like: Tensor, share: float, random: Generator) -> Tensor:
    return torch.rand(like.shape[0], generator=random, device=like.device) < share


def _with_ruler(shown: Tensor, length: Tensor, spec: PreprocessSpec) -> Tensor:
    """As `labeler.preprocess.picture_of_canvas` draws it."""
    if spec.ruler_strip:
        row = (length[:, None] - torch.arange(spec.size, device=shown.device)).clamp(0, 1).to(shown)
        shown[:, :, -spec.ruler_strip :] = 0
        shown[:, :, 1 - spec.ruler_strip : -1] = row[:, None, None]
    return shown


def _moved(values: Tensor, mirror: Tensor, zoom: Tensor, size: int, config: AugmentConfig, random: Generator) -> Tensor:
    """Random affine map onto the encoder's square; outside stays empty (zero)."""
    n = (values.shape[0],)
    draw = lambda low, high: _uniform(n, low, high, random, values)  # noqa: E731
    stretch = 1 + draw(-config.stretch, config.stretch)
    angle = draw(-1, 1) * math.radians(config.rotation)
    flip = torch.where(mirror & (draw(0, 1) < 0.5), -1.0, 1.0)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # a close-up stays off the corners, where there may be nothing but air
    room = config.shift + (1 - 1 / zoom).clamp(min=0, max=0.25) * 0.5
    matrix = torch.stack(
        [
            torch.stack([cos * stretch * flip, -sin, draw(-1, 1) * room * 2], -1),
            torch.stack([sin * flip, cos / stretch, draw(-1, 1) * room * 2], -1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [values.shape[0], 1, size, size], align_corners=False)
    return F.grid_sample(values[:, None], grid.to(values.dtype), align_corners=False)[:, 0]


def _coarsened(values: Tensor, config: AugmentConfig, random: Generator) -> Tensor:
    """Some pictures as a scanner with a coarser matrix would have made them; one matrix per batch third."""
    out = values.clone()
    order = torch.randperm(len(values), generator=random, device=values.device)
    for part in order[: int(len(values) * config.coarse)].chunk(3):
        side = int(_uniform((1,), config.coarsest, values.shape[-1], random, values))
        small = F.interpolate(values[part][:, None], (side, side), mode="bilinear", antialias=True)
        out[part] = F.interpolate(small, values.shape[-2:], mode="bilinear")[:, 0]
    return out


#: Borders in HU between air, lung, fat, water, soft tissue, enhanced tissue, spongy bone, hard bone.
_TISSUES = (-850.0, -300.0, -30.0, 15.0, 45.0, 90.0, 250.0, 600.0)


def _ct_as_mr(values: Tensor, random: Generator) -> Tensor:
    """Grey values of an imagined MR sequence: each tissue class of a CT gets a random brightness, air stays dark."""
    knots = torch.tensor([HU_RANGE[0], *_TISSUES, HU_RANGE[1]], device=values.device)
    grey = torch.rand((values.shape[0], len(knots)), generator=random, device=values.device)
    grey[:, :2] *= 0.1
    position = torch.bucketize(values.contiguous(), knots[1:-1])
    left, right = knots[position], knots[position + 1]
    share = ((values - left) / (right - left)).clamp(0, 1)
    flat = position.flatten(1)
    low = torch.gather(grey, 1, flat).view_as(values)
    high = torch.gather(grey, 1, flat + 1).view_as(values)
    return low + (high - low) * share


def _mr_contrast(values: Tensor, config: AugmentConfig, random: Generator) -> Tensor:
    """Bias field, random monotone remap, now and then an inverted contrast. 0..1 in, 0..1 out."""
    n, shape = (values.shape[0],), (values.shape[0], 1, 1)
    field = _uniform((values.shape[0], 1, 4, 4), -0.6, 0.6, random, values)
    field = torch.exp(F.interpolate(field, values.shape[-2:], mode="bicubic")[:, 0])
    biased = torch.where(_chance(values, config.bias, random).view(shape), values * field, values).clamp(0, 1.5)
    gamma = torch.exp(_uniform(n, -0.7, 0.7, random, values)).view(shape)
    gain = _uniform(n, 0.7, 1.3, random, values).view(shape)
    remapped = (biased.clamp(min=0) ** gamma * gain).clamp(0, 1)
    out = torch.where(_chance(values, config.remap, random).view(shape), remapped, biased.clamp(0, 1))
    inverted = torch.where(out > 0.06, 1 - out, out)
    return torch.where(_chance(values, config.inverted, random).view(shape), inverted, out)


def _windows(
    values: Tensor, is_ct: Tensor, spec: PreprocessSpec, config: AugmentConfig | None, random: Generator
) -> Tensor:
    """As `labeler.preprocess.window`, with shaken windows when a config is given: (n, 3, size, size) in 0..1."""
    n = (values.shape[0], 1, 1)
    channels = []
    for (level, width), gamma in zip(spec.ct_windows, spec.mr_gammas, strict=True):
        wide = width * (1 + (_uniform(n, -1, 1, random, values) * config.window_width if config else 0))
        centre = level + (_uniform(n, -1, 1, random, values) * config.window_level * width if config else 0)
        ct = (values - (centre - wide / 2)) / wide
        channels.append(torch.where(is_ct.view(n), ct, values.clamp(0, 1) ** gamma))
    return torch.stack(channels, 1).clamp(0, 1)


def _erased(shown: Tensor, config: AugmentConfig, random: Generator) -> Tensor:
    """Some pictures lose a rectangle, so that no single corner decides."""
    n, side = shown.shape[0], shown.shape[-1]
    centre = _uniform((n, 2, 1), 0, side, random, shown)
    half = _uniform((n, 2, 1), 0.04 * side, 0.15 * side, random, shown)
    index = torch.arange(side, device=shown.device).view(1, 1, side)
    inside = (index - centre).abs() < half
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]
    hole &= _chance(shown, config.erase, random).view(n, 1, 1)
    return shown.masked_fill(hole[:, None], 0.0)
