"""The plan's images as files: cut from three bodies drawn from geometry, small enough that the model is quick."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_node.chaos.plan import ASIDE, UNLABELLED, Course, Scan
from dicom_node.demo.phantoms import Volume, head, leg, paint, torso, with_noise
from dicom_node.demo.scanner import image_series
from dicom_node.spool import Spool
from dicom_node.uids import derived

_SIDE = 96
_BODIES = {"torso": (torso, 400.0, "CT"), "head": (head, 250.0, "MR"), "leg": (leg, 220.0, "CT")}


@dataclass(frozen=True)
class Image:
    """One file as a scanner sends it; `digest` is of its data set."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    digest: str


@dataclass(frozen=True)
class Errand:
    """What one scanner does in one go.

    Attributes:
        parcels: what it sends over an association each, one after the other.
        waits: the last parcel is held back until the study has been reported.
        after: blows that fall before.
    """

    parcels: tuple[tuple[Image, ...], ...]
    after: int
    waits: bool = False

    @property
    def images(self) -> list[Image]:
        return [image for parcel in self.parcels for image in parcel]


@dataclass(frozen=True)
class Expected:
    """What must come of a study: current reports by series with the images that each covers."""

    study_uid: str
    course: Course
    reports: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        return self.course not in UNLABELLED | ASIDE


@cache
def _body(name: str) -> tuple[Volume, list[float]]:
    shapes, field_of_view, modality = _BODIES[name]
    heights = np.linspace(20, 200, 6)
    volume = with_noise(paint(shapes(), field_of_view, _SIDE, heights, modality), modality, 7)
    return (volume if modality == "CT" else 1200 * volume), heights.tolist()


def scanned(scans: Sequence[Scan], seed: int, folder: Path) -> tuple[list[Errand], list[Expected]]:
    """Write all images and say in which errands they go and what must come of them."""
    made = [(scan, _series(scan, seed, folder / f"{scan.number:04d}")) for scan in scans]
    expected = [_expected(scan, series) for scan, series in made]
    mixed = [(scan, series) for scan, series in made if scan.course == Course.INTERLEAVED]
    errands = [_errand(scan, series) for scan, series in made if scan.course != Course.INTERLEAVED]
    for (first, ours), (_, theirs) in zip(mixed[::2], mixed[1::2], strict=False):
        errands.append(Errand((tuple(_woven(ours[0], theirs[0])),), first.after))
    if len(mixed) % 2:
        errands.append(Errand((tuple(mixed[-1][1][0]),), mixed[-1][0].after))
    return sorted(errands, key=lambda errand: errand.after), expected


def _woven(one: Sequence[Image], other: Sequence[Image]) -> Iterator[Image]:
    for position in range(max(len(one), len(other))):
        yield from (*one[position : position + 1], *other[position : position + 1])


def _errand(scan: Scan, series: Sequence[Sequence[Image]]) -> Errand:
    images = [image for one in series for image in one]
    match scan.course:
        case Course.SPLIT:
            return Errand(tuple(tuple(images[part::3]) for part in range(3)), scan.after)
        case Course.LATE:
            return Errand((tuple(images[:-1]), tuple(images[-1:])), scan.after, waits=True)
        case Course.TWICE:
            return Errand((tuple(images), tuple(images)), scan.after)
        case _:
            return Errand((tuple(images),), scan.after)


def _expected(scan: Scan, series: Sequence[Sequence[Image]]) -> Expected:
    found = Expected(series[0][0].study_uid, scan.course)
    if found.labelled:
        found.reports.update({one[0].series_uid: frozenset(image.sop_instance_uid for image in one) for one in series})
    return found


def _series(scan: Scan, seed: int, folder: Path) -> list[list[Image]]:
    folder.mkdir(parents=True)
    study_uid = derived("chaos study", str(seed), str(scan.number))
    made = []
    for position, count in enumerate(scan.series):
        images = _drawn(scan, f"chaos {seed} {scan.number} {position}", count)
        for image in images:
            image.StudyInstanceUID = study_uid
            if scan.course != Course.TWO_PATIENTS:
                image.PatientID, image.PatientName = f"CHAOS-{scan.number}", f"Chaos^{scan.number}"
        made.append([_saved(image, folder / f"{position}-{n}.dcm") for n, image in enumerate(images)])
    return made


def _drawn(scan: Scan, title: str, count: int) -> list[Dataset]:
    name = list(_BODIES)[scan.number % len(_BODIES)]
    volume, heights = _body(name)
    _, field_of_view, modality = _BODIES[name]
    pixel = field_of_view / _SIDE
    pushed = image_series(title, volume[:count], modality, name.upper(), pixel, heights[:count], title.replace(" ", ""))
    images = list(pushed.images)
    if scan.course == Course.CAPTURE:
        for image in images:
            image.SOPClassUID, image.Modality = SecondaryCaptureImageStorage, "OT"
    if scan.course == Course.OTHER_BYTES:
        again = deepcopy(images[0])
        again.PixelData = images[1].PixelData
        images.append(again)
    return images


def _saved(image: Dataset, path: Path) -> Image:
    image.save_as(path, enforce_file_format=True)
    return Image(
        path,
        str(image.SOPClassUID),
        str(image.SOPInstanceUID),
        str(image.StudyInstanceUID),
        str(image.SeriesInstanceUID),
        Spool.digest_of(path),
    )
