"""Data sets, series and answers in one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset

from dicom_node.demo.phantoms import head, leg, paint, torso, with_noise
from dicom_node.demo.scanner import image_series
from dicom_node.uids import derived
from labeler.result import BundleInfo, Finding, SeriesLabels, SliceLabels
from labeler.slices import Skip, Skipped, Source
from labeler.vocabulary import vocabulary


@cache
def _volume(kind: str, images: int) -> tuple[np.ndarray, float, list[float]]:
    shapes, field, top = {"torso": (torso, 400.0, 380.0), "head": (head, 250.0, 185.0), "leg": (leg, 220.0, 200.0)}[
        kind
    ]
    heights = np.linspace(0, top, images)
    modality = "MR" if kind == "head" else "CT"
    volume = with_noise(paint(shapes(), field, 96, heights, modality), modality, 7)
    return (volume if modality == "CT" else 1200 * volume), field / 96, heights.tolist()


def a_series(kind: str = "torso", images: int = 12, name: str = "A", body_part: str = "CHEST") -> list[Dataset]:
    """A CT torso, MR head or CT leg as a scanner would send it; `name` sets study, series and patient apart."""
    volume, pixel, heights = _volume(kind, images)
    modality = "MR" if kind == "head" else "CT"
    return list(image_series(f"{kind} {name}", volume, modality, body_part, pixel, heights, name).images)


def saved(images: list[Dataset], folder: Path) -> Path:
    """Write images as files 0001.dcm ... and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, start=1):
        image.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    return folder


def changed(images: list[Dataset], change: Callable[[Dataset], Any]) -> list[Dataset]:
    for image in images:
        change(image)
    return images


A_BUNDLE = BundleInfo(
    name="test",
    version="1.2.3",
    fingerprint="f" * 64,
    weights_sha256="a" * 64,
    vocabulary="anatomy-1",
    thresholds=tuple((name, 0.5) for name in vocabulary().names),
    smoothing="gaussian 4 mm",
    calibrated=True,
)


def an_answer(images: list[Dataset], shown: Callable[[int], tuple[str, ...]], frames: bool = False) -> SeriesLabels:
    """A labeler's answer on a series: image i shows `shown(i)` with certainty 0.9, all else 0.1."""
    words = vocabulary()
    count = int(images[0].NumberOfFrames) if frames else len(images)
    slices = []
    for position in range(count):
        image = images[0] if frames else images[position]
        source = Source(
            0 if frames else position,
            str(image.SOPInstanceUID),
            str(image.SOPClassUID),
            position + 1 if frames else None,
            None if frames else position + 1,
        )
        present = tuple(name for name in words.names if name in shown(position))
        p = tuple(0.9 if name in present else 0.1 for name in words.names)
        slices.append(SliceLabels(source, "axial", p, present))
    mask = np.array([[name in item.present for name in words.names] for item in slices])
    from labeler.aggregate import findings

    found: tuple[Finding, ...] = findings(np.array([s.probabilities for s in slices], np.float32), mask, words)
    return SeriesLabels(
        modality=images[0].Modality,
        plane="axial",
        names=words.names,
        slices=tuple(slices),
        findings=found,
        skipped=(Skipped(Source(99, derived("skipped")), Skip.LOCALIZER),),
        bundle=A_BUNDLE,
        series_instance_uid=str(images[0].SeriesInstanceUID),
    )


def a_dispute(report: Dataset, note: str, title: CodedConcept) -> Dataset:
    """A Key Object Selection as a workstation writes it."""
    content = KeyObjectSelection(title, [report], description=note)
    return KeyObjectSelectionDocument(
        evidence=[report],
        content=content,
        series_instance_uid=derived("dispute series", note),
        series_number=99,
        sop_instance_uid=derived("dispute", note),
        instance_number=1,
        manufacturer="Workstation",
        institution_name="General Hospital",
        institutional_department_name="Radiology",
    )


def as_enhanced(images: list[Dataset]) -> Dataset:
    """CT slices as the frames of one Legacy Converted Enhanced CT Image."""
    for image in images:
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "NONE"]
        image.PositionReferenceIndicator = ""
        image.AcquisitionDate, image.AcquisitionTime = "20260101", "101500"
    return LegacyConvertedEnhancedCTImage(
        images, derived("enhanced series"), 3, derived("enhanced object"), 1, contributing_equipment=None
    )
