"""The Measurement Groups of a report (PS3.16 TID 1501): what was seen where. Pure.

Each Finding Site of a group was seen on each IMAGE that the group references. First come readable summary groups, one
per station and organ; then slab groups, one per run of consecutive images with the same labels, which lose nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from highdicom.sr import (
    CodedConcept,
    FindingSite,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_node.uids import derived
from labeler.aggregate import runs
from labeler.result import Finding, SliceLabels
from labeler.vocabulary import Code, Vocabulary

#: Stands in place of a certainty where a person has corrected the model.
SAID_BY_PERSON = "said by a person"
#: What the Tracking UIDs of a report are derived from.
Tracked = tuple[str, ...]

#: Frames of one reference: their numbers are one value, of 64 KiB at most (PS3.5 7.1.2).
_MOST_FRAMES = 5000

_CERTAINTY = codes.DCM.CertaintyOfFinding
_PERCENT = CodedConcept("%", "UCUM", "Percent")
_MAXIMUM, _MEAN = CodedConcept("56851009", "SCT", "Maximum"), CodedConcept("373098007", "SCT", "Mean")
_BODY_PART = CodedConcept("38866009", "SCT", "Body part")
_STRUCTURE = CodedConcept("91723000", "SCT", "Anatomical Structure")


def summaries(
    slices: Sequence[SliceLabels],
    findings: Sequence[Finding],
    words: Vocabulary,
    tracked: Tracked,
    by_person: Collection[str] = (),
) -> Iterator[MeasurementsAndQualitativeEvaluations]:
    """One readable group per station, then per organ; what a person has said bears no certainty of a model."""
    numbers = Numbers.of(slices)
    for finding in findings:
        said = finding.name in by_person
        sure = SAID_BY_PERSON if said else f"certainty {finding.certainty:.0%}"
        yield _group(
            tracked,
            f"{shown_name(finding.name, words)}: {_extent(slices, finding, numbers)}, {sure}",
            f"summary {finding.name}",
            _BODY_PART if finding.kind == "station" else _STRUCTURE,
            [finding.name],
            [slices[finding.best]],
            words,
            None if said else [_certainty(finding.certainty, _MAXIMUM), _certainty(finding.mean_certainty, _MEAN)],
        )


def _extent(slices: Sequence[SliceLabels], finding: Finding, numbers: Numbers) -> str:
    best = slices[finding.best].source.shown_number
    return f"images {_told(numbers.stretches(finding.positions))} ({finding.count} of {len(slices)}), best {best}"


@dataclass(frozen=True)
class Numbers:
    """What people call the images of a series. Phases and echoes of one place are neighbours with distant numbers."""

    shown: tuple[int, ...]

    @classmethod
    def of(cls, slices: Sequence[SliceLabels]) -> Numbers:
        return cls(tuple(item.source.shown_number for item in slices))

    @cached_property
    def _rank(self) -> dict[int, int]:
        return {number: rank for rank, number in enumerate(sorted(set(self.shown)))}

    @cached_property
    def _falling(self) -> bool:
        return 2 * sum(a > b for a, b in pairwise(self.shown)) > len(self.shown) - 1

    def stretches(self, positions: Iterable[int]) -> list[tuple[int, int]]:
        """First and last number of every run of numbers that no other image has, in the direction of the series."""
        these = np.zeros(len(self._rank), np.bool_)
        these[[self._rank[self.shown[position]] for position in positions]] = True
        numbers = list(self._rank)
        found = [(numbers[first], numbers[last]) for first, last in runs(these)]
        return [(last, first) for first, last in reversed(found)] if self._falling else found


def _told(stretches: Sequence[tuple[int, int]]) -> str:
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in stretches[:6]]
    return ", ".join(shown) + " ..." * (len(stretches) > 6)


def slabs(
    slices: Sequence[SliceLabels], words: Vocabulary, tracked: Tracked
) -> Iterator[MeasurementsAndQualitativeEvaluations]:
    """One group per longest run of consecutive images that show exactly the same."""
    numbers = Numbers.of(slices)
    for first, last in slab_ranges(slices):
        present = slices[first].present
        if not present:
            continue
        stations = [shown_name(name, words) for name in present if words[name].kind == "station"]
        organs = len(present) - len(stations)
        noun = "Image" if first == last else "Images"
        counted = f"{organs} organ" if organs == 1 else f"{organs} organs"
        named = _told(numbers.stretches(range(first, last + 1)))
        title = f"{noun} {named}: {', '.join(stations) or 'no station'}; {counted}"
        run = slices[first : last + 1]
        yield _group(tracked, title, f"slab {first}", _STRUCTURE, present, run, words)


def slab_ranges(slices: Sequence[SliceLabels]) -> Iterator[tuple[int, int]]:
    """Inclusive positions of runs with one label set and one orientation."""
    start = 0
    for position in range(1, len(slices) + 1):
        here = slices[position] if position < len(slices) else None
        if here is None or (here.present, here.plane) != (slices[start].present, slices[start].plane):
            yield start, position - 1
            start = position


def _group(
    tracked: Tracked,
    title: str,
    key: str,
    finding: CodedConcept,
    names: Sequence[str],
    slices: Sequence[SliceLabels],
    words: Vocabulary,
    measurements: list[Measurement] | None = None,
) -> MeasurementsAndQualitativeEvaluations:
    """TID 1501; the Tracking UID is unique in the report, since viewers merge groups that share one."""
    tracking = derived("group", *tracked, key)
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=tracking, identifier=title),
        finding_type=finding,
        finding_sites=[FindingSite(anatomic_location=coded(words[name].code)) for name in names],
        measurements=measurements,
        source_images=_references(slices),
    )


def _references(slices: Sequence[SliceLabels]) -> list[SourceImageForMeasurementGroup]:
    frames: dict[tuple[str, str], list[int]] = defaultdict(list)
    for item in slices:
        key = (str(item.source.sop_class_uid), str(item.source.sop_instance_uid))
        frames[key] += [item.source.frame] if item.source.frame else []
    return [
        SourceImageForMeasurementGroup(cls, uid, numbers[first : first + _MOST_FRAMES] or None)
        for (cls, uid), numbers in frames.items()
        for first in range(0, max(1, len(numbers)), _MOST_FRAMES)
    ]


def _certainty(probability: float, derivation: CodedConcept) -> Measurement:
    """Certainty of Finding in percent. Older viewers expect a child below every NUM: the derivation is one."""
    return Measurement(name=_CERTAINTY, value=round(probability * 100, 1), unit=_PERCENT, derivation=derivation)


def shown_name(name: str, words: Vocabulary) -> str:
    text = words[name].text
    return text[:1].upper() + text[1:]


def coded(code: Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, code.meaning)


def separate(item: Dataset) -> None:
    """Containers SEPARATE, not highdicom's CONTINUOUS, with which viewers drop the names of items."""
    if item.ValueType == "CONTAINER":
        item.ContinuityOfContent = "SEPARATE"
    for child in item.get("ContentSequence", []):
        separate(child)
