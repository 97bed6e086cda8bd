"""The gate: a report that breaks a rule does not leave. Pure; what validators would find later is found here first.

Checked on the object as it was read back from its bytes: the IOD's Type 1 and 2 attributes, the tree of TID 1500 with
the order of its rows, the evidence, UIDs, codes, and that patient and study are the source's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import BasicTextSRStorage, KeyObjectSelectionDocumentStorage, SecondaryCaptureImageStorage

from dicom_node.errors import Quarantine
from dicom_node.reports.header import safe_header
from dicom_node.study import REPORT_CLASSES
from dicom_node.uids import is_uid
from labeler.sr import FINDING_SITE, IMAGING_MEASUREMENTS, MEASUREMENT_GROUP, concept_of, label_of
from labeler.vocabulary import Vocabulary

#: Attributes that must have a value, and those that must at least be there (PS3.3 A.35.13; Types 1 and 2).
_TYPE_1 = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "SeriesNumber",
    "InstanceNumber",
    "ContentDate",
    "ContentTime",
    "CompletionFlag",
    "VerificationFlag",
    "PreliminaryFlag",
    "ValueType",
    "ConceptNameCodeSequence",
    "ContinuityOfContent",
    "ContentSequence",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "CurrentRequestedProcedureEvidenceSequence",
)
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "ReferencedPerformedProcedureStepSequence",
    "PerformedProcedureCodeSequence",
)
#: What must be the source's own.
_TYPE_1_OF_SHEET = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Modality",
    "ConversionType",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "PixelData",
)
_IDENTITY = (
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "AccessionNumber",
)
_TITLE, _BASIC_TITLE = "126000", "18748-4"
_TARGET_REGION = "123014"
#: Rejected for Quality Reasons (PS3.16 CID 7010).
_REJECTED = "113001"


@dataclass(frozen=True)
class Row:
    """A row of a template: which child, how related, how often; rows of one rank may mix."""

    rank: int
    concept: str
    relationship: str
    value_type: str
    least: int = 0
    most: int | None = 1


#: Children by their parent's concept (PS3.16 TID 1500, 1001, 1501, 4019, 300), as this node writes them.
TEMPLATE: dict[str, tuple[Row, ...]] = {
    _TITLE: (
        Row(0, "121049", "HAS CONCEPT MOD", "CODE", least=1),
        Row(1, "121005", "HAS OBS CONTEXT", "CODE", least=1, most=None),
        Row(1, "121008", "HAS OBS CONTEXT", "PNAME", most=None),
        Row(1, "121009", "HAS OBS CONTEXT", "TEXT", most=None),
        Row(1, "121012", "HAS OBS CONTEXT", "UIDREF", least=1),
        Row(1, "121013", "HAS OBS CONTEXT", "TEXT"),
        Row(1, "121014", "HAS OBS CONTEXT", "TEXT"),
        Row(1, "121015", "HAS OBS CONTEXT", "TEXT"),
        Row(1, "121016", "HAS OBS CONTEXT", "TEXT"),
        Row(2, "121058", "HAS CONCEPT MOD", "CODE", least=1, most=None),
        Row(3, IMAGING_MEASUREMENTS, "CONTAINS", "CONTAINER", least=1),
        Row(4, "C0034375", "CONTAINS", "CONTAINER", least=1),
    ),
    IMAGING_MEASUREMENTS: (
        Row(0, "111001", "HAS CONCEPT MOD", "TEXT", least=1),
        Row(1, "111003", "HAS CONCEPT MOD", "TEXT", least=1),
        Row(2, "111002", "HAS CONCEPT MOD", "TEXT", least=1, most=None),
        Row(3, MEASUREMENT_GROUP, "CONTAINS", "CONTAINER", most=None),
    ),
    MEASUREMENT_GROUP: (
        Row(0, "112039", "HAS OBS CONTEXT", "TEXT", least=1),
        Row(1, "112040", "HAS OBS CONTEXT", "UIDREF", least=1),
        Row(2, "121071", "CONTAINS", "CODE", least=1),
        Row(3, FINDING_SITE, "HAS CONCEPT MOD", "CODE", least=1, most=None),
        Row(4, "111012", "CONTAINS", "NUM", most=2),
        Row(5, "121112", "CONTAINS", "IMAGE", least=1, most=None),
    ),
    "111012": (Row(0, "121401", "HAS CONCEPT MOD", "CODE", least=1),),
    "C0034375": (
        Row(0, _TARGET_REGION, "CONTAINS", "CODE", most=None),
        Row(1, "121111", "CONTAINS", "TEXT", least=1),
        Row(2, "121106", "CONTAINS", "TEXT", most=None),
    ),
}


def inspected(data: bytes, source: Dataset, images: Collection[str], words: Vocabulary) -> bytes:
    """The bytes of a new report, when they may leave; see `passed`.

    Raises:
        Quarantine: they cannot be read back, or a rule is broken.
    """
    try:
        report = dcmread(BytesIO(data))
    except (InvalidDicomError, EOFError, ValueError) as error:
        raise Quarantine(f"the report cannot be read back: {error}") from error
    passed(report, source, images, words)
    return data


def passed_sheet(sheet: Dataset, source: Dataset) -> Dataset:
    """The evidence sheet, when it may leave.

    Args:
        source: what patient and study must be equal to.
    Raises:
        Quarantine: a rule is broken; all that are, are named.
    """
    _stop("sheet", _complaints_of_sheet(sheet, source))
    return sheet


def passed(report: Dataset, source: Dataset, images: Collection[str], words: Vocabulary) -> Dataset:
    """The report, when it may leave.

    Args:
        source: what patient and study must be equal to: the header of an image, or the report that this is made from.
        images: SOP Instance UIDs that the report may be about: the series' own.
    Raises:
        Quarantine: a rule is broken; all that are, are named.
    """
    _stop("report", complaints(report, source, images, words))
    return report


def passed_rejection(note: Dataset, source: Dataset) -> Dataset:
    """The rejection note, when it may leave.

    Args:
        source: what patient and study must be equal to.
    Raises:
        Quarantine: a rule is broken; all that are, are named.
    """
    _stop("rejection note", _complaints_of_rejection(note, source))
    return note


def _stop(what: str, complaints: Iterable[str]) -> None:
    found = list(complaints)
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        remedy = "the images are safe; tell the maintainers, then `dicom-node retry STUDY_UID` with a mended node"
        raise Quarantine(f"the {what} stays here, it breaks its rules: {'; '.join(found[:5])}{more}; {remedy}")


def complaints(report: Dataset, source: Dataset, images: Collection[str], words: Vocabulary) -> Iterator[str]:
    """Every rule that a report breaks, in words."""
    yield from _attributes(report)
    yield from _identity(report, source)
    yield from _uids(report)
    yield from _evidence(report, images)
    yield from _codes(report, words)
    if report.get("SOPClassUID") != BasicTextSRStorage and "ContentSequence" in report:
        yield from _tree(report)


def _complaints_of_sheet(sheet: Dataset, source: Dataset) -> Iterator[str]:
    if sheet.get("SOPClassUID") != SecondaryCaptureImageStorage:
        yield f"SOP class {sheet.get('SOPClassUID')} is no sheet's"
    yield from (f"{name} has no value" for name in _TYPE_1_OF_SHEET if sheet.get(name) in (None, ""))
    if sheet.get("BurnedInAnnotation") != "NO":
        yield "it does not say that no patient is named in the picture"
    if abs(int(sheet.get("SeriesNumber") or 0)) >= 1 << 31:
        yield "its Series Number is no Integer String (PS3.5 6.2)"
    yield from _identity(sheet, source)
    yield from _uids(sheet)
    try:
        shape = sheet.pixel_array.shape
    except Exception as error:  # a decoder raises what it likes; whatever it is, nobody could look at this
        yield f"its pixels cannot be decoded: {type(error).__name__}"
    else:
        if shape != (sheet.get("Rows"), sheet.get("Columns"), 3):
            yield f"its pixels are {shape}"


def _complaints_of_rejection(note: Dataset, source: Dataset) -> Iterator[str]:
    if note.get("SOPClassUID") != KeyObjectSelectionDocumentStorage:
        yield f"SOP class {note.get('SOPClassUID')} is no Key Object Selection's"
    if concept_of(note) != _REJECTED:
        yield f"its title is {concept_of(note) or 'missing'}"
    named = {
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in _items(note)
        if item.get("ReferencedSOPSequence")
    }
    if len(named) != 1 or named != evidence_of(note):
        yield f"it names {len(named)} objects, and its evidence {len(evidence_of(note))}"
    yield from _identity(note, source)
    yield from _uids(note)


def _attributes(report: Dataset) -> Iterator[str]:
    if report.get("SOPClassUID") not in REPORT_CLASSES:
        yield f"SOP class {report.get('SOPClassUID')} is none of a report's"
    basic = report.get("SOPClassUID") == BasicTextSRStorage
    yield from (f"{name} has no value" for name in _TYPE_1 if report.get(name) in (None, "", []))
    yield from (f"{name} is missing" for name in _TYPE_2 if name not in report)
    if report.get("Modality") != "SR":
        yield f"Modality is {report.get('Modality')}"
    if report.get("VerificationFlag") == "VERIFIED" and not report.get("VerifyingObserverSequence"):
        yield "verified by nobody"
    if concept_of(report) != (_BASIC_TITLE if basic else _TITLE):
        yield f"the document's title is {concept_of(report) or 'missing'}"
    meta = getattr(report, "file_meta", Dataset())
    if meta and meta.get("MediaStorageSOPInstanceUID") != report.get("SOPInstanceUID"):
        yield "file header and data set name different instances"


def _identity(report: Dataset, source: Dataset) -> Iterator[str]:
    """Values stay out of the words: they are the patient's."""
    own = safe_header(source)
    for name in _IDENTITY:
        if _plain(report, name) != _plain(own, name):
            yield f"{name} differs from the source's"


def _plain(data_set: Dataset, name: str) -> str:
    return str(data_set.get(name) or "").strip().rstrip("^=")


def _uids(report: Dataset) -> Iterator[str]:
    """Of a report that was read from its bytes nothing is decoded but what holds UIDs, or items."""
    for tag, found in report.items():
        element: Any = report[tag] if found.VR in (None, "SQ") else found
        if element.VR == "SQ":
            for item in element.value:
                yield from _uids(item)
        elif element.VR == "UI":
            yield from (f"{keyword_for_tag(tag)} {uid!r} is no UID" for uid in _named(element.value) if not is_uid(uid))


def _named(value: Any) -> list[str]:
    """The UIDs of a value, decoded or not; an empty one is one that is no UID."""
    if isinstance(value, bytes):
        return value.decode("ascii", "replace").rstrip("\0 ").split("\\")
    return [str(value or "")] if value is None or isinstance(value, str) else [str(uid) for uid in value]


def evidence_of(report: Dataset) -> set[str]:
    """SOP Instance UIDs that a report lists as its evidence."""
    return {
        str(item.ReferencedSOPInstanceUID)
        for study in report.get("CurrentRequestedProcedureEvidenceSequence") or []
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


def _evidence(report: Dataset, images: Collection[str]) -> Iterator[str]:
    listed = evidence_of(report)
    if foreign := listed - set(images):
        yield f"{len(foreign)} objects of the evidence are not of the series"
    used = {
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in _items(report)
        if item.get("ValueType") == "IMAGE"
    }
    if missing := used - listed:
        yield f"{len(missing)} images are referenced and not in the evidence"


def _codes(report: Dataset, words: Vocabulary) -> Iterator[str]:
    meanings = {(label.code.scheme, label.code.value): label.code.meaning for label in words.labels}
    meanings |= {(region.code.scheme, region.code.value): region.code.meaning for region in words.regions}
    for item in _items(report):
        for sequence in ("ConceptNameCodeSequence", "ConceptCodeSequence"):
            for code in item.get(sequence) or []:
                if not (code.get("CodeValue") and code.get("CodingSchemeDesignator") and code.get("CodeMeaning")):
                    yield f"a code of {concept_of(item) or 'an item'} is not complete"
        if concept_of(item) in (FINDING_SITE, _TARGET_REGION) and item.get("ConceptCodeSequence"):
            code = item.ConceptCodeSequence[0]
            key = (str(code.get("CodingSchemeDesignator")), str(code.get("CodeValue")))
            if meanings.get(key) != str(code.get("CodeMeaning")):
                yield f"{' '.join(key)} {code.get('CodeMeaning')!r} is not in the vocabulary"
            if concept_of(item) == FINDING_SITE and label_of(item, words) is None:
                yield f"finding site {' '.join(key)} is no label"


def _items(item: Dataset) -> Iterator[Dataset]:
    """All content items below one."""
    for child in item.get("ContentSequence") or []:
        yield child
        yield from _items(child)


# -- the tree ------------------------------------------------------------------------------------------------------


def _tree(item: Dataset) -> Iterator[str]:
    children = list(item.get("ContentSequence") or [])
    rows = TEMPLATE.get(concept_of(item), ())
    if item.get("ValueType") == "CONTAINER" and item.get("ContinuityOfContent") != "SEPARATE":
        yield f"container {concept_of(item)} is not SEPARATE"
    yield from _rows(concept_of(item), children, rows)
    for child in children:
        yield from _tree(child)


def _rows(parent: str, children: Iterable[Dataset], rows: tuple[Row, ...]) -> Iterator[str]:
    by_concept = {row.concept: row for row in rows}
    counts: Counter[str] = Counter()
    rank = 0
    for child in children:
        concept = concept_of(child)
        row = by_concept.get(concept)
        counts[concept] += 1
        if row is None:
            yield f"{concept or 'an item without a concept'} has no place below {parent}"
            continue
        related = (str(child.get("RelationshipType")), str(child.get("ValueType")))
        if related != (row.relationship, row.value_type):
            yield f"{concept} below {parent} is {' '.join(related)}, not {row.relationship} {row.value_type}"
        if row.rank < rank:
            yield f"{concept} stands too late below {parent}"
        rank = max(rank, row.rank)
    for row in rows:
        if counts[row.concept] < row.least or (row.most is not None and counts[row.concept] > row.most):
            yield f"{row.concept} stands {counts[row.concept]} times below {parent}"
