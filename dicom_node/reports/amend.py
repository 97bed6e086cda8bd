"""A person's correction: a report -> its verified successor (PS3.3 C.17.2). Pure.

Groups of labels that the person did not touch stay as they are. The per-image groups are made anew from the corrected
labels; a label that was changed gets a summary without a certainty, since no model said so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations

import numpy as np
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID
from pydicom.valuerep import DT

from dicom_node.errors import ConfigurationError
from dicom_node.reports.groups import SAID_BY_PERSON, coded, separate, shown_name, slabs, summaries
from dicom_node.reports.header import character_set, compare, zone_of
from dicom_node.reports.word import Verifier, observer_of
from dicom_node.uids import derived
from labeler.aggregate import findings
from labeler.result import Finding, SliceLabels
from labeler.slices import Source
from labeler.sr import (
    FINDING_SITE,
    IMAGING_MEASUREMENTS,
    MEASUREMENT_GROUP,
    ReportedLabels,
    concept_of,
    in_order,
    label_of,
)
from labeler.vocabulary import Vocabulary

_CONTAINS = RelationshipTypeValues.CONTAINS
_TARGET_REGION, _SUMMARY, _COMMENT, _TITLE = "123014", "121111", "121106", "112039"
_OBSERVER_TYPE, _PERSON = "121005", "121006"
_UNVERIFIED_LINE, _VERIFIED_LINE = "NOT VERIFIED BY A PERSON.", "CORRECTED AND VERIFIED BY A PERSON."


@dataclass(frozen=True)
class Change:
    """A label to add to, or take from, the images that people number `first` to `last`; None: all images."""

    label: str
    present: bool
    first: int | None = None
    last: int | None = None

    def touches(self, number: int) -> bool:
        return self.first is None or self.last is None or self.first <= number <= self.last

    def __str__(self) -> str:
        where = "all images" if self.first is None else f"images {self.first}-{self.last}"
        return f"{'added' if self.present else 'removed'} {self.label} in {where}"


@dataclass(frozen=True)
class Amendment:
    """What a person says is to change, who that is, when it was said, and why."""

    changes: Sequence[Change]
    by: Verifier
    when: datetime
    comment: str = ""

    def __str__(self) -> str:
        return "; ".join(map(str, self.changes)) + (f". {self.comment}" if self.comment else "")


def parse_change(text: str, words: Vocabulary, *, present: bool) -> Change:
    """`gallbladder`, `liver:12` or `small intestine:40-12`: in the words and the order of the report or the console.

    Raises:
        ConfigurationError: no such label or no such range; the message lists what is near.
    """
    found = re.fullmatch(r"(?P<label>[^:]*[^\W\d][^:]*)(:\s*(?P<first>\d+)(\s*-\s*(?P<last>\d+))?)?", text.strip())
    if found is None:
        raise ConfigurationError(f"{text!r}: write LABEL, LABEL:IMAGE or LABEL:FIRST-LAST, as gallbladder:120-133")
    label = words.called(found["label"])
    if label is None:
        near = [name for name in words.names if name.startswith(found["label"].casefold()[:3])] or words.names
        raise ConfigurationError(f"no label is called {found['label']!r}; there are {', '.join(near)}")
    if found["first"] is None:
        return Change(label.name, present)
    first, last = sorted((int(found["first"]), int(found["last"] or found["first"])))
    return Change(label.name, present, first, last)


def parse_verifier(name: str, organization: str) -> Verifier:
    """Who answers for a correction.

    Raises:
        ConfigurationError: somebody who could not be named in a report (PS3.5 6.2, PN and LO).
    """
    name, organization = name.strip(), organization.strip()
    told = 'write who answers for the correction, as --by "Family^Given" --organization "General Hospital"'
    groups = name.split("=")
    too_long = len(groups) > 3 or any(len(group) > 64 or group.count("^") > 4 for group in groups)
    for value, bad in ((name, too_long), (organization, len(organization) > 64)):
        if bad or not value.strip("^= ") or not value.isprintable() or "\\" in value:
            raise ConfigurationError(f"{value[:64]!r} names nobody: {told}")
    return Verifier(name, organization)


def amended(
    report: Dataset,
    said: ReportedLabels,
    sources: Sequence[Source],
    header: Dataset | None,
    amendment: Amendment,
    words: Vocabulary,
) -> Dataset:
    """The verified successor of a report, in the same series.

    Args:
        said: the report's labels as they are (`labeler.sr.read_report`).
        sources: its images, or frames, in the report's order and with the numbers by which people know them.
        header: of its first image, which is compared with the corrected labels; None where it cannot be read.
    Raises:
        ConfigurationError: the changes change nothing, contradict each other, or name images that there are not.
    """
    before = slices_of(sources, said, words)
    changes, by, when = amendment.changes, amendment.by, amendment.when
    if not changes:
        raise ConfigurationError("nothing to change: name at least one --add LABEL[:IMAGES] or --remove LABEL[:IMAGES]")
    numbers = [source.shown_number for source in sources]
    _check_ranges(changes, numbers)
    _check_contradictions(changes, numbers)
    after = [replace(item, present=_changed(item, changes, words)) for item in before]
    if before == after:
        raise ConfigurationError(f"nothing would change: {'; '.join(map(str, changes))}")
    made = deepcopy(report)
    if not by.spelled_in(character_set(made)):
        made.decode()
        made.SpecificCharacterSet = "ISO_IR 192"
    uid = derived("amended", str(report.SOPInstanceUID), *map(str, changes), by.name, when.isoformat())
    _supersede(made, report, uid, when)
    _verify(made, by, when)
    touched = {change.label for change in changes}
    tree = [*_observers(report, by), *(i for i in made.ContentSequence if not _observes(i))]
    for box in tree:
        if concept_of(box) == IMAGING_MEASUREMENTS:
            box.ContentSequence = list(_measurements(box, after, touched, words, (uid,)))
    box = next(i for i in tree if i.ValueType == "CONTAINER" and concept_of(i) != IMAGING_MEASUREMENTS)
    box.ContentSequence = list(_evaluations(box, after, touched, header, words, str(amendment)))
    made.ContentSequence = tree
    separate(made)
    return made


def slices_of(sources: Sequence[Source], said: ReportedLabels, words: Vocabulary) -> list[SliceLabels]:
    """What a report says of each of its images."""
    shown = (said.of(str(source.sop_instance_uid), source.frame) for source in sources)
    labels = (tuple(name for name in words.names if name in names) for names in shown)
    return [SliceLabels(source, "", (), present) for source, present in zip(sources, labels, strict=True)]


def _check_contradictions(changes: Sequence[Change], numbers: Sequence[int]) -> None:
    for one, other in combinations(changes, 2):
        if one.label != other.label or one.present == other.present:
            continue
        if both := [number for number in numbers if one.touches(number) and other.touches(number)]:
            named = f"image {min(both)}" if len(both) == 1 else f"{len(both)} images from {min(both)} to {max(both)}"
            told = f"{one.label} would be both added and removed in {named}"
            raise ConfigurationError(f"{told}; name the images of each, as --add {one.label}:FIRST-LAST")


def _check_ranges(changes: Sequence[Change], numbers: Sequence[int]) -> None:
    lowest, highest = min(numbers), max(numbers)
    for change in changes:
        if change.first is None or change.last is None:
            continue
        within = lowest <= change.first <= change.last <= highest
        if not within or not any(change.touches(number) for number in numbers):
            there = f"the report's images are numbered {lowest} to {highest} (Instance Number)"
            raise ConfigurationError(f"{change.label}:{change.first}-{change.last}: {there}")


def _changed(item: SliceLabels, changes: Sequence[Change], words: Vocabulary) -> tuple[str, ...]:
    shown = set(item.present)
    for change in changes:
        if change.touches(item.source.shown_number):
            (shown.add if change.present else shown.discard)(change.label)
    return tuple(name for name in words.names if name in shown)


# -- header --------------------------------------------------------------------------------------------------------


def _supersede(made: Dataset, report: Dataset, uid: str, when: datetime) -> None:
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    made.InstanceNumber = int(report.get("InstanceNumber") or 1) + 1
    if when.tzinfo:  # told as the report tells its own time, or the successor would look older in half of the world
        when = when.astimezone(zone_of(report) or UTC)
    made.ContentDate = made.InstanceCreationDate = when.strftime("%Y%m%d")
    made.ContentTime = made.InstanceCreationTime = when.strftime("%H%M%S.%f")
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = report.SOPClassUID, report.SOPInstanceUID
    series = Dataset()
    series.ReferencedSOPSequence, series.SeriesInstanceUID = [reference], report.SeriesInstanceUID
    study = Dataset()
    study.ReferencedSeriesSequence, study.StudyInstanceUID = [series], report.StudyInstanceUID
    made.PredecessorDocumentsSequence = [study]


def _verify(made: Dataset, verifier: Verifier, when: datetime) -> None:
    observer = Dataset()
    observer.VerifyingOrganization, observer.VerificationDateTime = verifier.organization, DT(when)
    observer.VerifyingObserverName, observer.VerifyingObserverIdentificationCodeSequence = verifier.name, []
    made.VerifyingObserverSequence = [observer]
    made.VerificationFlag, made.PreliminaryFlag = "VERIFIED", "FINAL"


# -- content tree --------------------------------------------------------------------------------------------------


def _observes(item: Dataset) -> bool:
    return str(item.get("RelationshipType")) == "HAS OBS CONTEXT" or concept_of(item) == _language()


def _language() -> str:
    return str(codes.DCM.LanguageOfContentItemAndDescendants.value)


def _observers(report: Dataset, verifier: Verifier) -> Iterator[Dataset]:
    """Language, then the person before the devices (TID 1001), in the place of whoever was there before."""
    items = [deepcopy(item) for item in report.ContentSequence if _observes(item)]
    yield from (item for item in items if concept_of(item) == _language())
    yield from observer_of(verifier)
    of_person = False
    for item in items:
        if concept_of(item) == _OBSERVER_TYPE:
            of_person = str(item.ConceptCodeSequence[0].CodeValue) == _PERSON
        if not of_person and concept_of(item) != _language():
            yield item


def _measurements(
    box: Dataset, after: Sequence[SliceLabels], touched: set[str], words: Vocabulary, tracked: tuple[str, ...]
) -> Iterator[Dataset]:
    """The algorithm, summaries of untouched labels, those of changed ones, then the images."""
    for item in box.ContentSequence:
        children = list(item.get("ContentSequence") or [])
        sums_up = any(child.ValueType == "NUM" or _is_of_person(child) for child in children)
        sites = {label_of(child, words) for child in children if concept_of(child) == FINDING_SITE}
        if concept_of(item) != MEASUREMENT_GROUP or (sums_up and not touched & sites):
            yield item
    for group in summaries(after, _said(after, touched, words), words, tracked, touched):
        yield from group
    for group in slabs(after, words, tracked):
        yield from group


def _is_of_person(item: Dataset) -> bool:
    """Is this the title of a summary of what a person said before?"""
    return concept_of(item) == _TITLE and str(item.TextValue).endswith(SAID_BY_PERSON)


def _said(after: Sequence[SliceLabels], labels: set[str], words: Vocabulary) -> tuple[Finding, ...]:
    mask = np.array([[name in item.present and name in labels for name in words.names] for item in after])
    return findings(mask.astype(np.float32), mask, words)


def _evaluations(
    box: Dataset, after: Sequence[SliceLabels], touched: set[str], header: Dataset | None, words: Vocabulary, told: str
) -> Iterator[Dataset]:
    """Target regions as they follow from the corrected labels, the summary, and what was changed."""
    stations = in_order(words.stations, [item.present for item in after])
    region = words.region(stations) if stations else None
    for code in [region.code] if region else [words[name].code for name in stations]:
        yield CodeContentItem(CodedConcept(_TARGET_REGION, "DCM", "Target Region"), coded(code), _CONTAINS)
    for item in box.ContentSequence:
        if concept_of(item) == _SUMMARY:
            text = _summary(str(item.TextValue), after, touched, header, words)
            yield TextContentItem(codes.DCM.Summary, text, _CONTAINS)
        elif concept_of(item) != _TARGET_REGION:
            yield item
    yield TextContentItem(CodedConcept(_COMMENT, "DCM", "Comment"), f"Corrected: {told}", _CONTAINS)


def _summary(
    text: str, after: Sequence[SliceLabels], touched: set[str], header: Dataset | None, words: Vocabulary
) -> str:
    """The report's own lines; stations, organs, and what the header says against them, as they are now."""
    stations, organs = (in_order(names, [item.present for item in after]) for names in (words.stations, words.organs))
    answered = {shown_name(name, words) for name in touched}
    lines = []
    for line in text.replace(_UNVERIFIED_LINE, _VERIFIED_LINE).splitlines():
        title, _, said = line.partition(": ")
        if title == "Body stations":
            lines.append(f"{title}: {'; '.join(shown_name(name, words) for name in stations) or 'none found'}")
            lines += compare(header, stations, words).lines() if header is not None else []
        elif title == "Organs":
            lines.append(f"{title}: {', '.join(shown_name(name, words) for name in organs) or 'none found'}")
        elif title == "Not sure":
            left = [name for name in said.split(", ") if name not in answered]
            lines += [f"{title}: {', '.join(left)}"] if left else []
        elif not title.startswith("Header "):
            lines.append(line)
    return "\r\n".join(lines)
