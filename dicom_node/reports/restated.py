"""A report read back as the answer that it states, for what is drawn from it. Pure.

It holds labels per image, and per label the certainty of the model, if a model said it; no probability per image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset

from dicom_node.reports.amend import slices_of
from labeler.aggregate import findings
from labeler.prompts import Modality
from labeler.result import BundleInfo, Finding, SeriesLabels
from labeler.slices import Source
from labeler.sr import (
    FINDING_SITE,
    IMAGING_MEASUREMENTS,
    MEASUREMENT_GROUP,
    ImageKey,
    ReportedLabels,
    concept_of,
    image_keys,
    label_of,
)
from labeler.vocabulary import Vocabulary

_NAME, _PARAMETER, _VERSION, _SUMMARY = "111001", "111002", "111003", "121111"


def restated(
    report: Dataset,
    said: ReportedLabels,
    sources: Sequence[Source],
    modality: Modality,
    plane: str | None,
    words: Vocabulary,
) -> SeriesLabels:
    """The answer.

    Args:
        said: the report's labels (`labeler.sr.read_report`).
        sources: its images, or frames, in the report's order and with the numbers by which people know them.
        plane: in which they lie, where the order of the images is that of the body.
    """
    slices = slices_of(sources, said, words)
    mask = np.array([[name in item.present for name in words.names] for item in slices])
    slices = [replace(item, probabilities=tuple(map(float, row))) for item, row in zip(slices, mask, strict=True)]
    places = {(str(source.sop_instance_uid), source.frame): place for place, source in enumerate(sources)}
    sure = {name: (key, *certainties) for name, key, certainties in _summed_up(report, words)}
    found = tuple(_as_summed_up(finding, sure, places) for finding in findings(mask.astype(np.float32), mask, words))
    by_person = frozenset(finding.name for finding in found) - sure.keys()
    return SeriesLabels(
        modality, plane, words.names, tuple(slices), found, (), bundle_of(report), said.series_instance_uid, by_person
    )


def _summed_up(report: Dataset, words: Vocabulary) -> Iterator[tuple[str, ImageKey, tuple[float, float]]]:
    """Label, best image, and highest and mean certainty of every group with numbers."""
    for items in _groups(report):
        values = [value for i in items for value in i.get("MeasuredValueSequence") or []]
        numbers = [float(value.NumericValue) / 100 for value in values]
        names = [label_of(item, words) for item in items if concept_of(item) == FINDING_SITE]
        images = [key for i in items if i.ValueType == "IMAGE" for key in image_keys(i.ReferencedSOPSequence[0])]
        if numbers and names and names[0] and images:
            yield names[0], images[0], (numbers[0], numbers[-1])


def _groups(report: Dataset) -> Iterator[list[Dataset]]:
    for box in report.ContentSequence:
        for group in box.get("ContentSequence", []) if concept_of(box) == IMAGING_MEASUREMENTS else ():
            if concept_of(group) == MEASUREMENT_GROUP:
                yield list(group.ContentSequence)


def _as_summed_up(
    finding: Finding, sure: dict[str, tuple[ImageKey, float, float]], places: dict[ImageKey, int]
) -> Finding:
    if finding.name not in sure:
        return finding
    key, certainty, mean = sure[finding.name]
    return replace(finding, best=places.get(key, finding.best), certainty=certainty, mean_certainty=mean)


def bundle_of(report: Dataset) -> BundleInfo:
    """The model that the report names, empty where it names none; its thresholds stay in the report."""
    boxes = (box for box in report.ContentSequence if concept_of(box) == IMAGING_MEASUREMENTS)
    items = [(concept_of(i), str(i.TextValue)) for box in boxes for i in box.ContentSequence if i.ValueType == "TEXT"]
    once, told = dict(items), dict(text.split("=", 1) for concept, text in items if concept == _PARAMETER)
    return BundleInfo(
        once.get(_NAME, ""),
        once.get(_VERSION, ""),
        told.get("bundle-sha256", ""),
        told.get("weights-sha256", ""),
        told.get("vocabulary", ""),
        (),
        told.get("smoothing", ""),
        told.get("calibrated") == "yes",
    )


def doubts_of(report: Dataset) -> str:
    """The labels that may be there, in the words of the report's summary, which does not say where."""
    texts = (
        str(item.TextValue)
        for box in report.ContentSequence
        for item in box.get("ContentSequence") or []
        if concept_of(item) == _SUMMARY
    )
    lines = (line for text in texts for line in text.splitlines())
    return next((line.removeprefix("Not sure: ") for line in lines if line.startswith("Not sure: ")), "")
