"""Label maps -> images of random contrast with exact labels (the idea of SynthSeg, Billot et al. 2023).

Planes of any orientation, size and place are cut through a label map, warped, and painted: in HU with a draw of every
tissue's density, or as an imagined MR sequence with a random brightness per tissue. What a plane shows is counted in
its own pixels, so the labels are exact. All of it is batched torch, on the device of the maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from labeler.preprocess import AIR, HU_RANGE, PreprocessSpec, ruler_pixels
from labeler.prompts import PLANES, Modality, PlaneName
from labeler.vocabulary import Vocabulary
from training.captions import Shown
from training.corpus import ABSENT, PRESENT, UNKNOWN

#: Columns and rows of the picture, RAS, before any tilt.
_AXES: dict[PlaneName, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "axial": ((-1, 0, 0), (0, -1, 0)),
    "sagittal": ((0, -1, 0), (0, 0, -1)),
    "coronal": ((-1, 0, 0), (0, 0, -1)),
}


@dataclass(frozen=True)
class Tissue:
    """How a tissue looks: mean and spread in HU, and the range of its brightness in MR."""

    hu: float
    spread: float
    mr: tuple[float, float]


@dataclass(frozen=True)
class Body:
    """One label map, ready for cutting.

    Attributes:
        ids: uint8 (x, y, z), RAS+; 0 is air around the body.
        stations: int32 (x, y, z), one bit per station.
        mm: voxel sides.
        tissues: one per id.
        shows: float (ids, labels), 1 where an id is a part of a label.
        carried: bool (labels,), labels that the map knows; all others are unknown where they might be.
        modalities: what the map can be painted as.
        places: where planes may be centred.
        limbs: groups of ids that may be left out together (arms beside the trunk).
        limb: uint8 (x, y, z), a number per limb that scanners show alone, 0 elsewhere; None where there are none.
    """

    name: str
    ids: Tensor
    stations: Tensor
    mm: tuple[float, float, float]
    tissues: tuple[Tissue, ...]
    shows: Tensor
    carried: Tensor
    modalities: tuple[Modality, ...]
    #: For every id that shows a label, some voxels of it, (k, 3), on the CPU.
    places: dict[int, Tensor]
    limbs: tuple[tuple[int, ...], ...] = ()
    limb: Tensor | None = None
    #: Smallest and largest field of view, mm.
    field: tuple[float, float] = (130.0, 480.0)


@dataclass(frozen=True)
class SynthesisConfig:
    """How planes are cut and warped."""

    #: Degrees of tilt out of the nominal plane (standard deviation).
    tilt: float = 7.0
    #: Relative size of the body along each axis.
    size: float = 0.12
    #: Largest warp, as a share of the field of view.
    warp: float = 0.03
    #: Share of planes framed by the body that they cut, not by one structure.
    framed_by_body: float = 0.6
    #: Share of pictures without the limbs that lie beside the trunk.
    without_limbs: float = 0.6
    #: Share of pictures of a limb that show it alone, as limbs are scanned.
    limb_alone: float = 0.5
    #: Pixels that a label needs to be present; with fewer it is unknown.
    enough: int = 20
    #: Share of the body's pixels that a station needs; with a fifth of that it is unknown.
    station_share: float = 0.05


@dataclass(frozen=True)
class Synthetic:
    """A batch: canvases (n, canvas, canvas) in HU or 0..1, what they show, and their rulers in picture pixels."""

    values: Tensor
    is_ct: Tensor
    ruler: Tensor
    shown: list[Shown]


def synthesise(
    body: Body, count: int, words: Vocabulary, spec: PreprocessSpec, config: SynthesisConfig, random: Generator
) -> Synthetic:
    """Cut and paint `count` planes of one body."""
    device = body.ids.device
    names = [PLANES[i] for i in _integers((count,), len(PLANES), random, device).tolist()]
    centre = _centres(body, count, random)
    sight = _Sight(_hidden(body, centre, config, random), _alone(body, centre, config, random))
    frame = _framed(body, names, centre, sight, config, random)
    points = _points(body, names, frame, spec.canvas, config, random)
    nearest = _visible(body, points.round().long(), sight)
    is_ct = torch.tensor(
        [body.modalities[i] == "CT" for i in _integers((count,), len(body.modalities), random, device).tolist()],
        device=device,
    )
    brightness = torch.where(is_ct[:, None], _ct_paint(body, count, random), _mr_paint(body, count, random))
    values = _painted(body, points, sight, brightness)
    low, high = torch.where(is_ct, HU_RANGE[0], 0.0), torch.where(is_ct, HU_RANGE[1], 1.0)
    values = torch.maximum(torch.minimum(values, high.view(-1, 1, 1)), low.view(-1, 1, 1))
    stations = _at(body.stations, points.round().long())
    states = _states(body, nearest, stations, words, config)
    ruler = torch.tensor([ruler_pixels(mm / spec.canvas, spec) for mm in frame.field.tolist()], device=device)
    shown = [
        Shown("CT" if ct else "MR", name, row)
        for ct, name, row in zip(is_ct.tolist(), names, states.cpu().numpy(), strict=True)
    ]
    return Synthetic(values, is_ct, ruler, shown)


@dataclass(frozen=True)
class _Sight:
    """What the pictures leave out: bool (n, ids), and the only limb that is shown (n,), 0 where all are."""

    hidden: Tensor
    alone: Tensor


@dataclass(frozen=True)
class _Frame:
    """Where the planes lie: centres in voxels (n, 3), fields of view in mm (n,), columns and rows (n, 3)."""

    centre: Tensor
    field: Tensor
    columns: Tensor
    rows: Tensor


def _framed(
    body: Body,
    names: Sequence[PlaneName],
    centre: Tensor,
    sight: _Sight,
    config: SynthesisConfig,
    random: Generator,
) -> _Frame:
    """Most planes are framed by the body that they cut, as a technologist would; the rest by the structure alone."""
    n, device = len(names), centre.device
    columns, rows = (
        torch.tensor([_AXES[name][i] for name in names], dtype=torch.float32, device=device) for i in (0, 1)
    )
    columns, rows = _tilted(columns, rows, config, random)
    low, high = body.field
    close = torch.exp(_uniform((n,), math.log(low), math.log(high), random, device))
    wide = _Frame(centre, torch.full((n,), 1.3 * high, device=device), columns, rows)
    seen = _visible(body, _points(body, names, wide, 48, None, random).round().long(), sight) > 0
    middle, extent = _extent(seen)
    mm = torch.tensor(body.mm, device=device)
    step = (columns * middle[:, 1:] + rows * middle[:, :1]) * wide.field[:, None] / mm
    whole = (extent * wide.field * _uniform((n,), 1.0, 1.25, random, device)).clamp(low, high)
    by_body = (_uniform((n,), 0, 1, random, device) < config.framed_by_body) & (extent > 0)
    shift = columns * _uniform((n, 1), -0.1, 0.1, random, device) + rows * _uniform((n, 1), -0.1, 0.1, random, device)
    field = torch.where(by_body, whole, close)
    placed = torch.where(by_body[:, None], centre + step, centre) + shift * field[:, None] / mm
    return _Frame(placed, field, columns, rows)


def _extent(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Middle (row, column) and longer side of what is seen, as shares: (n, side, side) -> (n, 2), (n,)."""
    side = seen.shape[-1]
    line = torch.arange(side, device=seen.device)
    middles, lengths = [], []
    for along in (seen.any(2), seen.any(1)):
        first = torch.where(along, line, side).min(1).values
        last = torch.where(along, line, -1).max(1).values
        middles.append((first + last + 1) / (2 * side) - 0.5)
        lengths.append((last - first + 1).clamp(min=0) / side)
    found = seen.flatten(1).any(1)
    return torch.stack(middles, 1) * found[:, None], torch.maximum(*lengths) * found


def _points(
    body: Body,
    names: Sequence[PlaneName],
    frame: _Frame,
    side: int,
    config: SynthesisConfig | None,
    random: Generator,
) -> Tensor:
    """Voxel coordinates (n, side, side, 3) of the planes' pixels; without a config neither warped nor scaled."""
    n, device = len(names), frame.field.device
    line = (torch.arange(side, device=device) + 0.5) / side - 0.5
    v, u = (t.expand(n, side, side) for t in torch.meshgrid(line, line, indexing="ij"))
    scale = torch.ones((n, 3), device=device)
    if config is not None:
        warp = _uniform((n, 2, 5, 5), -config.warp, config.warp, random, device)
        warp = F.interpolate(warp, (side, side), mode="bicubic", align_corners=True)
        u, v = u + warp[:, 0], v + warp[:, 1]
        scale = 1 + _uniform((n, 3), -config.size, config.size, random, device)
    along = u[..., None] * frame.columns[:, None, None] + v[..., None] * frame.rows[:, None, None]
    offset = along * frame.field.view(n, 1, 1, 1) * scale.view(n, 1, 1, 3)
    return frame.centre.view(n, 1, 1, 3) + offset / torch.tensor(body.mm, device=device)


def _visible(body: Body, index: Tensor, sight: _Sight) -> Tensor:
    """Ids (n, side, side) at integer voxel coordinates; what is left out is air."""
    ids = _at(body.ids, index)
    out = sight.hidden.gather(1, ids.flatten(1)).view_as(ids)
    if body.limb is not None:
        alone = sight.alone.view(-1, 1, 1)
        out |= (alone > 0) & (_at(body.limb, index) != alone)
    return torch.where(out, 0, ids)


def _tilted(columns: Tensor, rows: Tensor, config: SynthesisConfig, random: Generator) -> tuple[Tensor, Tensor]:
    """Turn each plane a little about both of its own axes and about its normal."""
    normal = torch.linalg.cross(columns, rows)
    angles = torch.randn((3, len(columns), 1), generator=random, device=columns.device) * math.radians(config.tilt)
    rows = rows * torch.cos(angles[0]) + normal * torch.sin(angles[0])
    normal = torch.linalg.cross(columns, rows)
    columns = columns * torch.cos(angles[1]) + normal * torch.sin(angles[1])
    return (
        columns * torch.cos(angles[2]) + rows * torch.sin(angles[2]),
        rows * torch.cos(angles[2]) - columns * torch.sin(angles[2]),
    )


def _centres(body: Body, count: int, random: Generator) -> Tensor:
    """Places (n, 3) inside randomly chosen labels, so that rare structures are cut as often as large ones."""
    shows = body.shows.bool().cpu()
    members = [[index for index in body.places if shows[index, label]] for label in range(shows.shape[1])]
    members = [ids for ids in members if ids]
    # one draw for all: asking a GPU for single numbers costs more than the pictures
    draws = torch.rand((count, 3), generator=random, device=body.ids.device).tolist()
    centres = []
    for label, index, place in draws:
        ids = members[int(label * len(members))]
        places = body.places[ids[int(index * len(ids))]]
        centres.append(places[int(place * len(places))])
    return torch.stack(centres).float().to(body.ids.device)


def _hidden(body: Body, centre: Tensor, config: SynthesisConfig, random: Generator) -> Tensor:
    """bool (n, ids): what is left out of each picture; never the limb that the picture is about."""
    hidden = torch.zeros((len(centre), len(body.tissues)), dtype=torch.bool, device=centre.device)
    wanted = _at(body.ids, centre.long())
    for group in body.limbs:
        members = torch.tensor(group, device=centre.device)
        about = (wanted[:, None] == members).any(1)
        out = (_uniform((len(centre),), 0, 1, random, centre.device) < config.without_limbs) & ~about
        hidden[:, members] |= out[:, None]
    return hidden


def _alone(body: Body, centre: Tensor, config: SynthesisConfig, random: Generator) -> Tensor:
    """(n,) the limb that a picture shows alone, 0 for none."""
    if body.limb is None:
        return torch.zeros(len(centre), dtype=torch.long, device=centre.device)
    chosen = _uniform((len(centre),), 0, 1, random, centre.device) < config.limb_alone
    return _at(body.limb, centre.long()) * chosen


def _ct_paint(body: Body, count: int, random: Generator) -> Tensor:
    """HU (n, ids): each tissue's mean with its own spread, and now and then contrast medium shared by similar ones."""
    mean = torch.tensor([t.hu for t in body.tissues], device=body.ids.device)
    spread = torch.tensor([t.spread for t in body.tissues], device=body.ids.device)
    draw = torch.randn((count, len(body.tissues)), generator=random, device=body.ids.device)
    painted = mean + spread * draw
    painted[:, 0] = AIR
    return painted


def _mr_paint(body: Body, count: int, random: Generator) -> Tensor:
    """Brightness (n, ids): tissues of one kind share a draw from their range, each id a little off it."""
    kinds: dict[Tissue, int] = {}
    kind = torch.tensor([kinds.setdefault(tissue, len(kinds)) for tissue in body.tissues], device=body.ids.device)
    low, high = (torch.tensor([tissue.mr[i] for tissue in kinds], device=body.ids.device) for i in (0, 1))
    draw = low + (high - low) * _uniform((count, len(kinds)), 0, 1, random, body.ids.device)
    each = torch.randn((count, len(kind)), generator=random, device=body.ids.device) * 0.05
    painted = (draw[:, kind] + each).clamp(0, 1)
    painted[:, 0] = 0.0
    return painted


def _painted(body: Body, points: Tensor, sight: _Sight, brightness: Tensor) -> Tensor:
    """Trilinear mixture of the eight neighbours' brightness: partial volume as a scanner averages it."""
    base = points.floor()
    share = points - base
    corner = base.long()
    values = torch.zeros(points.shape[:-1], device=points.device)
    for bits in range(8):
        step = torch.tensor([bits & 1, bits >> 1 & 1, bits >> 2 & 1], device=points.device)
        weight = torch.where(step.bool(), share, 1 - share).prod(-1)
        ids = _visible(body, corner + step, sight)
        values += weight * brightness.gather(1, ids.flatten(1)).view_as(values)
    return values


def _at(volume: Tensor, index: Tensor) -> Tensor:
    """Values at integer voxel coordinates (..., 3), 0 outside; int64."""
    size = torch.tensor(volume.shape, device=volume.device)
    inside = ((index >= 0) & (index < size)).all(-1)
    safe = torch.minimum(index.clamp(min=0), size - 1)
    flat = (safe[..., 0] * size[1] + safe[..., 1]) * size[2] + safe[..., 2]
    return torch.where(inside, volume.reshape(-1)[flat].long(), 0)


def _states(body: Body, ids: Tensor, stations: Tensor, words: Vocabulary, config: SynthesisConfig) -> Tensor:
    """int8 (n, labels) from what the pixels are."""
    n = len(ids)
    histogram = torch.zeros((n, len(body.tissues)), device=ids.device)
    histogram.scatter_add_(1, ids.flatten(1), torch.ones_like(ids.flatten(1), dtype=torch.float))
    pixels = histogram @ body.shows
    states = torch.full(pixels.shape, ABSENT, dtype=torch.int8, device=ids.device)
    states[pixels > 0] = UNKNOWN
    states[pixels >= config.enough] = PRESENT
    body_pixels = (ids > 0).flatten(1).sum(1).clamp(min=1)
    for column, label in enumerate(words.labels):
        if label.kind == "station":
            share = ((stations >> column & 1).bool() & (ids > 0)).flatten(1).sum(1) / body_pixels
            states[:, column] = torch.where(share > config.station_share / 5, UNKNOWN, ABSENT)
            states[share > config.station_share, column] = PRESENT
        elif not body.carried[column]:
            homes = [words.index(name) for name in label.stations]
            possible = (states[:, homes] != ABSENT).any(1)
            states[:, column] = torch.where(possible, UNKNOWN, ABSENT)
    return states


def _uniform(shape: tuple[int, ...], low: float, high: float, random: Generator, device: torch.device) -> Tensor:
    return torch.rand(shape, generator=random, device=device) * (high - low) + low


def _integers(shape: tuple[int, ...], below: int, random: Generator, device: torch.device) -> Tensor:
    return torch.randint(below, shape, generator=random, device=device)
