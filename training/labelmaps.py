"""The collection's label maps -> bodies for synthesis: what each id is made of and shows, and its station.

`icrp110_*` are complete bodies, `oai_knee_*` the bones of a knee to which soft tissue is added, `synthseg_head_*` heads
in FreeSurfer's numbers with tissue classes from 500 on. `hubmap_*` and `thigh_muscles_*` lack the tissue around their
structures, `breast_*` the chest behind them: pictures of them teach nothing true, so they are not used.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy import ndimage

from labeler.prompts import Modality
from labeler.vocabulary import Vocabulary, vocabulary
from training.synthesis import Body, Tissue

Ids = NDArray[np.uint8]
Bits = NDArray[np.int32]

_AIR = Tissue(-1000, 10, (0.0, 0.03))
_FAT = Tissue(-95, 20, (0.35, 1.0))
_MUSCLE = Tissue(55, 15, (0.15, 0.6))
_BONE = Tissue(750, 250, (0.0, 0.15))
_MARROW = Tissue(180, 90, (0.2, 0.9))
_FLUID = Tissue(8, 12, (0.05, 1.0))
_SOFT = Tissue(45, 20, (0.2, 0.8))

#: By words in the names of the ICRP maps; the first that fits decides.
_TISSUES: tuple[tuple[tuple[str, ...], Tissue], ...] = (
    (("background",), _AIR),
    (("air inside", "nasal passage"), Tissue(-800, 150, (0.0, 0.08))),
    (("teeth",), Tissue(1600, 300, (0.0, 0.1))),
    (("cortical",), _BONE),
    (("spongiosa",), _MARROW),
    (("medullary",), Tissue(-20, 50, (0.3, 1.0))),
    (("cartilage",), Tissue(110, 40, (0.2, 0.8))),
    (("lung", "bronchi"), Tissue(-800, 80, (0.02, 0.2))),
    (("trachea",), Tissue(-950, 30, (0.0, 0.06))),
    (("adipose", "residual"), _FAT),
    (("muscle",), _MUSCLE),
    (("skin",), Tissue(10, 30, (0.1, 0.7))),
    (("vessel", "heart contents"), Tissue(110, 90, (0.0, 1.0))),
    (("brain",), Tissue(34, 6, (0.25, 0.9))),
    (("eye bulb",), _FLUID),
    (("contents",), Tissue(-60, 250, (0.02, 0.8))),
    (("kidney",), Tissue(90, 60, (0.2, 0.9))),
    (("spinal cord",), Tissue(35, 10, (0.3, 0.8))),
    (("liver", "spleen", "pancreas", "thyroid"), Tissue(75, 35, (0.2, 0.8))),
)

_ARMS = ("arms", "Humeri", "Ulnae", "Wrists")
_LEGS = ("legs", "Femora", "Tibiae", "Ankles")


def read_bodies(folder: Path, device: str | torch.device = "cpu") -> list[Body]:
    """All usable label maps of `folder` (`*.nii.gz` and `names.csv`)."""
    names = _names(folder / "names.csv")
    bodies = []
    for path in track(sorted(folder.glob("*.nii.gz")), description="Reading label maps"):
        name = path.name.removesuffix(".nii.gz")
        kind = next((kind for prefix, kind in KINDS.items() if name.startswith(prefix)), None)
        if kind is not None:
            image: Any = nib.as_closest_canonical(nib.load(path))
            mm = tuple(float(side) for side in image.header.get_zooms()[:3])
            bodies.append(kind.make(name, np.asarray(image.dataobj), mm, names.get(name, {}), torch.device(device)))
    return bodies


def _names(path: Path) -> dict[str, dict[int, tuple[str, tuple[str, ...]]]]:
    """map -> id -> (name, labels)."""
    table: dict[str, dict[int, tuple[str, tuple[str, ...]]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            labels = tuple(label for label in row["label"].split(";") if label)
            table.setdefault(row["map"], {})[int(row["id"])] = (row["name"], labels)
    return table


def _body(
    name: str,
    ids: Ids,
    stations: Bits,
    mm: tuple[float, ...],
    tissues: Mapping[int, Tissue],
    shows: Mapping[int, tuple[str, ...]],
    modalities: tuple[Modality, ...],
    device: torch.device,
    **more: Any,
) -> Body:
    words = vocabulary()
    count = max(int(ids.max()), *tissues) + 1
    matrix = torch.zeros((count, len(words.labels)))
    for index, labels in shows.items():
        for label in labels:
            matrix[index, words.index(label)] = 1.0
    carried = matrix.any(dim=0)
    random = np.random.default_rng(0)
    places = {}
    for index in shows:
        found = np.argwhere(ids == index)
        if len(found) and shows[index]:
            kept = found[random.choice(len(found), min(len(found), 500), replace=False)]
            places[index] = torch.from_numpy(kept)
    return Body(
        name,
        torch.from_numpy(np.ascontiguousarray(ids)).to(device),
        torch.from_numpy(np.ascontiguousarray(stations)).to(device),
        (mm[0], mm[1], mm[2]),
        tuple(tissues.get(index, _SOFT) for index in range(count)),
        matrix.to(device),
        carried.to(device),
        modalities,
        places,
        **more,
    )


# -- complete bodies -------------------------------------------------------------------------------------------------


def _icrp(
    name: str,
    ids: NDArray[Any],
    mm: tuple[float, ...],
    names: Mapping[int, tuple[str, tuple[str, ...]]],
    device: torch.device,
) -> Body:
    ids = np.where(ids == 141, 0, ids).astype(np.uint8)
    tissues = {index: _tissue_of(text) for index, (text, _) in names.items()}
    shows = {index: labels for index, (_, labels) in names.items()}
    ids, tissues, shows = _split_lower_leg(ids, names, tissues, shows)
    arms = tuple(index for index, (text, _) in names.items() if any(word in text for word in _ARMS))
    split = tuple(index for index in shows if index not in names)
    legs = split + tuple(index for index, (text, _) in names.items() if any(word in text for word in _LEGS))
    stations = _icrp_stations(ids, mm, shows, arms, legs, vocabulary())
    limb = torch.from_numpy(_single_limbs(ids, stations, arms, legs)).to(device)
    return _body(
        name,
        ids,
        stations,
        mm,
        tissues,
        shows,
        ("CT", "MR"),
        device,
        limbs=(arms,),
        limb=limb,
        field=(100.0, 520.0),
    )


def _single_limbs(ids: Ids, stations: Bits, arms: tuple[int, ...], legs: tuple[int, ...]) -> Ids:
    """1, 2 the arms, 3, 4 the legs, each from where it is clear of the trunk; 0 elsewhere."""
    clear = ("upper_limb", "hand", "thigh", "knee", "lower_leg", "foot")
    bits = sum(1 << vocabulary().index(station) for station in clear)
    side = (np.arange(ids.shape[0]) >= ids.shape[0] / 2).astype(np.uint8)[:, None, None]
    limb = np.where(np.isin(ids, arms), 1 + side, np.where(np.isin(ids, legs), 3 + side, 0))
    return np.where(stations & bits, limb, 0).astype(np.uint8)


def _tissue_of(text: str) -> Tissue:
    lower = text.lower()
    return next((tissue for words, tissue in _TISSUES if any(word in lower for word in words)), _SOFT)


def _split_lower_leg(
    ids: Ids,
    names: Mapping[int, tuple[str, tuple[str, ...]]],
    tissues: dict[int, Tissue],
    shows: dict[int, tuple[str, ...]],
) -> tuple[Ids, dict[int, Tissue], dict[int, tuple[str, ...]]]:
    """Tibiae, fibulae and patellae share ids: tell them apart by where they lie, and give each ids of its own."""
    shared = [index for index, (text, _) in names.items() if text.startswith("Tibiae")]
    bones = np.isin(ids, shared)
    parts, count = ndimage.label(bones)
    sizes = ndimage.sum(bones, parts, range(1, count + 1))
    order = np.argsort(sizes)[::-1]
    patellae = np.isin(parts, order[2:4] + 1)
    fibulae = np.zeros_like(bones)
    for part in order[:2] + 1:
        for z in np.flatnonzero((parts == part).any(axis=(0, 1))):
            pieces, number = ndimage.label(parts[:, :, z] == part)
            if number > 1:
                areas = ndimage.sum(pieces > 0, pieces, range(1, number + 1))
                fibulae[:, :, z] |= (pieces > 0) & (pieces != int(np.argmax(areas)) + 1)
    ids, tissues, shows = ids.copy(), dict(tissues), dict(shows)
    free = max(names) + 2
    for offset, (where, label) in enumerate(((patellae, "patella"), (fibulae, "fibula"))):
        for index in shared:
            new = free + 3 * offset + shared.index(index)
            ids[where & (ids == index)] = new
            tissues[new], shows[new] = tissues[index], (label,)
    for index in shared:
        shows[index] = ("tibia",)
    return ids, tissues, shows


def _icrp_stations(
    ids: Ids,
    mm: tuple[float, ...],
    shows: Mapping[int, tuple[str, ...]],
    arms: tuple[int, ...],
    legs: tuple[int, ...],
    words: Vocabulary,
) -> Bits:
    """One bit per station, from the heights of the landmarks that define the stations."""

    def reach(label: str) -> tuple[float, float]:
        members = [index for index, labels in shows.items() if label in labels]
        heights = np.flatnonzero(np.isin(ids, members).any(axis=(0, 1))) * mm[2]
        return float(heights.min()), float(heights.max())

    z = (np.arange(ids.shape[2]) * mm[2])[None, None, :]
    body, arm, leg = ids > 0, np.isin(ids, arms), np.isin(ids, legs)
    lung, hip, femur, humerus = reach("lung"), reach("hip_bone"), reach("femur"), reach("humerus")
    hand, foot = reach("hand_bones")[1], reach("foot_bones")[1]
    trunk = body & ~arm
    head_of_humerus = np.argwhere(np.isin(ids, [i for i, labels in shows.items() if "humerus" in labels]))
    top = head_of_humerus[head_of_humerus[:, 2] * mm[2] > humerus[1] - 30]
    middle = ids.shape[0] / 2
    sides = [top[top[:, 0] < middle, 0].mean(), top[top[:, 0] >= middle, 0].mean()]
    x = (np.arange(ids.shape[0]))[:, None, None]
    near_joint = np.minimum(*(np.abs(x - side) * mm[0] for side in sides)) < 55
    where = {
        "head": trunk & (z >= reach("mandible")[0]),
        "neck": trunk & (z >= lung[1] - 5) & (z <= reach("cervical_spine")[1] - 25),
        "shoulder": body & near_joint & (z >= humerus[1] - 55) & (z <= humerus[1] + 15),
        "chest": trunk & (z >= lung[0]) & (z <= lung[1]),
        "abdomen": trunk & (z >= hip[1]) & (z <= reach("liver")[1]),
        "pelvis": trunk & (z >= hip[0] - 10) & (z <= hip[1]),
        "upper_limb": arm & (z < humerus[1] - 40) & (z > hand),
        "hand": arm & (z <= hand + 15),
        "thigh": leg & (z <= femur[1] - 90) & (z >= femur[0] + 60),
        "knee": leg & (z <= femur[0] + 65) & (z >= femur[0] - 40),
        "lower_leg": leg & (z <= femur[0] - 40) & (z >= foot + 15),
        "foot": leg & (z <= foot + 15),
    }
    bits = np.zeros(ids.shape, np.int32)
    for station, mask in where.items():
        bits |= mask.astype(np.int32) << words.index(station)
    return bits


# -- knees and heads -------------------------------------------------------------------------------------------------


def _knee(name: str, ids: NDArray[Any], mm: tuple[float, ...], names: Mapping[int, Any], device: torch.device) -> Body:
    """Bones and their cartilage (1, 2 femur; 3, 4 tibia; 5, 6 patella); muscle, fat and skin are drawn by distance."""
    ids, mm = ids[::2, ::2, ::2].astype(np.uint8), (mm[0] * 2, mm[1] * 2, mm[2] * 2)
    distance = ndimage.distance_transform_edt(ids == 0, sampling=mm)
    soft = np.select([distance < 9, distance < 24, distance < 36], [11, 10, 12], 0).astype(np.uint8)
    ids = np.where(ids > 6, 2, ids)
    ids = np.where(ids == 0, soft, ids).astype(np.uint8)
    words = vocabulary()
    height = (np.arange(ids.shape[2]) * mm[2])[None, None, :] - np.flatnonzero((ids == 3).any(axis=(0, 1))).max() * mm[
        2
    ]
    bits = np.zeros(ids.shape, np.int32)
    bits |= ((ids > 0) & (height > -40) & (height < 75)).astype(np.int32) << words.index("knee")
    bits |= ((ids > 0) & (height > 65)).astype(np.int32) << words.index("thigh")
    bits |= ((ids > 0) & (height < -40)).astype(np.int32) << words.index("lower_leg")
    cartilage = Tissue(110, 40, (0.2, 1.0))
    tissues = {0: _AIR, 1: _MARROW, 2: cartilage, 3: _MARROW, 4: cartilage, 5: _MARROW, 6: cartilage}
    tissues |= {10: _MUSCLE, 11: Tissue(20, 40, (0.1, 0.9)), 12: _FAT}
    shows = {1: ("femur",), 3: ("tibia",), 5: ("patella",)}
    return _body(name, ids, bits, mm, tissues, shows, ("MR", "MR", "CT"), device, field=(120.0, 190.0))


def _head(name: str, ids: NDArray[Any], mm: tuple[float, ...], names: Mapping[int, Any], device: torch.device) -> Body:
    """FreeSurfer's numbers: below 300 the brain and its fluid, from 500 on the rest of the head."""
    values = np.unique(ids)
    compact = np.searchsorted(values, ids).astype(np.uint8)
    tissues, shows = {}, {}
    fluid = {4, 5, 14, 15, 24, 43, 44, 72}
    for new, old in enumerate(values.tolist()):
        brain = Tissue(34, 6, (0.2, 0.9))
        tissues[new] = _AIR if old == 0 else _FLUID if old in fluid else brain if old < 300 else _any_tissue(old)
        if old in (7, 8, 46, 47):
            shows[new] = ("cerebellum",)
        elif 0 < old < 300 and old not in fluid | {16, 30, 62, 85, 136, 137, 163, 164}:
            shows[new] = ("brain",)
    words = vocabulary()
    brain_bottom = np.flatnonzero((np.isin(ids, [7, 8, 46, 47])).any(axis=(0, 1))).min() * mm[2]
    z = (np.arange(ids.shape[2]) * mm[2])[None, None, :]
    bits = ((compact > 0) & (z > brain_bottom - 60)).astype(np.int32) << words.index("head")
    return _body(name, compact, bits, mm, tissues, shows, ("MR",), device, field=(160.0, 280.0))


def _any_tissue(number: int) -> Tissue:
    """Unnamed tissue classes of a head: any brightness, one draw per class and picture."""
    return Tissue(40 + number % 7, 20, (0.02, 0.98))


_Maker = Callable[[str, NDArray[Any], tuple[float, ...], Mapping[int, Any], torch.device], Body]


@dataclass(frozen=True)
class Kind:
    """Label maps of one source: how a body is made of one, their share of the pictures, what a model card says."""

    make: _Maker
    share: float
    source: str


#: By the beginning of the maps' names.
KINDS = {
    "icrp110": Kind(
        _icrp, 0.6, "reference phantoms of ICRP Publication 110, (c) ICRP, research use, not to be redistributed"
    ),
    "oai_knee": Kind(_knee, 0.25, "knee bones of the Osteoarthritis Initiative"),
    "synthseg_head": Kind(_head, 0.15, "heads of SynthSeg, Apache-2.0"),
}


def bodies_by_kind(bodies: Sequence[Body]) -> list[tuple[float, list[Body]]]:
    """Groups of bodies of one source, each with its share of the synthetic pictures: whole bodies show the most."""
    groups = [(kind.share, [b for b in bodies if b.name.startswith(prefix)]) for prefix, kind in KINDS.items()]
    return [(share, members) for share, members in groups if members]
