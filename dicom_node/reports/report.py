"""Labels -> a TID 1500 Structured Report (PS3.16), Comprehensive 3D SR. Pure: the same input gives the same bytes.

The rule of the encoding, valid for every Measurement Group: each Finding Site of the group was seen on each IMAGE that
the group references. First come readable summary groups, one per station and organ (range, best image, certainty);
then slab groups, one per run of consecutive images with the same labels, which lose nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO

import highdicom as hd
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    LanguageOfContentItemAndDescendants,
    ObservationContext,
    ObserverContext,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node import __version__
from dicom_node.reports.groups import coded, separate, shown_name, slabs, summaries
from dicom_node.reports.header import Agreement, Comparison, character_set, compare, safe_header
from dicom_node.reports.word import Word, kept_by, observer_of, told_of
from dicom_node.uids import derived, report_series_uid, report_uid
from labeler.result import BundleInfo, SeriesLabels
from labeler.slices import Source
from labeler.vocabulary import Vocabulary, vocabulary

MANUFACTURER = "dicom-node project"
MODEL_NAME = "anatomy node"
#: Report series are numbered behind the acquired ones.
_SERIES_NUMBER_BASE = 90000

_QUALITATIVE = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
_TARGET_REGION = CodedConcept("123014", "DCM", "Target Region")
_COMMENT = CodedConcept("121106", "DCM", "Comment")
_ENGLISH = CodedConcept("en-US", "RFC5646", "English (United States)")
_PROCEDURE = {
    "CT": CodedConcept("25045-6", "LN", "CT unspecified body region"),
    "MR": CodedConcept("25056-3", "LN", "MRI unspecified body region"),
}
_CONTAINS = RelationshipTypeValues.CONTAINS


@dataclass(frozen=True)
class Predecessor:
    """A report that this one replaces (PS3.3 C.17.2, Predecessor Documents Sequence), of our series or of another."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str = ""


@dataclass(frozen=True)
class Context:
    """What a report needs beside the labels.

    Attributes:
        header: the data set of the series' first image.
        content: hash of the series' content (`uids.content_of`).
        finished: when the report's content was made, in the zone of the header; part of the input, so that a rebuild is
            byte-identical.
        revision: 1 for the first report on a series, then counting up.
        upheld: what people have verified about some of the images, and the labels therefore say (`word.upheld`).
        apart: the study, where one that came before has a series of the same UID; else nothing.
    """

    header: Dataset
    content: str
    finished: datetime
    revision: int = 1
    predecessors: tuple[Predecessor, ...] = ()
    upheld: tuple[Word, ...] = ()
    apart: tuple[str, ...] = ()

    @property
    def series_uid(self) -> str:
        """Of the reports on this series."""
        return report_series_uid(str(self.header.SeriesInstanceUID), *self.apart)


class _Report(Comprehensive3DSR):
    """Takes patient and study from an image of any SOP class: highdicom knows those of the standard's last edition."""

    def copy_patient_and_study_information(self, dataset: Dataset) -> None:
        known = Dataset()
        known.update(dataset)
        known.SOPClassUID = CTImageStorage  # every image's modules of patient and study are the same
        super().copy_patient_and_study_information(known)


def build(answer: SeriesLabels, context: Context) -> Dataset:
    """The report on one labelled series.

    Raises:
        ValueError: no slice carries a label result, or highdicom finds the content invalid.
    """
    if not answer.slices:
        raise ValueError("a report needs at least one labelled image")
    header = safe_header(context.header)
    content = _content(answer, context, header)
    report = _Report(
        evidence=_evidence(answer, header),
        content=_without_children(content),
        series_instance_uid=context.series_uid,
        series_number=_SERIES_NUMBER_BASE + abs(int(header.get("SeriesNumber") or 0)) % 10000,
        sop_instance_uid=uid_of(answer, context),
        instance_number=context.revision,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=__version__,
        device_serial_number=answer.bundle.weights_sha256[:16],
        series_description=f"AI anatomy labels, series {header.get('SeriesNumber') or '?'}"[:64],
        series_date=context.finished.date(),
        series_time=context.finished.time(),
        content_date=context.finished.date(),
        content_time=context.finished.time(),
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=_previous(context, header),
        contributing_equipment=[_equipment(answer.bundle, context.finished.replace(tzinfo=None))],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set=_character_set(context),
        content_qualification="RESEARCH",
    )
    report.ContentSequence = content.ContentSequence
    _settle(report, context, header)
    return report


def encode(report: Dataset) -> bytes:
    """The bytes of the report's file (PS3.10)."""
    buffer = BytesIO()
    report.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def uid_of(answer: SeriesLabels, context: Context) -> str:
    """The SOP Instance UID that this report has, whenever and wherever it is made."""
    upheld = (word.report_uid for word in context.upheld)
    return report_uid(str(context.header.SeriesInstanceUID), context.content, answer.bundle.fingerprint, *upheld)


def comparison_of(answer: SeriesLabels, context: Context) -> Comparison:
    """What the header says of the body part, against the labels."""
    return compare(context.header, answer.stations, vocabulary())


# -- header --------------------------------------------------------------------------------------------------------


def _character_set(context: Context) -> str:
    """The source's, but where a person's name cannot be written in it."""
    own = character_set(context.header)
    return own if all(word.by.spelled_in(own) for word in context.upheld) else "ISO_IR 192"


def _evidence(answer: SeriesLabels, header: Dataset) -> list[Dataset]:
    """One small data set per image; highdicom takes patient and study from the first."""
    evidence = [header]
    for item in _images(answer):
        if item.sop_instance_uid == header.SOPInstanceUID:
            continue
        image = Dataset()
        image.StudyInstanceUID, image.SeriesInstanceUID = header.StudyInstanceUID, header.SeriesInstanceUID
        image.SOPClassUID, image.SOPInstanceUID = item.sop_class_uid, item.sop_instance_uid
        evidence.append(image)
    return evidence


def _images(answer: SeriesLabels) -> list[Source]:
    """One source per SOP Instance, in slice order."""
    first: dict[str | None, Source] = {}
    for item in answer.slices:
        first.setdefault(item.source.sop_instance_uid, item.source)
    return list(first.values())


def _previous(context: Context, header: Dataset) -> list[Dataset] | None:
    previous = []
    for predecessor in context.predecessors:
        item = Dataset()
        item.StudyInstanceUID = header.StudyInstanceUID
        item.SeriesInstanceUID = predecessor.series_instance_uid or context.series_uid
        item.SOPClassUID, item.SOPInstanceUID = predecessor.sop_class_uid, predecessor.sop_instance_uid
        previous.append(item)
    return previous or None


def _equipment(bundle: BundleInfo, finished: datetime) -> hd.ContributingEquipment:
    """The model as a device of its own (IHE AIR): a new Device UID whenever the bundle changes."""
    equipment = hd.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=bundle.name,
        software_versions=[bundle.version, f"sha256:{bundle.weights_sha256[:56]}"],
        device_serial_number=bundle.weights_sha256[:16],
        contribution_datetime=finished,
        contribution_description="AI anatomy labelling",
    )
    equipment.DeviceUID = _device_uid(bundle)
    return equipment


def _device_uid(bundle: BundleInfo) -> str:
    return derived("device", bundle.fingerprint)


def _settle(report: Dataset, context: Context, header: Dataset) -> None:
    """Replace the clock's traces by the content's own time, and carry over what highdicom leaves behind."""
    stamp = context.finished.strftime("%Y%m%d%H%M%S.%f")
    for item in report.ContributingEquipmentSequence:
        if item.get("ManufacturerModelName") == "highdicom":
            item.ContributionDateTime = stamp
    report.InstanceCreationDate, report.InstanceCreationTime = report.ContentDate, report.ContentTime
    for keyword in ("TimezoneOffsetFromUTC", "IssuerOfPatientID", "OtherPatientIDsSequence"):
        if header.get(keyword):
            setattr(report, keyword, header[keyword].value)


# -- content tree --------------------------------------------------------------------------------------------------


def _content(answer: SeriesLabels, context: Context, header: Dataset) -> Dataset:
    """TID 1500 root with TID 1501 groups, the algorithm once (TID 4019), and Qualitative Evaluations."""
    words = vocabulary()
    bundle, kept = answer.bundle, kept_by(answer, context.upheld)
    device = DeviceObserverIdentifyingAttributes(
        uid=_device_uid(bundle),
        name=bundle.name,
        manufacturer_name=MANUFACTURER,
        model_name=f"{bundle.name} {bundle.version}",
        serial_number=bundle.weights_sha256[:16],
    )
    observer = ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    procedure = CodeContentItem(
        codes.DCM.ProcedureReported, _procedure(answer, header), RelationshipTypeValues.HAS_CONCEPT_MOD
    )
    algorithm = AlgorithmIdentification(name=bundle.name, version=bundle.version, parameters=_parameters(bundle))
    measurements = ContainerContentItem(codes.DCM.ImagingMeasurements, relationship_type=_CONTAINS)
    measurements.ContentSequence = ContentSequence(algorithm)
    tracked = (str(answer.series_instance_uid), bundle.fingerprint, *context.apart)
    summed_up = summaries(answer.slices, answer.findings, words, tracked, answer.by_person)
    for group in (*summed_up, *slabs(answer.slices, words, tracked)):
        measurements.ContentSequence.extend(group)
    root = ContainerContentItem(codes.DCM.ImagingMeasurementReport, template_id="1500")
    root.ContentSequence = ContentSequence(
        [
            *LanguageOfContentItemAndDescendants(_ENGLISH),
            *(observer_of(kept[-1][0].by) if kept else ()),
            *ObservationContext(observer_device_context=observer),
            procedure,
            measurements,
            _qualitative(answer, context, words, kept),
        ]
    )
    separate(root)
    return root


def _procedure(answer: SeriesLabels, header: Dataset) -> CodedConcept:
    for item in header.get("ProcedureCodeSequence") or []:
        if item.get("CodeValue") and item.get("CodingSchemeDesignator"):
            return CodedConcept(item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning)
    return _PROCEDURE[answer.modality]


def _parameters(bundle: BundleInfo) -> list[str]:
    common = {
        "weights-sha256": bundle.weights_sha256,
        "bundle-sha256": bundle.fingerprint,
        "vocabulary": bundle.vocabulary,
        "smoothing": bundle.smoothing,
        "calibrated": "yes" if bundle.calibrated else "no",
    }
    usual, _ = Counter(value for _, value in bundle.thresholds).most_common(1)[0]
    own = (f"{name} {value:g}" for name, value in bundle.thresholds if value != usual)
    threshold = ", ".join([f"{usual:g}", *own])  # in one item: a reader pages through them before the first finding
    return [f"{key}={value}" for key, value in {**common, "threshold": threshold}.items()]


def _qualitative(
    answer: SeriesLabels, context: Context, words: Vocabulary, kept: Sequence[tuple[Word, int]]
) -> ContainerContentItem:
    """TID 1500 Qualitative Evaluations: the series' station as a code, and a summary that people can read."""
    box = ContainerContentItem(_QUALITATIVE, relationship_type=_CONTAINS)
    region = words.region(answer.stations) if answer.stations else None
    regions = [region.code] if region else [words[name].code for name in answer.stations]
    items = [CodeContentItem(_TARGET_REGION, coded(code), relationship_type=_CONTAINS) for code in regions]
    text = "\r\n".join(_summary_lines(answer, context, words))
    summary = TextContentItem(codes.DCM.Summary, text, relationship_type=_CONTAINS)
    remarks = [TextContentItem(_COMMENT, told, relationship_type=_CONTAINS) for told in told_of(kept)]
    box.ContentSequence = ContentSequence([*items, summary, *remarks])
    return box


def _summary_lines(answer: SeriesLabels, context: Context, words: Vocabulary) -> list[str]:
    stations = "; ".join(shown_name(name, words) for name in answer.stations)
    organs = ", ".join(shown_name(name, words) for name in answer.organs)
    lines = [
        f"{len(answer.slices)} images labelled by {answer.bundle.name} {answer.bundle.version}. "
        "NOT VERIFIED BY A PERSON.",
        f"Body stations: {stations or 'none found'}",
        *comparison_of(answer, context).lines(),
        f"Organs: {organs or 'none found'}",
    ]
    if answer.unsure:
        lines.append(f"Not sure: {', '.join(shown_name(name, words) for name in answer.unsure)}")
    if answer.skipped:
        lines.append(f"{len(answer.skipped)} images not labelled")
    return lines


def _without_children(root: Dataset) -> Dataset:
    """highdicom copies and searches the whole tree that it is given, at most of the price, and needs the root only."""
    bare = Dataset()
    bare.update({element.tag: element for element in root if element.keyword != "ContentSequence"})
    bare.ContentSequence = root.ContentSequence[:1]
    return bare


__all__ = ["Agreement", "Context", "Predecessor", "build", "comparison_of", "encode", "uid_of"]
