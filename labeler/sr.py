"""Labels as a TID 1500 report carries them (PS3.16, Measurement Groups of TID 1501). Reading only.

The rule of the encoding: each Finding Site of a Measurement Group was seen on each image that the group references.
Groups with numbers sum up; those without, one per run of images with the same labels, lose nothing and are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from labeler.vocabulary import Kind, Vocabulary

#: SOP Instance UID of an image, and the number of one of its frames where the report names frames.
ImageKey = tuple[str, int | None]

#: Concepts of the tree: its box of groups, a group, and the label on a group.
IMAGING_MEASUREMENTS, MEASUREMENT_GROUP, FINDING_SITE = "126010", "125007", "363698007"


@dataclass(frozen=True)
class ReportedLabels:
    """What a report says.

    Attributes:
        series_instance_uid: of the images that it is about.
        images: SOP Class and SOP Instance UID of every image that it judges, in the report's order.
        seen: labels per image that shows any; an image of `images` that is not here shows none.
    """

    series_instance_uid: str
    images: tuple[tuple[str, str], ...]
    seen: Mapping[ImageKey, frozenset[str]]

    def of(self, sop_instance_uid: str, frame: int | None) -> frozenset[str]:
        """Labels of an image, or of one of its frames: its own and those said of the whole."""
        labels = self.seen.get((sop_instance_uid, None), frozenset())
        return labels if frame is None else labels | self.seen.get((sop_instance_uid, frame), frozenset())

    def by_image(self) -> list[frozenset[str]]:
        """Labels of each image in the report's order, those of its frames together."""
        together: dict[str, set[str]] = defaultdict(set)
        for (uid, _), names in self.seen.items():
            together[uid] |= names
        return [frozenset(together[uid]) for _, uid in self.images]


def in_order(names: Iterable[str], images: Sequence[Collection[str]]) -> tuple[str, ...]:
    """Those of the labels that any image shows, by the first that does, as the labeler lists them."""
    first = {name: place for place, labels in reversed(list(enumerate(images))) for name in labels}
    return tuple(sorted((name for name in names if name in first), key=lambda name: (first[name], name)))


def read_report(report: Dataset, words: Vocabulary) -> ReportedLabels | None:
    """The labels of a report; None for an object without evidence. Codes that are no label of ours are passed over."""
    evidence = report.get("CurrentRequestedProcedureEvidenceSequence")
    if not evidence:
        return None
    seen: dict[ImageKey, set[str]] = defaultdict(set)
    for items in _groups(report):
        names = {name for item in items if concept_of(item) == FINDING_SITE for name in [label_of(item, words)] if name}
        for item in items:
            if item.ValueType == "IMAGE":
                for key in image_keys(item.ReferencedSOPSequence[0]):
                    seen[key] |= names
    series = _series_of(evidence, {uid for uid, _ in seen})
    images = tuple(
        (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)) for item in series.ReferencedSOPSequence
    )
    labels = {key: frozenset(names) for key, names in seen.items()}
    return ReportedLabels(str(series.SeriesInstanceUID), images, labels)


def _series_of(evidence: Iterable[Dataset], shown: Collection[str]) -> Dataset:
    """The series that the labels are about: workstations list others beside it, in any order."""

    def count(series: Dataset) -> int:
        return sum(str(item.ReferencedSOPInstanceUID) in shown for item in series.ReferencedSOPSequence)

    found: Dataset = max((series for study in evidence for series in study.ReferencedSeriesSequence), key=count)
    return found


def _groups(report: Dataset) -> Iterator[list[Dataset]]:
    """Items of every Measurement Group without numbers."""
    for container in report.get("ContentSequence") or []:
        if concept_of(container) == IMAGING_MEASUREMENTS:
            for group in container.get("ContentSequence") or []:
                items = list(group.get("ContentSequence") or [])
                if concept_of(group) == MEASUREMENT_GROUP and all(item.ValueType != "NUM" for item in items):
                    yield items


def label_of(item: Dataset, words: Vocabulary) -> str | None:
    """The label that a Finding Site names; None where it is none of ours."""
    code = item.ConceptCodeSequence[0]
    kinds: tuple[Kind, ...] = ("station", "organ")
    found = (words.of_code(str(code.CodingSchemeDesignator), str(code.CodeValue), kind) for kind in kinds)
    return next((label.name for label in found if label), None)


def concept_of(item: Dataset) -> str:
    """Code Value of a content item's Concept Name; empty where it has none."""
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].get("CodeValue", "")) if names else ""


def image_keys(reference: Dataset) -> Iterator[ImageKey]:
    """The image of one Referenced SOP item, or each of the frames that it names."""
    uid, frames = str(reference.ReferencedSOPInstanceUID), reference.get("ReferencedFrameNumber")
    if frames is None:
        yield uid, None
    else:
        yield from ((uid, int(frame)) for frame in ([frames] if isinstance(frames, int) else frames))
