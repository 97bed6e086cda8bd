"""The TotalSegmentator dataset layout: one folder a subject, an image, one mask per structure.

    ROOT/s0001/ct.nii.gz (or mri.nii.gz)
    ROOT/s0001/segmentations/liver.nii.gz ...
    ROOT/meta.csv                            optional: image_id;...;split

Every volume is read in all three planes. A structure is present where its mask has enough pixels; a structure without a
mask file is unknown. Stations follow from the structures that bound them; where these do not decide they are unknown.
"""

from __future__ import annotations

import csv
import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from labeler.nifti import series_of_volume
from labeler.preprocess import PreprocessSpec, canvas
from labeler.prompts import Modality
from labeler.vocabulary import vocabulary
from training.corpus import ABSENT, PRESENT, UNKNOWN, LabelledStack, Split, States

Mask = NDArray[np.bool_]

#: Slices kept per volume and plane; neighbours are alike.
MAX_SLICES = 36
#: mm2 of a structure that a slice must show; with less it is unknown.
ENOUGH_MM2 = 30.0
#: Share of subjects held out where `meta.csv` does not split.
HELD_OUT = 0.15


def class_table() -> dict[Modality, dict[str, str]]:
    """Class -> label of our vocabulary ("" for none), per modality."""
    table = tomllib.loads(files(__package__).joinpath("totalsegmentator.toml").read_text())
    return {"CT": table["CT"], "MR": table["MR"]}


def read_totalsegmentator(root: Path, spec: PreprocessSpec) -> Iterator[LabelledStack]:
    """All subjects in all three planes.

    Raises:
        ValueError: a mask of another shape than its image, or a folder without subjects.
    """
    splits = _splits(root / "meta.csv")
    subjects = sorted(p for p in root.iterdir() if (p / "segmentations").is_dir())
    if not subjects:
        raise ValueError(f"{root}: no subject folders with segmentations/ below them")
    for folder in track(subjects, description="Reading TotalSegmentator"):
        split = splits.get(folder.name) or split_of(folder.name)
        yield from _subject(folder, split, spec)


def split_of(subject: str) -> Split:
    """A person's split, by the hash of who it is: the same in every run and collection."""
    share = int(hashlib.sha256(subject.encode()).hexdigest()[:8], 16) / 2**32
    return "val" if share < HELD_OUT else "train"


def _splits(path: Path) -> dict[str, Split]:
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = csv.DictReader(file, delimiter=";")
        return {row["image_id"]: "train" if row.get("split") == "train" else "val" for row in rows}


def _subject(folder: Path, split: Split, spec: PreprocessSpec) -> Iterator[LabelledStack]:
    modality: Modality = "CT" if (folder / "ct.nii.gz").exists() else "MR"
    image = _canonical(folder / ("ct.nii.gz" if modality == "CT" else "mri.nii.gz"))
    volume = np.asarray(image.dataobj, np.float32)
    masks = _masks(folder / "segmentations", class_table()[modality], volume.shape)
    mm = np.abs(np.linalg.norm(image.affine[:3, :3], axis=0))
    stations = station_heights(masks, volume.shape[2], float(mm[2]))
    body: Mask = np.asarray(volume > (-300 if modality == "CT" else np.percentile(volume, 99) * 0.1))
    for name, axes in (("axial", (0, 1, 2)), ("coronal", (0, 2, 1)), ("sagittal", (1, 2, 0))):
        kept = _thinned(volume.shape[axes[2]])
        turned = volume.transpose(axes)[:, :, kept]
        affine = image.affine[:, [*axes, 3]].copy()
        affine[:3, 2] *= volume.shape[axes[2]] / len(kept)
        series = series_of_volume(np.ascontiguousarray(turned), affine, modality, spec.canvas)
        if not series.stacks:
            continue
        states = _states(masks, stations, body, axes, kept, mm)
        planes = series.stacks[0].planes
        square = canvas([plane.pixels for plane in planes], series.stacks[0].mm, modality, spec)
        yield LabelledStack(
            name=f"{folder.name} {name}",
            subject=folder.name,
            split=split,
            modality=modality,
            plane=series.stacks[0].plane,
            values=square.values.astype(np.float16),
            states=states[[plane.source.index for plane in planes]],
            positions=tuple(plane.position for plane in planes),
            mm=square.mm,
            licence="TotalSegmentator dataset (CC BY 4.0)",
        )


def _canonical(path: Path) -> Any:
    return nib.as_closest_canonical(nib.load(path))


def _masks(folder: Path, classes: Mapping[str, str], shape: tuple[int, ...]) -> dict[str, Mask]:
    """Label -> union of the masks of its classes, for every label that has at least one mask file."""
    masks: dict[str, Mask] = {}
    for name, label in classes.items():
        path = folder / f"{name}.nii.gz"
        if not label or not path.exists():
            continue
        mask = np.asarray(_canonical(path).dataobj) > 0
        if mask.shape != shape:
            raise ValueError(f"{path}: shape {mask.shape}, the image has {shape}")
        masks[label] = masks[label] | mask if label in masks else mask
    return masks


def _thinned(count: int) -> list[int]:
    return sorted(set(np.linspace(0, count - 1, min(count, MAX_SLICES)).round().astype(int).tolist()))


def _states(
    masks: Mapping[str, Mask],
    stations: NDArray[np.int8],
    body: Mask,
    axes: tuple[int, int, int],
    kept: list[int],
    mm: NDArray[np.float64],
) -> States:
    words = vocabulary()
    states = np.full((len(kept), len(words.labels)), UNKNOWN, np.int8)
    area = float(mm[axes[0]] * mm[axes[1]])
    for label, mask in masks.items():
        shown = mask.transpose(axes)[:, :, kept].sum(axis=(0, 1)) * area
        states[:, words.index(label)] = np.select([shown >= ENOUGH_MM2, shown > 0], [PRESENT, UNKNOWN], ABSENT)
    columns = [words.index(name) for name in words.stations]
    if axes[2] == 2:
        states[:, columns] = stations[kept]
        return states
    heights: Mask = np.asarray(body.transpose(axes)[:, :, kept].any(axis=0))
    for row in range(len(kept)):
        cut = stations[heights[:, row]]
        if len(cut):
            share = (cut == PRESENT).mean(axis=0)
            none = (cut == ABSENT).all(axis=0)
            states[row, columns] = np.select([share > 0.05, none], [PRESENT, ABSENT], UNKNOWN)
    return states


def station_heights(masks: Mapping[str, Mask], count: int, mm: float) -> NDArray[np.int8]:
    """int8 (heights, stations): which stations an axial slice shows, from the structures that bound them."""
    names = vocabulary().stations
    found = np.full((count, len(names)), UNKNOWN, np.int8)
    marks = _Landmarks(masks, count, mm)
    for station, present, absent in (*_upper(marks), *_trunk(marks), *_limbs(marks)):
        found[:, names.index(station)] = np.select([present, absent], [PRESENT, ABSENT], UNKNOWN)
    return found


#: A station, where it is certainly seen, and where it certainly is not.
_Rule = tuple[str, Mask, Mask]


class _Landmarks:
    """Heights at which structures are seen, foot to head."""

    def __init__(self, masks: Mapping[str, Mask], count: int, mm: float) -> None:
        self._seen: dict[str, Mask] = {label: np.asarray(mask.any(axis=(0, 1)), bool) for label, mask in masks.items()}
        self._z = np.arange(count)
        self.mm = mm
        self.never = np.zeros(count, bool)
        self.always = np.ones(count, bool)

    def at(self, label: str) -> Mask:
        return self._seen.get(label, self.never)

    def known(self, label: str) -> bool:
        return label in self._seen

    def reach(self, label: str) -> tuple[int, int] | None:
        heights = np.flatnonzero(self.at(label))
        return (int(heights[0]), int(heights[-1])) if len(heights) else None

    def above(self, height: float) -> Mask:
        mask: Mask = np.greater_equal(self._z, height)
        return mask

    def between(self, low: float, high: float) -> Mask:
        mask: Mask = np.less_equal(self._z, high)
        return mask & self.above(low)

    @property
    def torso(self) -> bool:
        return any(self.reach(label) for label in ("lung", "liver", "hip_bone", "kidney"))


def _upper(marks: _Landmarks) -> Iterator[_Rule]:
    """Head down to the skull's lower edge and somewhat below; neck from C2 to the lung tops."""
    head, lung, spine = marks.reach("skull") or marks.reach("brain"), marks.reach("lung"), marks.reach("cervical_spine")
    if head:
        yield "head", marks.above(head[0]), ~marks.above(head[0] - 60 / marks.mm)
    elif marks.torso:
        yield "head", marks.never, marks.always
    if spine:
        inlet = lung[1] if lung else spine[0]
        inside = marks.between(inlet, spine[1] - 25 / marks.mm)
        yield "neck", inside, ~marks.between(inlet - 20 / marks.mm, spine[1])
    elif lung:
        yield "neck", marks.never, ~marks.above(lung[1] - 20 / marks.mm)


def _trunk(marks: _Landmarks) -> Iterator[_Rule]:
    """Chest by the lungs, abdomen from the iliac crest to the liver's dome, pelvis by the hip bones."""
    lung, liver, hip = marks.reach("lung"), marks.reach("liver"), marks.reach("hip_bone")
    if lung:
        inside = marks.between(*lung)
        yield "chest", inside, ~inside
    elif marks.torso:
        yield "chest", marks.never, marks.always
    if liver or hip:
        inside = marks.between(hip[1] if hip else 0, liver[1] if liver else len(marks.always))
        yield "abdomen", inside if liver else marks.never, ~inside
    if hip:
        inside = marks.between(hip[0] - 10 / marks.mm, hip[1])
        yield "pelvis", inside, ~inside
    elif lung or liver:
        yield "pelvis", marks.never, marks.always


def _limbs(marks: _Landmarks) -> Iterator[_Rule]:
    """Shoulder where humerus and scapula meet, thigh where a femur has left the hip; the rest only what is too high."""
    if marks.known("humerus"):
        yield "shoulder", marks.at("humerus") & marks.at("scapula"), ~marks.at("humerus")
    if not marks.torso and marks.reach("skull") is None:
        return
    free = marks.at("femur") & ~marks.at("hip_bone")
    yield "thigh", free, ~marks.at("femur")
    for station in ("knee", "lower_leg", "foot"):
        yield station, marks.never, ~free
