"""A hospital's own images: a folder of DICOM series with SEG objects, or with our reports as people corrected them.

A segment labels the images in which it has pixels; what no segment names is unknown. A corrected report (VERIFIED,
with a predecessor) labels every image of its evidence completely: what it does not name is absent. An unverified report
says what a model thought, not what is true, and is not read. People are split by the hash of their Patient ID.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from rich.progress import track

from labeler.dicom import read_dicom
from labeler.preprocess import PreprocessSpec, canvas
from labeler.slices import Plane, Series
from labeler.sr import ImageKey, image_keys, read_report
from labeler.vocabulary import vocabulary
from training.corpus import ABSENT, PRESENT, UNKNOWN, LabelledStack, States
from training.totalsegmentator import split_of

_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


@dataclass
class _Truth:
    """What is known of one series: labels somebody looked for, and where each was seen."""

    known: set[str] = field(default_factory=set)
    #: Images that a person has judged as a whole.
    judged: set[str] = field(default_factory=set)
    seen: dict[ImageKey, set[str]] = field(default_factory=lambda: defaultdict(set))


def read_hospital(folder: Path, spec: PreprocessSpec) -> Iterator[LabelledStack]:
    """All labelled CT and MR series of a folder, of whatever depth."""
    images: dict[str, list[Path]] = defaultdict(list)
    subjects: dict[str, str] = {}
    truths: dict[str, _Truth] = defaultdict(_Truth)
    for path in track(sorted(p for p in folder.rglob("*") if p.is_file()), description="Reading DICOM"):
        try:
            header = dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, OSError, EOFError):
            continue
        if header.get("Modality") in ("CT", "MR"):
            images[str(header.SeriesInstanceUID)].append(path)
            subjects[str(header.SeriesInstanceUID)] = str(header.get("PatientID") or header.StudyInstanceUID)
        elif header.get("SOPClassUID") == _SEGMENTATION:
            _from_segmentation(dcmread(path), truths)
        elif header.get("Modality") == "SR":
            _from_report(header, truths)
    for uid in sorted(images.keys() & truths.keys()):
        for series in read_dicom(images[uid], spec.canvas):
            yield from _stacks(series, subjects[uid], truths[uid], spec)


def _stacks(series: Series, subject: str, truth: _Truth, spec: PreprocessSpec) -> Iterator[LabelledStack]:
    for number, stack in enumerate(series.stacks):
        square = canvas([plane.pixels for plane in stack.planes], stack.mm, series.modality, spec)
        yield LabelledStack(
            name=f"{series.series_instance_uid} {number}",
            subject=subject,
            split=split_of(subject),
            modality=series.modality,
            plane=stack.plane,
            values=square.values.astype(np.float16),
            states=np.stack([_states(plane, truth) for plane in stack.planes]),
            positions=tuple(plane.position for plane in stack.planes),
            mm=square.mm,
            licence="the hospital's own",
        )


def _states(plane: Plane, truth: _Truth) -> States:
    words = vocabulary()
    states = np.full(len(words.labels), UNKNOWN, np.int8)
    uid = str(plane.source.sop_instance_uid)
    for name in words.names if uid in truth.judged else truth.known:
        states[words.index(name)] = ABSENT
    seen = truth.seen.get((uid, plane.source.frame), set()) | truth.seen.get((uid, None), set())
    for name in seen:
        states[words.index(name)] = PRESENT
        homes = words[name].stations
        if len(homes) == 1:
            states[words.index(homes[0])] = PRESENT
    return states


# -- DICOM SEG (PS3.3 C.8.20) ------------------------------------------------------------------------------------------


def _from_segmentation(segmentation: Dataset, truths: Mapping[str, _Truth]) -> None:
    labels = {int(s.SegmentNumber): _segment_label(s) for s in segmentation.SegmentSequence}
    series = [str(item.SeriesInstanceUID) for item in segmentation.get("ReferencedSeriesSequence", [])]
    for uid in series:
        truths[uid].known |= {label for label in labels.values() if label}
    pixels = np.atleast_3d(segmentation.pixel_array)
    frames = pixels if pixels.shape[0] == len(segmentation.PerFrameFunctionalGroupsSequence) else pixels[None, ..., 0]
    shared = segmentation.get("SharedFunctionalGroupsSequence", [Dataset()])[0]
    for groups, frame in zip(segmentation.PerFrameFunctionalGroupsSequence, frames, strict=True):
        identification = groups.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
        label = labels.get(int(identification[0].ReferencedSegmentNumber))
        if not label or not frame.any():
            continue
        for key in _source_images(groups):
            for uid in series:
                truths[uid].seen[key].add(label)


def _segment_label(segment: Dataset) -> str | None:
    code = segment.SegmentedPropertyTypeCodeSequence[0]
    found = vocabulary().of_code(str(code.CodingSchemeDesignator), str(code.CodeValue), "organ")
    return found.name if found else None


def _source_images(groups: Dataset) -> Iterator[ImageKey]:
    for derivation in groups.get("DerivationImageSequence", []):
        for source in derivation.get("SourceImageSequence", []):
            yield from image_keys(source)


# -- corrected reports (TID 1500, as dicom_node writes them) -----------------------------------------------------------


def _from_report(report: Dataset, truths: Mapping[str, _Truth]) -> None:
    corrected = report.get("VerificationFlag") == "VERIFIED" and "PredecessorDocumentsSequence" in report
    said = read_report(report, vocabulary()) if corrected else None
    if said is None:
        return
    truth = truths[said.series_instance_uid]
    truth.judged |= {uid for _, uid in said.images}
    for key, names in said.seen.items():
        truth.seen[key] |= names
