"""A person's word: what somebody has verified about images of a series holds when more images come. Pure.

The next report on the series says of these images what the person said, and of the others what the model says. It is
not verified, since nobody has seen it whole; it names the person, and the report that was verified.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from highdicom.sr import ContentItem, ObserverContext, PersonObserverIdentifyingAttributes
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes

from labeler.aggregate import findings
from labeler.result import Finding, SeriesLabels, SliceLabels
from labeler.sr import IMAGING_MEASUREMENTS, ReportedLabels, concept_of, read_report
from labeler.vocabulary import Vocabulary


@dataclass(frozen=True)
class Verifier:
    """Who answers for a verified report: name in DICOM form (Family^Given) and organisation."""

    name: str
    organization: str

    def spelled_in(self, character_set: str) -> bool:
        """Can both be written in it (PS3.3 C.12.1.1.2)?"""
        text = self.name + self.organization
        return text.isascii() or character_set == "ISO_IR 192"


@dataclass(frozen=True)
class Word:
    """What a verified report says, and who answers for it."""

    report_uid: str
    by: Verifier
    said: ReportedLabels

    @cached_property
    def images(self) -> frozenset[str]:
        """SOP Instance UIDs of the images that the person has judged."""
        return frozenset(uid for _, uid in self.said.images)


def word_of(report: Dataset, words: Vocabulary) -> Word | None:
    """The word of a verified report; None where it carries no labels to read, as a text copy of one."""
    said, by = read_report(report, words), verifier_of(report)
    if said is None or by is None or not has_groups(report):
        return None
    return Word(str(report.SOPInstanceUID), by, said)


def has_groups(report: Dataset) -> bool:
    """Does it tell labels image by image? A text copy does not."""
    return any(concept_of(item) == IMAGING_MEASUREMENTS for item in report.get("ContentSequence") or [])


def verifier_of(report: Dataset) -> Verifier | None:
    """Who answers for a report; None where nobody does."""
    people = report.get("VerifyingObserverSequence")
    if not people:
        return None
    name, organization = (_tidy(people[0].get(f"Verifying{part}")) for part in ("ObserverName", "Organization"))
    return Verifier(name or "Unnamed", organization)


def _tidy(value: object) -> str:
    """What a report of ours may repeat of what another system wrote; of several values the first."""
    text = str((value[0] if isinstance(value, MultiValue) else value) or "")
    return "".join(c for c in text if c.isprintable() and c != "\\").strip()[:64]


def word_on(uid: str, people: Sequence[Word]) -> Word | None:
    """The last word on an image."""
    return next((word for word in reversed(people) if uid in word.images), None)


def upheld(answer: SeriesLabels, people: Sequence[Word], words: Vocabulary) -> SeriesLabels:
    """The answer in which every image that a person has judged shows what that person said; the last word counts.

    A label on which person and model differ has the certainty of the images that nobody has judged, if any shows it.
    """
    slices = tuple(_as_said(item, people, words) for item in answer.slices)
    differing = (set(new.present) ^ set(old.present) for new, old in zip(slices, answer.slices, strict=True))
    differ = frozenset[str]().union(*differing)
    probable = np.array([item.probabilities for item in slices], np.float32)
    mask = np.array([[name in item.present for name in words.names] for item in slices])
    unjudged = np.array([word_on(str(item.source.sop_instance_uid), people) is None for item in slices])
    by_model = {finding.name: finding for finding in findings(probable, mask & unjudged[:, None], words)}
    found = [_certain(f, by_model) if f.name in differ else f for f in findings(probable, mask, words)]
    return replace(answer, slices=slices, findings=tuple(found), by_person=differ - by_model.keys())


def _certain(finding: Finding, by_model: Mapping[str, Finding]) -> Finding:
    model = by_model.get(finding.name, finding)
    return replace(finding, best=model.best, certainty=model.certainty, mean_certainty=model.mean_certainty)


def _as_said(item: SliceLabels, people: Sequence[Word], words: Vocabulary) -> SliceLabels:
    uid, frame = str(item.source.sop_instance_uid), item.source.frame
    word = word_on(uid, people)
    if word is None:
        return item
    labels = word.said.of(uid, frame)
    return replace(item, present=tuple(name for name in words.names if name in labels), unsure=())


def observer_of(by: Verifier) -> Sequence[ContentItem]:
    """A person as observer (TID 1002). A report has one at the most: validators refuse a second person's name."""
    person = PersonObserverIdentifyingAttributes(name=by.name, organization_name=by.organization or None)
    observer: Sequence[ContentItem] = ObserverContext(
        observer_type=codes.DCM.Person, observer_identifying_attributes=person
    )
    return observer


def kept_by(answer: SeriesLabels, people: Sequence[Word]) -> list[tuple[Word, int]]:
    """On how many images of the answer each has the last word, the oldest first; none who has it on none."""
    images = dict.fromkeys(str(item.source.sop_instance_uid) for item in answer.slices)
    counts = Counter(word.report_uid for uid in images if (word := word_on(uid, people)) is not None)
    return [(word, counts[word.report_uid]) for word in people if counts[word.report_uid]]


def told_of(kept: Sequence[tuple[Word, int]]) -> Iterator[str]:
    """For those who read the report."""
    for word, count in kept:
        noun = "1 image keeps its labels" if count == 1 else f"{count} images keep their labels"
        yield f"{noun} as verified by {word.by.name} in report {word.report_uid}"
